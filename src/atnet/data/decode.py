"""The only file that opens an image. Free of torch."""

import io
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

from atnet.errors import DataError
from atnet.files import did_you_mean, open_regular, read_regular

SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"), "PNG": (".png", ".apng"),
    "WEBP": (".webp",), "BMP": (".bmp", ".dib"), "GIF": (".gif",), "TIFF": (".tif", ".tiff"), "AVIF": (".avif",),
}  # fmt: skip
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
READS_HEIF = find_spec("pillow_heif") is not None
"""HEIC, the format of iPhones, is read where pillow-heif is installed; its wheels bring encoders under the GPL, so it
is no extra of ours."""

NEEDS_HEIF = "pip install pillow-heif, which reads it, or convert to JPEG"
if READS_HEIF:
    SUFFIXES_OF["HEIF"] = HEIF_SUFFIXES
FORMATS = tuple(SUFFIXES_OF)
SUFFIXES = {suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes}
"""By which a file in a folder is taken for an image; what it is, its content tells."""

OTHER_SUFFIXES = {
    *HEIF_SUFFIXES, ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".jxl", ".jxr", ".svg", ".svgz",
    ".pdf", ".eps", ".ai", ".psd", ".xcf", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".pcx", ".tga", ".ico", ".icns",
    ".cur", ".qoi", ".exr", ".hdr", ".dds", ".ras", ".sgi", ".fits", ".dcm", ".dicom", ".dng", ".cr2", ".cr3", ".crw",
    ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".kdc",
    ".mrw", ".rwl", ".raw",
}  # fmt: skip
"""Of images that are not decoded here, HEIC where it can't be."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""

MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded: a small file can claim any size."""

MAX_BYTES = 256_000_000
"""Larger files are refused before they are read."""

MAX_ASPECT = 100
"""More unequal sides are refused: scaled to a shorter side of the network's, such an image is a bomb too."""

MAX_SCANS = 100
"""A progressive JPEG of more scans is refused: each costs a pass over all pixels, and encoders write ten or so."""

MAX_PROFILE_BYTES = 20_000_000
"""A larger colour profile is not looked at; the largest that a JPEG has room for is of 16.7 MB."""

KEPT_PROFILE_BYTES = 16_000_000
"""Of the colour profiles whose transforms are kept, together; the larger ones of printers have two or three."""

DARK, DARK_16 = 15, 64
"""Shades of 256: an image without a brighter one is nearly black, and one of 16 bits may hold 14 or fewer."""

_MAX_SAMPLE_VALUE = 281
"""TIFF's tag."""

_BEGINNINGS = (
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"8BPS", b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"\xff\x0a", b"<svg", b"DDS ", b"\x76\x2f\x31\x01", b"qoif",
)  # fmt: skip
_FTYP = (b"hei", b"hev", b"mif", b"msf", b"avi")
"""How images begin; and after eight bytes, HEIC and AVIF."""

_SEEN = (
    (b"\xff\xd8\xff", "a damaged JPEG"),
    (b"\x89PNG", "a damaged PNG"),
    (b"RIFF", "a damaged WebP, or a sound or video"),
    (b"GIF8", "a damaged GIF"),
    (b"BM", "a damaged BMP"),
    (b"II*\0", "a damaged TIFF"),
    (b"MM\0*", "a damaged TIFF"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"<svg", "an SVG drawing"),
    (b"<!DOC", "an HTML page"),
    (b"<!doc", "an HTML page"),
    (b"<htm", "an HTML page"),
    (b"<?xml", "XML"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"8BPS", "a Photoshop file"),
)


def read_file(path: str | Path) -> bytes:
    """A file's bytes. Raises DataError naming it unless it is a regular one of at most MAX_BYTES that can be read."""
    try:
        content = read_regular(path, MAX_BYTES, DataError)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image{did_you_mean(Path(path))}") from error
    _require_size(str(path), len(content))
    return content


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does, of whatever kind; False if it cannot be read."""
    try:
        with open_regular(path, 1 << 62, DataError) as file:
            begin = file.read(32)
    except (DataError, OSError):
        return False
    bitmap = begin.startswith(b"BM") and begin[6:10] == bytes(4)
    return (
        bitmap
        or begin.startswith(_BEGINNINGS)
        or (begin[4:8] == b"ftyp" and begin[8:11] in _FTYP)
        or (begin.startswith(b"RIFF") and begin[8:12] == b"WEBP")
    )


def decode(source: str | Path | bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as RGB, 8 bits a channel, upright by its EXIF flag, in sRGB by its colour profile.

    source: a file, or a file's bytes, in one of FORMATS, told by content.
    name: what errors call it; the path if none is given.
    16 bits are scaled to 8; transparency is laid over white; of an animation, the first frame.
    Raises DataError naming the image if it cannot be read whole or has more than max_pixels.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "image")
    content = source if isinstance(source, bytes) else read_file(source)
    with _opened(content, name, max_pixels) as image:
        image.load()
        return _to_rgb(_upright(image), _stated_top(image, content))


class EncodedImage:
    """An image whose size is known and whose pixels are not decoded yet.

    width, height: of the upright image.
    """

    def __init__(self, image: Image.Image, content: bytes) -> None:
        self._image, self._content, self._turn = image, content, _orientation(image)
        self.width, self.height = image.size if self._turn < 5 else image.size[::-1]

    def decode(self, box: Box, reduction: float) -> tuple[NDArray[np.uint8], Box]:
        """Pixels (H, W, 3) for a crop of the image, and the crop's box in them.

        box: left, top, right, bottom in the upright image.  reduction: by how much the pixels may be reduced.
        The pixels are those of `decode`, but a JPEG's come faster, and reduced to half or less where that is allowed.
        """
        image, pixels = self._image, None
        width, height = image.size
        plain = image.mode == "RGB" and self._turn == 1 and not image.info.get("icc_profile")
        if image.format == "JPEG" and plain:
            pixels = _decode_jpeg(self._content, width, height, reduction)
        if pixels is None:
            if reduction >= 2 and image.format == "JPEG" and image.mode in ("L", "RGB"):
                image.draft(image.mode, (max(int(width / reduction), 1), max(int(height / reduction), 1)))
            image.load()
            pixels = np.array(_to_rgb(_upright(image), _stated_top(image, self._content)))
        across, down = pixels.shape[1] / self.width, pixels.shape[0] / self.height
        left, top = round(box[0] * across), round(box[1] * down)
        return pixels, (left, top, max(round(box[2] * across), left + 1), max(round(box[3] * down), top + 1))


@contextmanager
def open_encoded(content: bytes, name: str) -> Iterator[EncodedImage]:
    """An image whose pixels are decoded later, for a crop. Raises DataError naming it, also while it is open."""
    with _opened(content, name, MAX_PIXELS) as image:
        if image.format != "JPEG":
            image.load()  # before its EXIF, which in a PNG may follow the colours: reading it would hide their damage
        yield EncodedImage(image, content)


def _decode_jpeg(content: bytes, width: int, height: int, reduction: float) -> NDArray[np.uint8] | None:
    """The pixels by libjpeg-turbo without Pillow's copies; None if it has anything to remark, for Pillow to judge."""
    least = (0, 0) if reduction < 2 else (max(int(height / reduction), 1), max(int(width / reduction), 1))
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            content, strict=True, min_height=least[0], min_width=least[1], min_factor=2
        )
        return pixels
    except (ValueError, RuntimeError, MemoryError):
        return None


@contextmanager
def _opened(content: bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """The image, its head read; whatever goes wrong with it until it is closed becomes a DataError naming it."""
    _require_size(name, len(content))
    formats = ", ".join(FORMATS)
    if _is_heic(content):
        if not READS_HEIF:
            raise DataError(f"{name}: {_what(content)}: {NEEDS_HEIF}")
        _register_heif()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _require_modest(image, content, name, max_pixels)
            yield image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_what(content)}, not a whole {formats} image; convert or remove it") from error
    except MemoryError as error:
        raise DataError(f"{name}: needs more memory than there is; make it smaller") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        LookupError,
        TypeError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        struct.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        why = str(error) or type(error).__name__
        raise DataError(f"{name}: not a whole {formats} image ({why}); replace or remove it") from error


def _is_heic(content: bytes) -> bool:
    brand, others = content[8:12], content[16:64]
    if content[4:8] != b"ftyp" or brand[:3] == b"avi" or (brand in (b"mif1", b"msf1") and b"avif" in others):
        return False
    return brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


@lru_cache(maxsize=1)
def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)


def _require_size(name: str, size: int) -> None:
    if size == 0:
        raise DataError(f"{name}: an empty file; replace or remove it")
    if size > MAX_BYTES:
        raise DataError(f"{name}: {size:,} bytes are more than the {MAX_BYTES:,} allowed; make it smaller")


def _require_modest(image: Image.Image, content: bytes, name: str, max_pixels: int) -> None:
    """Raises DataError on what would take far more memory or time than its file's size lets one expect."""
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(f"{name}: {width} x {height} pixels are more than the {max_pixels:,} allowed; make it smaller")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{name}: sides of {width} x {height} pixels are too unequal; crop it")
    if image.format == "JPEG" and "progressive" in image.info and content.count(b"\xff\xda") > MAX_SCANS:
        raise DataError(f"{name}: a progressive JPEG of more than {MAX_SCANS} scans; save it anew")


def _upright(image: Image.Image) -> Image.Image:
    """Turned by its EXIF flag."""
    if _orientation(image) == 1:
        return image
    profile = image.info.get("icc_profile")
    turned = ImageOps.exif_transpose(image)
    turned.info["icc_profile"] = profile
    return turned


def _orientation(image: Image.Image) -> int:
    """EXIF's flag, 1 to 8; 1 where EXIF cannot be read, for the image itself is whole."""
    try:
        flag = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, EOFError, struct.error):
        return 1
    return flag if flag in range(1, 9) else 1


def _stated_top(image: Image.Image, content: bytes) -> int:
    """The value of white in an image of 16 bits a channel, as its file says: 4,095 of 12 bits; 65,535 if it does not.

    A PNG with an sBIT chunk has its values scaled to 16 bits already, if its writer kept to the standard: then the bits
    below those that count are 0 in dark shades, for which alone it matters.
    """
    if not image.mode.startswith("I"):
        return 65535
    if image.format == "PNG":
        at = content.find(b"\0\0\0\x01sBIT", 0, max(content.find(b"IDAT"), 0))
        bits = content[at + 8] if at >= 0 else 16
        if not 8 <= bits < 16 or not (np.asarray(image) & ((1 << (16 - bits)) - 1)).any():
            return 65535
        return (1 << bits) - 1
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        found = [image.tag_v2.get(tag) for tag in (_MAX_SAMPLE_VALUE, TiffImagePlugin.BITSPERSAMPLE)]
        most, depth = (value[0] if isinstance(value, tuple) and value else value for value in found)
        if isinstance(most, int) and 255 <= most <= 65535:
            return most
        return (1 << depth) - 1 if isinstance(depth, int) and 8 < depth <= 16 else 65535
    return 65535


@lru_cache(maxsize=16)
def _shades(top: int) -> NDArray[np.uint8]:
    """Of each value of 16 bits its shade of 8, the value `top` being white."""
    return np.asarray((np.minimum(np.arange(65536), top) / (top / 255)).round(), dtype=np.uint8)


def _to_rgb(image: Image.Image, stated: int) -> Image.Image:
    """stated: see `_stated_top`."""
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        least, most = int(wide.min()), int(wide.max())
        if least < 0 or most > 65535:
            raise ValueError("integers of more than 16 bits; save it with 8 or 16 bits a channel")
        deep = 65535 if most > stated else stated
        top = 255 if image.mode == "I" and most <= 255 else deep
        return Image.fromarray(_shades(top)[wide]).convert("RGB")
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        opaque = _to_srgb(whole.convert("RGB"), profile)
        opaque.putalpha(whole.getchannel("A"))
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB")
    if image.mode in ("1", "P", "LA", "PA", "La"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    return _to_srgb(image, profile).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """In sRGB's colours if it has another profile of its own kind, else as it is."""
    if not profile or image.mode not in ("L", "RGB", "CMYK"):
        return image
    transform = _transforms.of(profile, image.mode)
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


class _Transforms:
    """Transforms to sRGB, of which those used last are kept, as far as their profiles' bytes allow."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
        """None if the profile is sRGB's own, cannot be read, or is of other channels than the image has."""
        key = profile, mode
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = _transform(profile, mode)
        with self._lock:
            if len(profile) <= KEPT_PROFILE_BYTES // 4 and key not in self._kept:
                self._kept[key] = found
                self._bytes += len(profile)
            while self._bytes > KEPT_PROFILE_BYTES or len(self._kept) > 64:
                (oldest, _), _ = self._kept.popitem(last=False)
                self._bytes -= len(oldest)
        return found


_transforms = _Transforms()


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if len(profile) > MAX_PROFILE_BYTES:
        return None
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(found):
            return None
        return ImageCms.buildTransform(found, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _what(content: bytes) -> str:
    """What a file that is no image seems to be."""
    if content[4:8] == b"ftyp":
        brand = content[8:12]
        return "HEIC, as phones write it" if _is_heic(content) else "AVIF" if brand[:3] == b"avi" else "a video"
    begin = content[:512].lstrip()
    for start, what in _SEEN:
        if begin.startswith(start):
            return what
    return "only zeros" if not any(content) else "text" if begin.isascii() else "unknown data"


NEARLY_BLACK = "nearly black"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an image's file says of itself.  odd: what in it other tools often get wrong."""

    format: str
    width: int
    height: int
    odd: tuple[str, ...]


def describe(content: bytes, suffix: str, brightest: int = 255) -> Facts:
    """What an image's file says of itself; the image is one that `decode` takes.

    suffix: of its name, lower case with a dot.  brightest: shade, 0 to 255, that `decode` gives.
    """
    with _opened(content, "image", MAX_PIXELS) as image:
        kind = "JPEG" if image.format == "MPO" else image.format or ""  # several JPEGs in one file
        width, height = image.size
        odd = []
        if suffix and suffix not in SUFFIXES_OF[kind]:
            odd.append(f"a {kind} called {suffix}")
        if _has_frames(image):
            odd.append("several frames, of which the first is taken")
        if _orientation(image) != 1:
            odd.append("turned by its EXIF flag")
            width, height = (height, width) if _orientation(image) >= 5 else (width, height)
        if image.mode == "CMYK":
            odd.append("CMYK colours")
        elif _is_deep(image, content):
            odd.append("16 bits a channel")
        elif image.has_transparency_data:
            odd.append("transparent parts, laid over white")
        elif image.mode in ("L", "1"):
            odd.append("grey")
        if brightest <= DARK_16 and _is_deep(image, content):
            odd.append(f"{NEARLY_BLACK}, with 14 or fewer of 16 bits a channel in use")
        elif brightest <= DARK:
            odd.append(NEARLY_BLACK)
        profile = image.info.get("icc_profile")
        if profile and image.mode in ("L", "RGB", "CMYK") and _transforms.of(profile, image.mode) is not None:
            odd.append("a colour profile other than sRGB")
    return Facts(format=kind, width=width, height=height, odd=tuple(odd))


def _has_frames(image: Image.Image) -> bool:
    """Whether there is more than one; to count them would take a pass over all, of which there may be a million."""
    try:
        return bool(getattr(image, "is_animated", False))
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error):
        return True  # a damaged one after the first


def is_too_dark(content: bytes, name: str) -> bool:
    """Whether an image has 16 bits a channel, of which so few are used that it is nearly black.

    Raises DataError naming it if it cannot be read.
    """
    with _opened(content, name, MAX_PIXELS) as image:
        if not _is_deep(image, content):
            return False
    return brightest_of(decode(content, name)) <= DARK_16


def brightest_of(image: Image.Image) -> int:
    """The largest value, 0 to 255, in an RGB image."""
    return max(high for _, high in image.getextrema())  # type: ignore[misc]


def _is_deep(image: Image.Image, content: bytes) -> bool:
    """Whether it has 16 bits a channel; of colours, Pillow leaves the upper 8."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, 1)
        return max(bits if isinstance(bits, tuple) else (bits,), default=1) > 8
    return image.mode.startswith("I") or (image.format == "PNG" and content[24:25] == b"\x10")
