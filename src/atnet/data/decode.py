"""The only file that opens a picture. Free of torch."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from atnet.errors import DataError
from atnet.files import did_you_mean

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""By which a file in a folder is taken for a picture; what it is, its content tells."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 50_000_000
"""Larger pictures are refused before they are decoded: a small file can claim any size."""

MAX_ASPECT = 100
"""More unequal sides are refused: scaled to a shorter side of the network's, such a picture is a bomb too."""


def decode(source: str | Path | bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as RGB, 8 bits a channel, turned upright by its EXIF flag.

    source: a file, or a file's bytes, in one of FORMATS, told by content.
    name: what errors call it; the path if none is given.
    16-bit grey is scaled to 8 bits; transparency is laid over white; of an animation, the first frame.
    Raises DataError naming the picture if it cannot be read whole or has more than max_pixels.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "picture")
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(stream, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise DataError(
                    f"{name}: {width} x {height} pixels are more than the {max_pixels:,} allowed; make it smaller"
                )
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise DataError(f"{name}: sides of {width} x {height} pixels are too unequal; crop it")
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such picture{did_you_mean(Path(name))}") from error
    except IsADirectoryError as error:
        raise DataError(f"{name}: a folder, not a picture") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        struct.error,
        MemoryError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        formats = ", ".join(FORMATS)
        raise DataError(f"{name}: not a whole {formats} picture ({error}); replace or remove it") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.float64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("integers of more than 16 bits; save it with 8 or 16 bits a channel")
        deep = picture.mode != "I" or wide.max() > 255
        return Image.fromarray((wide / (257 if deep else 1)).round().astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits a channel")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
