"""Our augmentation against torchvision's of the same names: the same operations, and the same distribution."""

import io
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from atnet.config import make_config
from atnet.data.augment import OPERATIONS, Augment, crop_box, draw_operation, erased_box, operate, resize
from atnet.data.decode import decode, open_encoded
from atnet.data.order import Draw
from atnet.data.preprocess import make_preprocess

FILL = (124, 116, 104)
OURS_AND_THEIRS = {
    "identity": "Identity",
    "shear x": "ShearX",
    "shear y": "ShearY",
    "translate x": "TranslateX",
    "translate y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}


@pytest.fixture(scope="module")
def photo(photos):
    with Image.open(sorted((photos / "val").rglob("*.*"))[7]) as opened:
        return opened.convert("RGB")


def jpeg(image, **options):
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def test_the_operations_are_torchvisions():
    assert set(OURS_AND_THEIRS.values()) == set(v2.RandAugment._AUGMENTATION_SPACE)
    assert set(OURS_AND_THEIRS) == set(OPERATIONS)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions(photo, name, magnitude):
    policy = v2.RandAugment(fill=FILL)
    height, width = photo.height, photo.width
    levels, signed = policy._AUGMENTATION_SPACE[OURS_AND_THEIRS[name]]
    strengths = levels(31, height, width)
    for sign in (1, -1) if signed else (1,):
        strength = 0.0 if strengths is None else sign * float(strengths[magnitude])
        theirs = policy._apply_image_or_video_transform(
            photo, OURS_AND_THEIRS[name], strength, interpolation=policy.interpolation, fill=policy._fill
        )
        # Which way a positive shear or translation goes is a matter of taste: both are drawn.
        ours = [np.asarray(operate(photo, name, magnitude, way, FILL), float) for way in (sign, -sign)]
        apart = min(float(np.abs(one - np.asarray(theirs, float)).mean()) for one in ours)
        assert apart < (3.0 if name in ("shear x", "shear y", "rotate") else 0.5)  # of 255; half a pixel at edges


def test_each_operation_is_drawn_equally_often():
    chance = random.Random(0)
    drawn = [draw_operation(chance) for _ in range(14_000)]
    counts = {name: sum(one == name for one, _ in drawn) for name in OPERATIONS}
    assert all(abs(count - 1000) < 4 * math.sqrt(1000) for count in counts.values())
    assert abs(sum(sign for _, sign in drawn)) < 4 * math.sqrt(14_000)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (200, 900), (64, 64)])
def test_crops_are_distributed_as_torchvisions(width, height):
    chance = random.Random(0)
    torch.manual_seed(0)
    theirs_of = v2.RandomResizedCrop(224, scale=(0.08, 1.0))
    blank = torch.zeros(3, height, width)
    ours, theirs = [], []
    for _ in range(3000):
        left, top, right, bottom = crop_box(width, height, 0.08, chance)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        ours.append((left, top, right - left, bottom - top))
        found = theirs_of.make_params([blank])
        theirs.append((found["left"], found["top"], found["width"], found["height"]))
    for one, other in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert ks_2samp(one, other).pvalue > 1e-4


def test_what_is_erased_is_distributed_as_torchvisions():
    chance = random.Random(0)
    torch.manual_seed(0)
    theirs_of = v2.RandomErasing(p=1.0)
    blank = torch.zeros(3, 96, 96)
    ours = np.array([erased_box(96, chance) for _ in range(3000)])
    found = [theirs_of.make_params([blank]) for _ in range(3000)]
    theirs = np.array([(p["j"], p["i"], p["j"] + p["w"], p["i"] + p["h"]) for p in found])
    for one, other in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(one, other).pvalue > 1e-4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [32, 224, 300])
def test_resizing_is_torchs(photo, interpolation, side):
    pixels = np.asarray(photo)[20:200, 11:220]
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], (side, side), mode=interpolation, antialias=True
    )
    assert np.array_equal(resize(pixels, (0, 0, side, side), interpolation), theirs[0].permute(1, 2, 0).numpy())


def test_a_jpeg_decoded_for_a_crop_has_the_pixels_that_evaluation_sees(photo):
    whole = (0, 0, 500, 375)
    for options in ({"quality": 95}, {"quality": 60, "progressive": True}, {"subsampling": 0}):
        content = jpeg(photo.resize((500, 375)), **options)
        with open_encoded(content, "") as image:
            pixels, box = image.decode(whole, 1.9)
        assert np.array_equal(pixels, np.asarray(decode(content)))
        assert box == whole


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_large_jpeg_is_reduced_for_a_crop_and_shows_the_same(photo, orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(photo.resize((1200, 900), Image.Resampling.BICUBIC).convert(mode), exif=exif, quality=95)
    upright = decode(content)
    box = (100, 200, 800, 850)
    with open_encoded(content, "") as image:
        assert (image.width, image.height) == upright.size
        pixels, smaller = image.decode(box, 4.5)
    assert pixels.shape[0] * 4 == pytest.approx(upright.height, abs=8)
    left, top, right, bottom = smaller
    ours = resize(pixels[top:bottom, left:right], (0, 0, 96, 96), "bicubic").astype(float)
    theirs = resize(np.asarray(upright)[box[1] : box[3], box[0] : box[2]], (0, 0, 96, 96), "bicubic").astype(float)
    assert np.abs(ours - theirs).mean() < 4


def test_a_crop_scale_of_1_is_what_evaluation_sees(photo):
    config = make_config(data={"size": 96}, augment={"crop_scale": 1.0, "flip": 0.0})
    content = jpeg(photo)
    augment = Augment(config)
    chance = augment.chance(Draw(0, 0))
    with open_encoded(content, "") as image:
        pixels, box = image.decode(*augment.crop(image.width, image.height, 96, chance))
    found = augment(pixels, box, 96, chance)
    assert np.array_equal(found, make_preprocess(config.data).resize_and_crop(decode(content)))


@pytest.mark.parametrize("sides", [(600, 200), (100, 333), (64, 64), (1000, 20)])
def test_crops_of_a_letterbox_are_those_of_the_image_on_the_mean_colour(sides):
    """The same box of the square is drawn; where it would miss the image, it is moved so that its middle is inside."""
    augment = Augment(make_config(data={"resize": "letterbox", "size": 48}, augment={"crop_scale": 0.2, "flip": 0.0}))
    pixels = np.random.default_rng(0).integers(0, 256, (sides[1], sides[0], 3), dtype=np.uint8)
    longer, margins = max(sides), [(max(sides) - side) // 2 for side in sides]
    square = np.full((3 * longer, 3 * longer, 3), augment.fill, np.uint8)
    left, top = (longer + margin for margin in margins)
    square[top : top + sides[1], left : left + sides[0]] = pixels
    for seed in range(50):
        box, reduction = augment.crop(*sides, 48, random.Random(seed))
        assert reduction == pytest.approx(min(box[2] - box[0], box[3] - box[1]) / 48)
        middle = [(box[i] + box[i + 2]) // 2 for i in (0, 1)]
        assert all(0 <= at < side for at, side in zip(middle, sides, strict=True))
        found = augment(pixels, box, 48, random.Random(seed)).astype(int)
        whole = square[top + box[1] : top + box[3], left + box[0] : left + box[2]]
        expected = resize(whole, (0, 0, 48, 48), "bicubic").astype(int)
        seen = (expected == augment.fill).all(2).mean()
        assert (found == augment.fill).all(2).mean() == pytest.approx(seen, abs=0.09)  # a row at each edge is mixed
        assert np.abs(found - expected).mean() < 30


def test_a_squashed_image_is_cropped_in_shares_of_its_sides():
    augment = Augment(make_config(data={"resize": "squash", "size": 48}, augment={"crop_scale": 0.2}))
    plain = Augment(make_config(data={"size": 48}, augment={"crop_scale": 0.2}))
    for seed in range(50):
        left, top, right, bottom = augment.crop(600, 200, 48, random.Random(seed))[0]
        square = plain.crop(600, 600, 48, random.Random(seed))[0]
        assert (left, right) == (square[0], square[2])
        assert (top, bottom) == (pytest.approx(square[1] / 3, abs=0.51), pytest.approx(square[3] / 3, abs=0.51))
