"""What training does to an image, seeded for each, and to a batch."""

import math
import random
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import v2

from atnet.config import AugmentConfig, Config
from atnet.data.decode import Box
from atnet.data.order import Draw, derive_seed
from atnet.data.preprocess import CROP, SQUASH, make_preprocess

RATIOS = (3 / 4, 4 / 3)
"""Of width to height of a random resized crop."""

ERASED, ERASED_RATIOS = (0.02, 0.33), (0.3, 3.3)
"""Share of the area that random erasing takes, and ratio of width to height. Source: Zhong et al. 2020."""

TRIES = 10
LEVELS = 30


class Drawn(NamedTuple):
    """flip: whether left is right.  operations: names and signs, of RandAugment.  erased: the box, empty if none is."""

    flip: bool
    operations: tuple[tuple[str, int], ...]
    erased: Box


class Augment:
    """Random resized crop, flip, RandAugment and random erasing of one image, by Pillow.

    The result is a function of (image, seed, draw). The steps: `chance` of the draw, `crop` of the image's size, then
    decoding, which is not done here, and the call, which does the rest. With a crop scale of 1 the image is cropped as
    in evaluation.
    The policy and its distribution are those of torchvision's transforms of these names.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.evaluation = make_preprocess(config.data)
        self.fill = self.evaluation.fill

    def chance(self, draw: Draw) -> random.Random:
        """The random numbers of a draw, for `crop` and then the call."""
        views = self.config.distill.views
        turn = (draw.epoch % views if views else draw.epoch, *draw[1 : 3 if draw.repeat else 2])
        return random.Random(derive_seed(self.config.seed, "augment", *turn))

    def crop(self, width: int, height: int, side: int, chance: random.Random) -> tuple[Box, float]:
        """The box of a random resized crop, and by how much its pixels may be reduced before they are resized."""
        least = self.config.augment.crop_scale
        if least == 1:
            return (0, 0, width, height), 1.0
        box = self._box(width, height, least, chance)
        return box, min(box[2] - box[0], box[3] - box[1]) / side

    def _box(self, width: int, height: int, least: float, chance: random.Random) -> Box:
        """Of the square that evaluation makes of an image, in the image's pixels: of a letterbox it may reach out."""
        if self.config.data.resize == CROP:
            return crop_box(width, height, least, chance)
        longer = max(width, height)
        box = crop_box(longer, longer, least, chance)
        if self.config.data.resize == SQUASH:
            (left, right), (top, bottom) = (
                _scaled(box[i], box[i + 2], side / longer, side) for i, side in enumerate((width, height))
            )
        else:
            (left, right), (top, bottom) = (
                _centred(box[i], box[i + 2], side, longer) for i, side in enumerate((width, height))
            )
        return left, top, right, bottom

    def draw(self, side: int, chance: random.Random) -> "Drawn":
        """What is to be done to a crop, after `crop` drew its box."""
        augment = self.config.augment
        flip = chance.random() < augment.flip
        operations = tuple(draw_operation(chance) for _ in range(augment.randaugment))
        erased = erased_box(side, chance) if chance.random() < augment.erasing else (0, 0, 0, 0)
        return Drawn(flip, operations, erased)

    def __call__(self, pixels: NDArray[np.uint8], box: Box, side: int, chance: random.Random) -> NDArray[np.uint8]:
        """Pixels (H, W, 3) and the crop's box in them to the augmented crop, uint8 (side, side, 3)."""
        drawn = self.draw(side, chance)
        image = Image.fromarray(self._resized(pixels, box, side))
        if drawn.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for name, sign in drawn.operations:
            image = operate(image, name, self.config.augment.magnitude, sign, self.fill)
        made: NDArray[np.uint8] = np.array(image)
        left, top, right, bottom = drawn.erased
        made[top:bottom, left:right] = self.fill
        return made

    def _resized(self, pixels: NDArray[np.uint8], box: Box, side: int) -> NDArray[np.uint8]:
        if self.config.augment.crop_scale == 1:
            return replace(self.evaluation, size=side).resize_and_crop(Image.fromarray(pixels))
        (left, top, right, bottom), place = inside(box, pixels.shape[1], pixels.shape[0], side)
        found = resize(pixels[top:bottom, left:right], place, self.config.data.interpolation)
        if place == (0, 0, side, side):
            return found
        square = np.full((side, side, 3), self.fill, np.uint8)
        square[place[1] : place[3], place[0] : place[2]] = found
        return square


def inside(box: Box, width: int, height: int, side: int) -> tuple[Box, Box]:
    """What of a box is in an image, and its place in the box resized to a square."""
    (left, right, begin, end), (top, bottom, above, below) = (
        _inside(box[i], box[i + 2], length, side) for i, length in enumerate((width, height))
    )
    return (left, top, right, bottom), (begin, above, end, below)


def _inside(first: int, last: int, length: int, side: int) -> tuple[int, int, int, int]:
    begin, end = max(first, 0), min(last, length)
    scale = side / (last - first)
    return begin, end, *_scaled(begin - first, end - first, scale, side)


def _scaled(first: int, last: int, scale: float, length: int) -> tuple[int, int]:
    """A span times a scale, of at least one pixel, below length."""
    begin = min(round(first * scale), length - 1)
    return begin, max(round(last * scale), begin + 1)


def _centred(first: int, last: int, length: int, longer: int) -> tuple[int, int]:
    """A span of a longer side as one of the side that lies in its middle, moved so that its own middle is in it."""
    margin, middle = (longer - length) // 2, (first + last) // 2
    moved = min(max(middle, margin), margin + length - 1) - middle - margin
    return first + moved, last + moved


RESIZE = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
"""What torch's `interpolate` calls, into a given place: by itself it returns an image channels first."""


def resize(pixels: NDArray[np.uint8], place: Box, interpolation: str) -> NDArray[np.uint8]:
    """Colours (H, W, 3) to a box's sides, antialiased: torch resizes bytes several times faster than Pillow."""
    given = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    sides = [place[3] - place[1], place[2] - place[0]]
    sized: NDArray[np.uint8] = np.empty((*sides, 3), np.uint8)
    RESIZE[interpolation](given, sides, False, None, None, out=torch.from_numpy(sized).permute(2, 0, 1)[None])
    return sized


def crop_box(width: int, height: int, least: float, chance: random.Random) -> Box:
    """Left, top, right and bottom of a random crop of a share of the area from least to 1.

    Source: torchvision's RandomResizedCrop (Szegedy et al. 2015); where no shape fits in ten tries, the middle.
    """
    for _ in range(TRIES):
        area = width * height * chance.uniform(least, 1)
        ratio = math.exp(chance.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = chance.randint(0, width - across), chance.randint(0, height - down)
            return left, top, left + across, top + down
    across, down = width, height
    if width / height < RATIOS[0]:
        down = round(width / RATIOS[0])
    elif width / height > RATIOS[1]:
        across = round(height * RATIOS[1])
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def erased_box(side: int, chance: random.Random) -> Box:
    """Left, top, right and bottom of what random erasing takes of a square; empty where no shape fits in ten tries."""
    for _ in range(TRIES):
        area = side * side * chance.uniform(*ERASED)
        ratio = math.exp(chance.uniform(math.log(ERASED_RATIOS[0]), math.log(ERASED_RATIOS[1])))
        down, across = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if across < side and down < side:
            left, top = chance.randint(0, side - across), chance.randint(0, side - down)
            return left, top, left + across, top + down
    return 0, 0, 0, 0


def draw_operation(chance: random.Random) -> tuple[str, int]:
    """One random operation of RandAugment, and its sign. Source: Cubuk et al. 2020; the ranges are torchvision's."""
    name = OPERATIONS[chance.randrange(len(OPERATIONS))]
    return name, -1 if chance.random() < 0.5 else 1


OPERATIONS = (
    "identity", "shear x", "shear y", "translate x", "translate y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


def operate(image: Image.Image, name: str, magnitude: int, sign: int, fill: tuple[int, ...]) -> Image.Image:
    """One operation of RandAugment at a magnitude of 0 to 30.  fill: the colour of what comes in from outside."""
    with_what = strength(name, magnitude, sign, *image.size)
    match name:
        case "shear x" | "shear y" | "translate x" | "translate y":
            return _affine(image, with_what, fill)
        case "rotate":
            return image.rotate(with_what, fillcolor=fill)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(with_what)
        case "color":
            return ImageEnhance.Color(image).enhance(with_what)
        case "contrast":
            return ImageEnhance.Contrast(image).enhance(with_what)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(with_what)
        case "posterize":
            return ImageOps.posterize(image, with_what)
        case "solarize":
            return ImageOps.solarize(image, with_what)
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
    return image


def strength(name: str, magnitude: int, sign: int, width: int, height: int) -> Any:
    """What an operation of RandAugment is done with at a magnitude of 0 to 30, of an image of so many pixels.

    A matrix (a, b, c, d, e, f), by which (x, y) shows what is at (a x + b y + c, d x + e y + f), for shears and
    translations; degrees; a factor; bits that are kept; a threshold. None where there is nothing to say.
    """
    share = magnitude / LEVELS
    match name:
        case "shear x":
            return 1, 0.3 * share * sign, 0, 0, 1, 0
        case "shear y":
            return 1, 0, 0, 0.3 * share * sign, 1, 0
        case "translate x":
            return 1, 0, -int(150 / 331 * width * share * sign), 0, 1, 0
        case "translate y":
            return 1, 0, 0, 0, 1, -int(150 / 331 * height * share * sign)
        case "rotate":
            return 30 * share * sign
        case "brightness" | "color" | "contrast" | "sharpness":
            return 1 + 0.9 * share * sign
        case "posterize":
            return 8 - round(magnitude / (LEVELS / 4))
        case "solarize":
            return round(255 * (1 - share))
    return None


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: tuple[int, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=fill)


def make_mix(augment: AugmentConfig, classes: int) -> torch.nn.Module | None:
    """Mixup and CutMix of a batch, one of the two at random if both are on; None if none is.

    They draw from torch's generator, which the training loop seeds at each step.
    """
    choices: list[torch.nn.Module] = []
    if augment.mixup:
        choices.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
    if augment.cutmix:
        choices.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
    return v2.RandomChoice(choices) if choices else None
