"""Training images kept on the GPU, cropped and augmented there in batches: `--data.cache device`."""

import math
from collections import defaultdict
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from atnet.config import Config
from atnet.data.augment import Augment, Drawn, inside, strength
from atnet.data.augment import resize as resize_bytes
from atnet.data.decode import Box
from atnet.data.loader import NO_LABEL, BadSample, batch_order, batches_of, read_shrunk, train_loader
from atnet.data.order import Draw
from atnet.data.samples import Samples
from atnet.device import naming_shortage

CHUNK = 1024  # images that cross to the device at once

Batch = tuple[Tensor, Tensor, list[BadSample]]


def training_batches(
    samples: Samples, config: Config, device: torch.device, first: int, last: int, share: tuple[int, int] = (0, 1)
) -> Generator[Any, None, None]:
    """Batches, or shares of them, of the training steps first to last: of `train_loader`, or made on the device."""
    if config.data.cache == "device":
        return DeviceImages(samples, config, device).batches(first, last, share)
    return batches_of(train_loader(samples, config, first, last, share))


class DeviceImages:
    """All training images on a device, as bytes; a batch of draws is made of them without the CPU touching a pixel.

    Boxes, flips, operations and erased places are those that the loader draws. On a CPU so are crops and flips to the
    bit; on a GPU the resizing is in fp32 instead of bytes, and what RandAugment does to colours may differ by a level.
    """

    def __init__(self, samples: Samples, config: Config, device: torch.device) -> None:
        """Raises TrainingError if they do not fit in the device's memory."""
        self.samples, self.augment, self.device = samples, Augment(config), device
        self.fill = torch.tensor(self.augment.fill, dtype=torch.uint8, device=device).view(1, 3, 1, 1)
        self._places: list[tuple[int, int, int, int] | BadSample] = []  # chunk, offset, height, width
        self._chunks: list[Tensor] = []
        waiting: list[np.ndarray[Any, Any]] = []
        offset = 0

        def send() -> None:
            nonlocal offset
            if waiting:
                self._chunks.append(torch.from_numpy(np.concatenate(waiting)).to(device))
                waiting.clear()
            offset = 0

        with naming_shortage(
            f"{len(samples):,} images in --data.cache device",
            "use a smaller --data.cache-size, --data.cache ram or none",
        ):
            for found in read_shrunk(samples, config.data):
                if isinstance(found, BadSample):
                    self._places.append(found)
                    continue
                self._places.append((len(self._chunks), offset, *found.shape[:2]))
                waiting.append(found.reshape(-1))
                offset += found.size
                if len(waiting) == CHUNK:
                    send()
            send()

    def batches(self, first: int, last: int, share: tuple[int, int] = (0, 1)) -> Generator[Batch, None, None]:
        """Those of the training steps first to last, as the loader's: pixels on the device, labels, and the holes."""
        for draws in batch_order(self.samples, self.augment.config, first, last, share):
            yield self.at(draws)

    def at(self, draws: list[Draw]) -> Batch:
        """Pixels uint8 (N, 3, side, side) on the device, channels-last, labels (N,), and the images without pixels."""
        side, augment = self.augment.config.train_side(draws[0].epoch), self.augment.config.augment
        nothing = Drawn(flip=False, operations=(("identity", 1),) * augment.randaugment, erased=(0, 0, 0, 0))
        crops, drawn, labels, holes = [], [], [], []
        for draw in draws:
            place = self._places[draw.image]
            if isinstance(place, BadSample):
                crops.append(torch.zeros(side, side, 3, dtype=torch.uint8, device=self.device))
                drawn.append(nothing)
                labels.append(NO_LABEL)
                holes.append(place)
                continue
            chunk, offset, height, width = place
            chance = self.augment.chance(draw)
            box = self.augment.crop(width, height, side, chance)[0]
            pixels = self._chunks[chunk][offset : offset + 3 * height * width].view(height, width, 3)
            crops.append(self._resized(pixels, box, side))
            drawn.append(self.augment.draw(side, chance))
            labels.append(int(self.samples.labels[draw.image]))
        images = torch.stack(crops).permute(0, 3, 1, 2)
        flips = torch.tensor([one.flip for one in drawn], device=self.device).view(-1, 1, 1, 1)
        images = torch.where(flips, images.flip(3), images)
        for turn in range(augment.randaugment):
            self._operate(images, [one.operations[turn] for one in drawn])
        images = self._erase(images, [one.erased for one in drawn])
        return images.contiguous(memory_format=torch.channels_last), torch.tensor(labels), holes

    def _resized(self, pixels: Tensor, box: Box, side: int) -> Tensor:
        (left, top, right, bottom), place = inside(box, pixels.shape[1], pixels.shape[0], side)
        found = resize(pixels[top:bottom, left:right], place, self.augment.config.data.interpolation)
        if place == (0, 0, side, side):
            return found
        square = self.fill.view(1, 1, 3).repeat(side, side, 1)
        square[place[1] : place[3], place[0] : place[2]] = found
        return square

    def _operate(self, images: Tensor, drawn: list[tuple[str, int]]) -> None:
        """One operation of RandAugment on each image, in place, those of a kind together."""
        alike: dict[tuple[str, int], list[int]] = defaultdict(list)
        for number, one in enumerate(drawn):
            if one[0] != "identity":
                alike[one].append(number)
        for (name, sign), numbers in alike.items():
            chosen = torch.tensor(numbers, device=self.device)
            images[chosen] = operate(images[chosen], name, self.augment.config.augment.magnitude, sign, self.fill)

    def _erase(self, images: Tensor, boxes: list[Box]) -> Tensor:
        if not any(map(any, boxes)):
            return images
        left, top, right, bottom = torch.tensor(boxes, device=self.device).view(-1, 4, 1, 1, 1).unbind(1)
        across = torch.arange(images.shape[3], device=self.device).view(1, 1, 1, -1)
        down = torch.arange(images.shape[2], device=self.device).view(1, 1, -1, 1)
        inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
        return torch.where(inside, self.fill, images)


def resize(pixels: Tensor, place: Box, interpolation: str) -> Tensor:
    """Colours (H, W, 3), bytes, to a box's sides, antialiased; on a CPU as the loader does it."""
    if pixels.device.type == "cpu":
        return torch.from_numpy(resize_bytes(pixels.numpy(), place, interpolation))
    given = pixels.permute(2, 0, 1)[None].float()
    sides = place[3] - place[1], place[2] - place[0]
    whole = torch.nn.functional.interpolate(given, sides, mode=interpolation, antialias=True)
    return whole.round_().clamp_(0, 255).byte()[0].permute(1, 2, 0)


def operate(images: Tensor, name: str, magnitude: int, sign: int, fill: Tensor) -> Tensor:
    """One operation of RandAugment at a magnitude of 0 to 30, of images uint8 (N, 3, side, side), as `augment.operate`.

    fill: the colour of what comes in from outside, (1, 3, 1, 1).
    """
    side = images.shape[-1]
    with_what = strength(name, magnitude, sign, side, side)
    match name:
        case "shear x" | "shear y" | "translate x" | "translate y":
            return _affine(images, with_what, fill)
        case "rotate":
            angle, centre = -math.radians(with_what), side / 2
            cos, sin = math.cos(angle), math.sin(angle)
            across, down = centre - cos * centre - sin * centre, centre + sin * centre - cos * centre
            return _affine(images, (cos, sin, across, -sin, cos, down), fill)
        case "brightness":
            found = vision.adjust_brightness(images, with_what)
        case "color":
            found = vision.adjust_saturation(images, with_what)
        case "contrast":
            found = vision.adjust_contrast(images, with_what)
        case "sharpness":
            found = vision.adjust_sharpness(images, with_what)
        case "posterize":
            found = vision.posterize(images, with_what)
        case "solarize":
            found = vision.solarize(images, with_what)
        case "autocontrast":
            found = vision.autocontrast(images)
        case "equalize":
            found = vision.equalize(images)
        case _:
            found = images
    return found  # type: ignore[no-any-return]


def _affine(images: Tensor, matrix: tuple[float, ...], fill: Tensor) -> Tensor:
    """Each place (x, y) shows what is at (a x + b y + c, d x + e y + f), nearest pixel, as Pillow's transform does."""
    a, b, c, d, e, f = matrix
    side = images.shape[-1]
    places = torch.arange(side, device=images.device) + 0.5
    down, across = torch.meshgrid(places, places, indexing="ij")
    x, y = (a * across + b * down + c).floor().long(), (d * across + e * down + f).floor().long()
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    taken = images[:, :, y.clamp(0, side - 1), x.clamp(0, side - 1)]
    return torch.where(inside, taken, fill)
