"""Knowledge distillation: teachers, and the loss against their answers to the same augmented images."""

import hashlib
import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atnet.config import DataConfig
from atnet.data.classes import printable
from atnet.errors import ConfigError, WeightsError
from atnet.models.heads import fuse
from atnet.models.load import has_fixed_input, load
from atnet.models.pretrained import unnamed

log = logging.getLogger("atnet")


class Teachers:
    """Trained networks that are asked about each batch."""

    def __init__(
        self, names: tuple[str, ...], classes: tuple[str, ...], data: DataConfig, device: torch.device, size: int = 0
    ) -> None:
        """As `Teacher`, each."""
        self.each = [Teacher(name, classes, data, device, size) for name in names]
        self.digests = [teacher.digest for teacher in self.each]

    def answer(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of the teachers' mean probability, for images (B, 3, H, W) normalised as the run's."""
        answer: Tensor = fuse(torch.stack([teacher.answer(images) for teacher in self.each], dim=1))
        return answer


class Teacher:
    """A trained network that is asked about each batch."""

    def __init__(
        self, name: str, classes: tuple[str, ...], data: DataConfig, device: torch.device, size: int = 0
    ) -> None:
        """name: as for `atnet.load`.  size: side in pixels at which it sees images, 0 for their own.

        Raises ConfigError if the run's classes are not among its own, WeightsError if there are no weights.
        """
        try:
            self.model, info = load(name)
        except WeightsError as error:
            raise WeightsError(f"--teacher {error}") from error
        count = len(info.classes)
        known = {} if info.classes == unnamed(count) else {one: i for i, one in enumerate(info.classes)}
        other = next((one for one in classes if one not in known), "") if known else ""
        if other or (not known and count != len(classes)):
            raise ConfigError(
                f"--teacher {name}: knows {count} classes, the run has {len(classes)}"
                + (f", {printable(other)!r} is not among its own" if other else "")
                + ": use one trained on the same folders"
            )
        self.columns: Tensor | None = None  # of its classes the run's
        if known and info.classes != classes:
            self.columns = torch.tensor([known[one] for one in classes], device=device)
        if not known:
            log.warning(
                "--teacher %s does not say which %d classes it knows: they are taken for the run's, in this order: %s",
                name, count, printable(", ".join(classes[:5])) + (", ..." if count > 5 else ""),
            )  # fmt: skip
        self.digest = _digest(self.model)
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.size = info.preprocess.size if has_fixed_input(info.model) else size
        theirs = torch.tensor([info.preprocess.mean, info.preprocess.std], device=device)
        ours = torch.tensor([data.mean, data.std], device=device)
        self.scale = (ours[1] / theirs[1]).view(1, 3, 1, 1)
        self.shift = ((ours[0] - theirs[0]) / theirs[1]).view(1, 3, 1, 1)

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """Logits (B, classes) for images (B, 3, H, W) normalised as the run's are."""
        images = images * self.scale + self.shift
        if self.size and images.shape[-1] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        logits: Tensor = self.model(images).float()
        return logits if self.columns is None else logits[:, self.columns]


def _digest(model: nn.Module) -> str:
    """SHA-256 of a network's tensors."""
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        found.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's logits at the temperature, times its square; both (B, classes).

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network".
    """
    student, teacher = F.log_softmax(logits / temperature, dim=1), F.log_softmax(taught / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
