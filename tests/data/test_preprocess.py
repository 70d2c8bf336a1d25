import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from atnet.data.preprocess import CROP_MODES, Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("sides", [(500, 375), (224, 224), (97, 310), (20, 20)])
@pytest.mark.parametrize(("size", "crop_pct"), [(128, 0.875), (160, 0.95), (64, 1.0)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", CROP_MODES)
def test_it_is_timms_evaluation_transform(sides, size, crop_pct, interpolation, resize):
    pixels = np.random.default_rng(0).integers(0, 256, (sides[1], sides[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = Preprocess(size=size, crop_pct=crop_pct, interpolation=interpolation, mean=MEAN, std=STD, resize=resize)
    theirs = create_transform(
        (3, size, size),
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=MEAN,
        std=STD,
        crop_mode=CROP_MODES[resize],
    )
    levels = np.abs(ours(image) - theirs(image).numpy()) * 255 * np.array(STD)[:, None, None]
    if sides == (97, 310):  # which Pillow may resize down first, where noise is rounded and cut off otherwise
        assert levels.max() < 16
        assert levels.mean() < 0.5
    else:
        assert levels.max() < 1e-4


@pytest.mark.parametrize("resize", CROP_MODES)
@pytest.mark.parametrize("sides", [(97, 310), (5, 400), (70, 69)])
def test_it_resizes_across_and_then_down(sides, resize):
    """As networks with preprocessing and the page do, whatever Pillow finds faster."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (sides[1], sides[0], 3), dtype=np.uint8))
    ours = Preprocess(size=64, crop_pct=1.0, interpolation="bicubic", mean=MEAN, std=STD, resize=resize)
    longer, shorter = max(sides), min(sides)
    width, height = (
        {"crop": int(64 * side / shorter), "letterbox": max(round(64 * side / longer), 1), "squash": 64}[resize]
        for side in sides
    )
    bicubic = Image.Resampling.BICUBIC
    scaled = np.asarray(image.resize((width, sides[1]), bicubic).resize((width, height), bicubic))
    square = np.full((64, 64, 3), ours.fill, np.uint8)
    left, top = (64 - width) // 2, (64 - height) // 2
    if resize == "letterbox":
        square[top : top + height, left : left + width] = scaled
    else:
        down, across = round((height - 64) / 2), round((width - 64) / 2)
        square[:] = scaled[down : down + 64, across : across + 64]
    assert np.array_equal(ours.resize_and_crop(image), square)


def test_values_that_cannot_be_right_are_refused():
    good = {"size": 64, "crop_pct": 0.9, "interpolation": "bicubic", "mean": MEAN, "std": STD}
    assert Preprocess.from_dict(good).size == 64
    for bad in (
        {"size": 10**9},
        {"crop_pct": 0},
        {"interpolation": "best"},
        {"resize": "best"},
        {"mean": [0.5]},
        {"std": (0, 1, 1)},
        {"mean": (float("nan"),) * 3},
    ):
        with pytest.raises(ValueError, match="out of range|not one that"):
            Preprocess.from_dict({**good, **bad})
