import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from atnet.data.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("sides", [(500, 375), (224, 224), (97, 310), (20, 20)])
@pytest.mark.parametrize(("size", "crop_pct"), [(128, 0.875), (160, 0.95), (64, 1.0)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_it_is_timms_evaluation_transform(sides, size, crop_pct, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (sides[1], sides[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = Preprocess(size=size, crop_pct=crop_pct, interpolation=interpolation, mean=MEAN, std=STD)
    theirs = create_transform(
        (3, size, size),
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=MEAN,
        std=STD,
        crop_mode="center",
    )
    torch.testing.assert_close(torch.from_numpy(ours(image)), theirs(image), rtol=1e-6, atol=1e-6)


def test_values_that_cannot_be_right_are_refused():
    good = {"size": 64, "crop_pct": 0.9, "interpolation": "bicubic", "mean": MEAN, "std": STD}
    assert Preprocess.from_dict(good).size == 64
    for bad in (
        {"size": 10**9},
        {"crop_pct": 0},
        {"interpolation": "best"},
        {"mean": [0.5]},
        {"std": (0, 1, 1)},
        {"mean": (float("nan"),) * 3},
    ):
        with pytest.raises(ValueError, match="out of range|not one that"):
            Preprocess.from_dict({**good, **bad})
