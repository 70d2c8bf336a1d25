"""The evaluation transform: from a decoded image to the network's input. Pillow and NumPy only.

The steps are timm's: the shorter side to floor(size / crop_pct), antialiased; the centre
size x size; colours to (x / 255 - mean) / std; channels first.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atnet.limits import LARGEST_IMAGE

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the network's input; travels with the weights."""

    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def side(self) -> int:
        """What the shorter side is resized to."""
        return math.floor(self.size / self.crop_pct)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """RGB image to float32 (3, size, size)."""
        return self.normalise(self.resize_and_crop(image))

    def resize_and_crop(self, image: Image.Image) -> NDArray[np.uint8]:
        """RGB image to uint8 (size, size, 3)."""
        image = resize_shorter(image, self.side, self.interpolation)
        left = round((image.width - self.size) / 2)
        top = round((image.height - self.size) / 2)
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (H, W, 3) to float32 (3, H, W)."""
        scaled = pixels.astype(np.float32) / np.float32(255)
        normal = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """From the fields' values. Raises ValueError if one cannot be right."""
        made = cls(
            size=int(values["size"]),
            crop_pct=float(values["crop_pct"]),
            interpolation=str(values["interpolation"]),
            mean=tuple(float(value) for value in values["mean"]),
            std=tuple(float(value) for value in values["std"]),
        )
        if not 1 <= made.size <= LARGEST_IMAGE or not 0.1 <= made.crop_pct <= 1 or made.side > 2 * LARGEST_IMAGE:
            raise ValueError(f"size={made.size} or crop_pct={made.crop_pct} is out of range")
        if made.interpolation not in RESAMPLING or len(made.mean) != 3 or len(made.std) != 3:
            raise ValueError("interpolation, mean or std is not one that this version knows")
        if not all(map(math.isfinite, (*made.mean, *made.std))) or min(made.std) <= 0:
            raise ValueError("mean or std is out of range")
        return made


def resize_shorter(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    """The image with its shorter side of the given length, the aspect ratio kept."""
    width, height = image.size
    target = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    return image if target == image.size else image.resize(target, RESAMPLING[interpolation])
