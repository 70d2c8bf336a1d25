// The evaluation transform: from an image to the network's input, as atnet/data/preprocess.py has it.

import { rowsOf } from "./image.js";
import { resizeAndCrop } from "./resize.js";

/** The bitmap's centre as floats: the network's input, 3 x size x size. */
export function preprocess(bitmap, { size, crop_pct: share, interpolation, mean, std }) {
  const { width, height } = bitmap;
  const side = Math.floor(size / share);
  const scaled = width <= height
    ? [side, Math.trunc((side * height) / width)]
    : [Math.trunc((side * width) / height), side];
  const [left, top] = scaled.map((length) => halfToEven((length - size) / 2));
  return normalise(resizeAndCrop(rowsOf(bitmap), [width, height], scaled, left, top, size, interpolation), mean, std);
}

function halfToEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

/** Bytes, pixel by pixel, to floats, colour by colour, in the arithmetic of 32 bits. */
function normalise(bytes, mean, std) {
  const pixels = bytes.length / 3;
  const input = new Float32Array(bytes.length);
  for (let colour = 0; colour < 3; colour++) {
    const [centre, spread] = [Math.fround(mean[colour]), Math.fround(std[colour])];
    const value = (byte) => Math.fround(Math.fround(byte / 255) - centre) / spread;
    const values = Float32Array.from({ length: 256 }, (_, byte) => value(byte));
    for (let i = 0; i < pixels; i++) input[colour * pixels + i] = values[bytes[3 * i + colour]];
  }
  return input;
}
