import io
import os
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from atnet.data.decode import (
    MAX_BYTES,
    _Transforms,
    brightest_of,
    decode,
    describe,
    is_too_dark,
    open_encoded,
)
from atnet.errors import DataError


def whole(content, name):
    """The pixels of a crop that is all of the image."""
    with open_encoded(content, name) as image:
        return image.decode((0, 0, image.width, image.height), 1)[0]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    ramp = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)
    return Image.fromarray(ramp)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_same_pixels(photo, kind):
    assert np.array_equal(np.asarray(decode(encoded(photo, kind))), np.asarray(photo))


def test_avif_is_read_and_turned_upright(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encoded(photo, "AVIF", quality=95, exif=exif))
    expected = photo.transpose(Image.Transpose.ROTATE_270)
    assert found.size == expected.size
    plain = decode(encoded(photo, "AVIF", quality=95))
    assert np.array_equal(np.asarray(found), np.asarray(plain.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize(
    ("brands", "what"),
    [
        (b"heic\0\0\0\0mif1heic", "HEIC"),
        (b"mif1\0\0\0\0mif1heic", "HEIC"),
        (b"avif\0\0\0\0avifmif1", "AVIF"),
        (b"msnv\0\0\0\0msnvmp42", "a video"),
    ],
)
def test_what_a_phone_wrote_is_told_by_its_brands(brands, what):
    with pytest.raises(DataError, match=f"x: {what}"):
        decode(b"\0\0\0\x18ftyp" + brands + bytes(40), "x")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_by_its_exif_flag(photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    upright = photo if orientation == 1 else photo.transpose(Image.Transpose(turn[orientation]))
    assert np.array_equal(np.asarray(decode(encoded(photo, "PNG", exif=exif))), np.asarray(upright))


def test_16_bit_grey_is_scaled_not_cut():
    deep = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert np.asarray(decode(encoded(deep, "PNG")))[0, :, 0].tolist() == [0, 128, 255]


def test_32_bit_images_are_scaled_right_or_refused():
    assert np.asarray(decode(encoded(Image.new("I", (2, 2), 200), "TIFF"))).max() == 200
    for image in (Image.new("I", (2, 2), 2**20), Image.new("F", (2, 2), 0.5)):
        with pytest.raises(DataError, match="8 or 16 bits"):
            decode(encoded(image, "TIFF"))


def test_a_sliver_is_refused_it_would_be_a_bomb_once_scaled():
    with pytest.raises(DataError, match="too unequal"):
        decode(encoded(Image.new("L", (1, 2000)), "PNG"))


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decode(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_grey_becomes_three_equal_channels(photo):
    pixels = np.asarray(decode(encoded(photo.convert("L"), "JPEG")))
    assert pixels.shape == (40, 30, 3)
    assert (pixels == pixels[:, :, :1]).all()


def test_the_content_counts_not_the_name(photo, tmp_path):
    (tmp_path / "really_a_png.jpg").write_bytes(encoded(photo, "PNG"))
    assert decode(tmp_path / "really_a_png.jpg").size == (30, 40)


@pytest.mark.parametrize(
    "spoil",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"hello, this is text", lambda b: b[:30]],
    ids=["truncated", "empty", "text", "header only"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
@pytest.mark.filterwarnings("ignore:.*(EXIF|Truncated File)")  # Pillow's own word on a damaged header, besides
def test_a_broken_image_is_an_error_that_names_it(photo, kind, spoil, tmp_path):
    path = tmp_path / "img_7.jpg"
    path.write_bytes(spoil(encoded(photo, kind)))
    with pytest.raises(DataError, match="img_7.jpg"):
        decode(path)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG", "AVIF"])
@pytest.mark.filterwarnings("ignore:.*(EXIF|Truncated File|Skipping tag)")  # Pillow's own word on it, besides
def test_training_refuses_a_damaged_image_as_evaluation_does(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    sound = encoded(noise, kind)
    refused = 0
    for at in range(60, len(sound) - 20, max(len(sound) // 40, 1)):
        for damaged in (sound[:at], sound[:at] + bytes([sound[at] ^ 0xFF]) + sound[at + 1 :]):
            try:
                seen = decode(damaged)
            except DataError:
                refused += 1
                with pytest.raises(DataError, match="^x.jpg: "):
                    whole(damaged, "x.jpg")
            else:
                pixels = whole(damaged, "x.jpg")
                assert np.array_equal(pixels, np.asarray(seen))
    assert refused >= 20


def test_a_bomb_is_refused_before_it_is_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(DataError):
        decode(bomb)


def test_the_pixel_cap_is_said(photo):
    with pytest.raises(DataError, match="30 x 40 pixels are more than the 1,000 allowed"):
        decode(encoded(photo, "PNG"), max_pixels=1000)


def test_postscript_is_not_an_image():
    with pytest.raises(DataError):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


def test_an_absent_file_is_said(tmp_path):
    with pytest.raises(DataError, match="no such image"):
        decode(tmp_path / "gone.jpg")


def test_damaged_exif_does_not_cost_the_image(photo):
    content = encoded(photo, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff" + b"\xff" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow says that the EXIF is damaged, as it is
        assert np.array_equal(np.asarray(decode(content)), np.asarray(decode(encoded(photo, "JPEG"))))


def test_a_profile_that_is_no_use_changes_nothing():
    plain = Image.new("RGB", (4, 4), (200, 40, 40))
    usual, other_channels = (
        ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes() for name in ("sRGB", "LAB")
    )
    for profile in (usual, other_channels, b"no profile at all"):
        assert decode(encoded(plain, "PNG", icc_profile=profile)).getpixel((0, 0)) == (200, 40, 40)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (bytes(500), "only zeros"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, as phones write it"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (b"\x89PNG\r\n\x1a\n broken", "a damaged PNG"),
        (b"name,age\n", "text"),
    ],
)
def test_what_is_no_image_is_called_what_it_seems_to_be(content, what):
    with pytest.raises(DataError, match=f"x.jpg: {what}"):
        decode(content, "x.jpg")


def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="a.jpg: a named pipe"):
        decode(tmp_path / "a.jpg")


def test_a_jpeg_of_endless_scans_is_refused(photo):
    content = encoded(photo, "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    assert decode(content).size == photo.size
    with pytest.raises(DataError, match="more than 100 scans"):
        decode(content[:-2] + scan * 200 + content[-2:])


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="256,000,001 bytes are more than the 256,000,000 allowed"):
        decode(tmp_path / "a.jpg")


def test_what_is_odd_in_a_file_is_described(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = describe(encoded(photo, "JPEG", exif=exif), ".png")
    assert (found.format, found.width, found.height) == ("JPEG", 40, 30)
    assert found.odd == ("a JPEG called .png", "turned by its EXIF flag")
    assert describe(encoded(photo, "PNG"), ".png").odd == ()
    assert describe(encoded(photo.convert("CMYK"), "JPEG"), ".jpg").odd == ("CMYK colours",)
    several = describe(encoded(photo, "MPO", save_all=True, append_images=[photo]), ".jpg")  # as some cameras write
    assert (several.format, several.odd) == ("JPEG", ("several frames, of which the first is taken",))


def sixteen_bits(top: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, top, (40, 30)).astype(np.uint16))


def with_sbit(png: bytes, bits: int) -> bytes:
    chunk = b"sBIT" + bytes([bits])
    return png[:33] + b"\0\0\0\1" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + png[33:]


def test_fewer_bits_in_16_are_scaled_where_the_file_says_how_many():
    grey = sixteen_bits(4096)
    expected = (np.asarray(grey) / (4095 / 255)).round().astype(np.uint8)
    tiff = encoded(grey, "TIFF", tiffinfo={281: 4095})
    for content in (with_sbit(encoded(grey, "PNG"), 12), tiff):
        assert np.array_equal(np.asarray(decode(content))[:, :, 0], expected)
        pixels = whole(content, "x")
        assert np.array_equal(pixels[:, :, 0], expected)
    scaled = Image.fromarray((np.asarray(grey) % 256 << 4).astype(np.uint16))  # dark, but as the standard has it
    assert np.array_equal(
        np.asarray(decode(with_sbit(encoded(scaled, "PNG"), 12))), np.asarray(decode(encoded(scaled, "PNG")))
    )
    wide = sixteen_bits(65536)
    assert np.array_equal(
        np.asarray(decode(with_sbit(encoded(wide, "PNG"), 12))), np.asarray(decode(encoded(wide, "PNG")))
    )


@pytest.mark.parametrize("top", [1024, 4096, 16384])
def test_an_image_that_fewer_bits_make_nearly_black_is_odd(top):
    content = encoded(sixteen_bits(top), "PNG")
    shade = brightest_of(decode(content))
    assert describe(content, ".png", shade).odd == (
        "16 bits a channel",
        "nearly black, with 14 or fewer of 16 bits a channel in use",
    )
    assert is_too_dark(content, "x")
    assert not is_too_dark(encoded(sixteen_bits(65536), "PNG"), "x")
    assert not is_too_dark(encoded(Image.new("L", (9, 9)), "PNG"), "x")


def test_sixteen_bits_of_colour_are_told_too():
    head = b"IHDR" + (8).to_bytes(4, "big") * 2 + b"\x10\2\0\0\0"
    rows = zlib.compress((b"\0" + b"\x0f\xff" * 24) * 8)
    parts = [head, b"IDAT" + rows, b"IEND"]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        (len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in parts
    )
    assert is_too_dark(content, "x")


def profiled(number: int, size: int) -> bytes:
    """A JPEG with a profile of its own, of so many bytes."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"sRGB", b"xRGB"))
    profile = profile.replace(b"s\0R\0G\0B", b"x\0R\0G\0B") + number.to_bytes(8, "big") + bytes(size)
    profile[:4] = len(profile).to_bytes(4, "big")
    return encoded(Image.new("RGB", (8, 8), (200, 40, 40)), "JPEG", icc_profile=bytes(profile))


def test_colour_profiles_are_kept_as_far_as_their_bytes_allow(monkeypatch):
    monkeypatch.setattr("atnet.data.decode.KEPT_PROFILE_BYTES", 400_000)
    kept = _Transforms()
    monkeypatch.setattr("atnet.data.decode._transforms", kept)
    for size in (20_000, 90_000, 200_000):
        for number in range(8):
            decode(profiled(number, size))
            assert sum(len(profile) for profile, _ in kept._kept) == kept._bytes <= 400_000
    assert 1 <= len(kept._kept) <= 20
    with Image.open(io.BytesIO(profiled(1, 20_000))) as image:
        profile = image.info["icc_profile"]
    assert kept.of(profile, "RGB") is kept.of(profile, "RGB") is not None


def test_to_look_at_a_tiff_takes_no_walk_over_its_directories(monkeypatch):
    several = encoded(Image.new("L", (9, 9), 255), "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))] * 4)
    sought = []
    seek = TiffImagePlugin.TiffImageFile._seek
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "_seek", lambda self, at: (sought.append(at), seek(self, at)))
    assert "several frames, of which the first is taken" in describe(several, ".tif").odd
    assert set(sought) <= {0}


def test_an_image_of_palette_colours_without_a_palette_is_refused():
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), "red").quantize(4).save(stream, "PNG")
    content = stream.getvalue()
    begin = content.index(b"PLTE") - 4
    end = begin + 12 + int.from_bytes(content[begin : begin + 4], "big")
    with pytest.raises(DataError, match="a.png: not a whole"):
        decode(content[:begin] + content[end:], "a.png")
