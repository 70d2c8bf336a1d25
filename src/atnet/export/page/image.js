// A file as pixels, upright and opaque; what cannot be is refused, with a message for a person.

const MAX_SIDE = 16384; // pixels; browsers draw no longer rows

export class ImageError extends Error {}

const number = (value) => value.toLocaleString("en");

/** The file's name to show: not too long, and without what would turn the text around it. */
export function nameOf(file) {
  const name = (file.name || "image").replace(/\p{C}/gu, "?");
  return name.length > 60 ? `${name.slice(0, 40)}…${name.slice(-15)}` : name;
}

/**
 * The file in an image element, which is not shown yet, and as a bitmap to read from.
 *
 * limits: bytes, pixels, aspect.  The size is known before anything is decoded.
 */
export async function openImage(file, limits) {
  const name = nameOf(file);
  if (file.size === 0) throw new ImageError(`${name}: an empty file; choose another`);
  if (file.size > limits.bytes) {
    const sizes = `${number(file.size)} bytes are more than the ${number(limits.bytes)} allowed`;
    throw new ImageError(`${name}: ${sizes}; make it smaller`);
  }
  const unreadable = new ImageError(
    `${name}: damaged, or no image that this browser can read; choose a JPEG, PNG or WebP image`,
  );
  const image = new Image();
  image.alt = name;
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((loaded, failed) => {
      image.onload = loaded;
      image.onerror = () => failed(unreadable);
    });
    requireModest(name, image.naturalWidth, image.naturalHeight, limits);
    const upright = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "default" };
    const bitmap = await createImageBitmap(file, upright).catch(() => {
      throw unreadable;
    });
    return { image, bitmap };
  } catch (error) {
    URL.revokeObjectURL(image.src);
    throw error;
  }
}

function requireModest(name, width, height, limits) {
  const sides = `${number(width)} x ${number(height)} pixels`;
  if (width * height > limits.pixels) {
    throw new ImageError(`${name}: ${sides} are more than the ${number(limits.pixels)} allowed; make it smaller`);
  }
  if (Math.max(width, height) > MAX_SIDE) {
    throw new ImageError(`${name}: ${sides}, a side of more than ${number(MAX_SIDE)}; make it smaller`);
  }
  if (Math.max(width, height) > limits.aspect * Math.min(width, height)) {
    throw new ImageError(`${name}: sides of ${sides} are too unequal; crop it`);
  }
}

/** A function (y, count) to the bytes of the bitmap's rows, transparency laid over white. */
export function rowsOf(bitmap) {
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  return (y, count) => {
    canvas.width = bitmap.width;
    canvas.height = count;
    pen.fillStyle = "white";
    pen.fillRect(0, 0, bitmap.width, count);
    pen.drawImage(bitmap, 0, y, bitmap.width, count, 0, 0, bitmap.width, count);
    return pen.getImageData(0, 0, bitmap.width, count).data;
  };
}
