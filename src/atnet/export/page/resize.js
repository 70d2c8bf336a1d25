// Resampling to the same bytes as Pillow's: a kernel as wide as the reduction asks for, across and then down, 8 bits
// between the two, weights as whole numbers.

const BITS = 22;
const HALF = 1 << (BITS - 1);
const BAND = 256; // rows read at a time, so that a large image does not lie in memory once more

const KERNELS = {
  bicubic: {
    reach: 2,
    at(x) {
      const away = Math.abs(x);
      if (away < 1) return (1.5 * away - 2.5) * away * away + 1;
      return away < 2 ? (((away - 5) * away + 8) * away - 4) * -0.5 : 0;
    },
  },
  bilinear: { reach: 1, at: (x) => Math.max(1 - Math.abs(x), 0) },
};

/** For `count` of a line's `to` pixels, from `begin` on: the first of the `from` pixels it mixes, and their weights. */
function mixtures(from, to, begin, count, kernel) {
  const scale = from / to;
  const widened = Math.max(scale, 1);
  const reach = kernel.reach * widened;
  return Array.from({ length: count }, (_, i) => {
    const centre = (begin + i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), from);
    const exact = Array.from({ length: end - first }, (_, k) => kernel.at((first + k - centre + 0.5) * (1 / widened)));
    const sum = exact.reduce((total, weight) => total + weight, 0);
    return { first, weights: Int32Array.from(exact, (weight) => Math.round((weight / sum) * 2 ** BITS)) };
  });
}

/** `count` lines of bytes, `step` a pixel, mixed into lines of three bytes a pixel. */
function mixAcross(lines, count, width, step, mixtures, mixed, at) {
  for (let y = 0; y < count; y++) {
    for (const { first, weights } of mixtures) {
      let red = HALF, green = HALF, blue = HALF;
      let from = (y * width + first) * step;
      for (let k = 0; k < weights.length; k++, from += step) {
        red += lines[from] * weights[k];
        green += lines[from + 1] * weights[k];
        blue += lines[from + 2] * weights[k];
      }
      mixed[at++] = red >> BITS; // the array clamps to 0 to 255
      mixed[at++] = green >> BITS;
      mixed[at++] = blue >> BITS;
    }
  }
}

/** Lines of `length` bytes, of which line `begin` is the first, mixed into fewer or more of them. */
function mixDown(lines, begin, length, mixtures) {
  const mixed = new Uint8ClampedArray(mixtures.length * length);
  mixtures.forEach(({ first, weights }, y) => {
    for (let x = 0; x < length; x++) {
      let sum = HALF;
      for (let k = 0; k < weights.length; k++) sum += lines[(first - begin + k) * length + x] * weights[k];
      mixed[y * length + x] = sum >> BITS;
    }
  });
  return mixed;
}

/**
 * A part of a scaled image: bytes, red, green and blue of each pixel.
 *
 * rows(y, count): bytes of the image's rows, red, green, blue and one more of each pixel.
 * from, to: width and height before and after scaling.  left, top, width, height: the part, in scaled pixels.
 */
export function resizeAndCrop(rows, from, to, left, top, width, height, interpolation) {
  const kernel = KERNELS[interpolation];
  const across = mixtures(from[0], to[0], left, width, kernel);
  const down = mixtures(from[1], to[1], top, height, kernel);
  const begin = down[0].first;
  const end = down[height - 1].first + down[height - 1].weights.length;
  const narrow = new Uint8ClampedArray((end - begin) * width * 3);
  for (let y = begin; y < end; y += BAND) {
    const count = Math.min(BAND, end - y);
    mixAcross(rows(y, count), count, from[0], 4, across, narrow, (y - begin) * width * 3);
  }
  return mixDown(narrow, begin, width * 3, down);
}
