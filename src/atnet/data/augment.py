"""What training does to a picture and to a batch: torchvision's transforms, seeded for each sample."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from atnet.config import AugmentConfig, DataConfig
from atnet.data.order import Draw, derive_seed


class Augment:
    """Random resized crop, flip, RandAugment and random erasing of one picture.

    The result is a function of (picture, seed, draw); torch's generator is left as it was.
    """

    def __init__(self, augment: AugmentConfig, data: DataConfig, seed: int) -> None:
        self.seed = seed
        mean = [round(255 * value) for value in data.mean]
        interpolation = InterpolationMode(data.interpolation)
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(data.train_side, scale=(augment.crop_scale, 1.0), interpolation=interpolation),
            v2.RandomHorizontalFlip(augment.flip),
        ]
        if augment.randaugment:
            steps.append(v2.RandAugment(augment.randaugment, augment.magnitude, fill=mean))
        if augment.erasing:
            steps.append(v2.RandomErasing(augment.erasing, value=mean))
        self.transform = v2.Compose(steps)

    def __call__(self, picture: Tensor, draw: Draw) -> Tensor:
        """uint8 (3, H, W) to uint8 (3, side, side), side that of the training crops."""
        state = torch.get_rng_state()
        # Not torch.manual_seed: before CUDA is initialised, that queues a stack trace for each call.
        turn = draw if draw.repeat else draw[:2]
        torch.default_generator.manual_seed(derive_seed(self.seed, "augment", *turn))
        try:
            augmented: Tensor = self.transform(picture)
        finally:
            torch.set_rng_state(state)
        return augmented


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
