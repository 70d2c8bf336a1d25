// The evaluation transform: from an image to the network's input, as atnet/data/preprocess.py has it.

import { rowsOf } from "./image.js";
import { resizeAndCrop } from "./resize.js";

/** The bitmap made square, as floats: the network's input, 3 x size x size. */
export function preprocess(bitmap, about) {
  const { size, interpolation, mean, std } = about;
  const { width, height } = bitmap;
  const scaled = target(width, height, about);
  const [left, top] = scaled.map((length) => (
    length >= size ? halfToEven((length - size) / 2) : -Math.floor((size - length) / 2)));
  const [across, down] = scaled.map((length) => Math.min(length, size));
  const found = resizeAndCrop(
    rowsOf(bitmap), [width, height], scaled, Math.max(left, 0), Math.max(top, 0), across, down, interpolation);
  return normalise(padded(found, across, down, Math.max(-left, 0), Math.max(-top, 0), size, mean), mean, std);
}

/** The sides that an image is resized to. */
export function target(width, height, { size, crop_pct: share, resize }) {
  const side = Math.floor(size / share);
  if (resize === "squash") return [side, side];
  if (resize === "letterbox") {
    const longer = Math.max(width, height);
    return [width, height].map((length) => Math.max(halfToEven((length * side) / longer), 1));
  }
  return width <= height
    ? [side, Math.trunc((side * height) / width)]
    : [Math.trunc((side * width) / height), side];
}

/** Bytes of an image at its place in a square of the mean colour. */
function padded(bytes, across, down, left, top, size, mean) {
  if (across === size && down === size) return bytes;
  const fill = mean.map((value) => halfToEven(255 * value));
  const square = Uint8ClampedArray.from({ length: 3 * size * size }, (_, at) => fill[at % 3]);
  for (let y = 0; y < down; y++) {
    square.set(bytes.subarray(3 * y * across, 3 * (y + 1) * across), 3 * ((top + y) * size + left));
  }
  return square;
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
