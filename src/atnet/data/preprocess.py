"""The evaluation transform: from a decoded image to the network's input. Pillow and NumPy only.

The steps are timm's: resized, antialiased, so that a side is floor(size / crop_pct); the centre size x size; colours to
(x / 255 - mean) / std; channels first.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atnet.limits import LARGEST_IMAGE

if TYPE_CHECKING:
    from atnet.config import DataConfig

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CROP, LETTERBOX, SQUASH = "crop", "letterbox", "squash"
CROP_MODES = {CROP: "center", LETTERBOX: "border", SQUASH: "squash"}
"""What timm calls the ways to make an image square: the shorter side is resized and the middle taken; the longer side,
and what is missing is of the mean colour; or both sides, whatever becomes of the shape."""

Tta = Literal["none", "mirror", "crops"]
"""Test-time augmentation: an answer is the mean over these views of an image, see `views`."""

WIDER = 8 / 7
"""By how much larger than a crop what crops are taken of is, where evaluation leaves nothing out."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the network's input; travels with the weights."""

    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = CROP

    @property
    def side(self) -> int:
        """What the shorter side is resized to; of letterbox the longer one, of squash both."""
        return math.floor(self.size / self.crop_pct)

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean colour, of what a letterbox leaves empty."""
        return tuple(round(255 * value) for value in self.mean)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """RGB image to float32 (3, size, size)."""
        return self.normalise(self.resize_and_crop(image))

    def resize_and_crop(self, image: Image.Image) -> NDArray[np.uint8]:
        """RGB image to uint8 (size, size, 3)."""
        if self.resize == CROP:
            image = resize_shorter(image, self.side, self.interpolation)
        else:
            image = _resized(image, self._target(*image.size), self.interpolation)
        left, top = map(self._margin, image.size)
        if min(image.size) >= self.size:
            return np.asarray(image.crop((left, top, left + self.size, top + self.size)))
        square = Image.new("RGB", (self.size, self.size), self.fill)
        square.paste(image, (-left, -top))
        return np.asarray(square)

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, of letterbox and squash."""
        if self.resize == SQUASH:
            return self.side, self.side
        return max(round(width * self.side / max(width, height)), 1), max(
            round(height * self.side / max(width, height)), 1
        )

    def _margin(self, length: int) -> int:
        """What is cut off before the centre of a side; negative where there is too little."""
        return round((length - self.size) / 2) if length >= self.size else -((self.size - length) // 2)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (H, W, 3) to float32 (3, H, W)."""
        levels = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
        table = (levels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        normal = np.empty((3, *pixels.shape[:2]), np.float32)
        for colour in range(3):
            np.take(table[:, colour], pixels[:, :, colour], out=normal[colour], mode="clip")
        return normal

    def of(self, tta: Tta) -> "Preprocess":
        """What `views` are made of: for crops more of the image than the network sees."""
        if tta != "crops":
            return self
        return replace(self, size=self.side if self.side > self.size else round(WIDER * self.size), crop_pct=1.0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """From the fields' values. Raises ValueError if one cannot be right."""
        made = cls(
            size=int(values["size"]),
            crop_pct=float(values["crop_pct"]),
            interpolation=str(values["interpolation"]),
            mean=tuple(float(value) for value in values["mean"]),
            std=tuple(float(value) for value in values["std"]),
            resize=str(values.get("resize", CROP)),
        )
        if not 1 <= made.size <= LARGEST_IMAGE or not 0.1 <= made.crop_pct <= 1 or made.side > 2 * LARGEST_IMAGE:
            raise ValueError(f"size={made.size} or crop_pct={made.crop_pct} is out of range")
        if made.interpolation not in RESAMPLING or made.resize not in CROP_MODES:
            raise ValueError("interpolation or resize is not one that this version knows")
        if len(made.mean) != 3 or len(made.std) != 3:
            raise ValueError("mean or std is not one that this version knows")
        if not all(map(math.isfinite, (*made.mean, *made.std))) or min(made.std) <= 0:
            raise ValueError("mean or std is out of range")
        return made


def make_preprocess(data: "DataConfig") -> Preprocess:
    """The evaluation transform that the configuration describes."""
    return Preprocess(**{field.name: getattr(data, field.name) for field in fields(Preprocess)})


def resize_shorter(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    """The image with its shorter side of the given length, the aspect ratio kept."""
    width, height = image.size
    target = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    return _resized(image, target, interpolation)


def _resized(image: Image.Image, target: tuple[int, int], interpolation: str) -> Image.Image:
    """Resized across and then down, as exported networks and the page do; Pillow may do it in the other order, which
    rounds otherwise, where that is less work."""
    if target == image.size:
        return image
    return image.resize((target[0], image.height), RESAMPLING[interpolation]).resize(target, RESAMPLING[interpolation])


def views(images: Any, size: int, tta: Tta) -> list[Any]:
    """The views of images (..., height, width), arrays or tensors, that a network answers together.

    mirror: as they are, and left for right.  crops: the middle and the four corners of them, and each left for right;
    size: the crops' side in pixels.  Source: Krizhevsky et al. 2012.
    """
    if tta == "none":
        return [images]
    found = [images]
    if tta == "crops":
        last = images.shape[-1] - size
        places = [(last // 2, last // 2), (0, 0), (0, last), (last, 0), (last, last)]
        found = [images[..., top : top + size, left : left + size] for top, left in places]
    return [*found, *(one.flip(-1) if hasattr(one, "flip") else np.flip(one, -1) for one in found)]
