"""Knowledge distillation: teachers, and the loss against their answers to the same augmented images."""

import dataclasses
import hashlib
import logging
import math
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atnet.config import DataConfig
from atnet.data.classes import printable
from atnet.data.samples import Samples
from atnet.errors import ConfigError, WeightsError
from atnet.models.heads import fuse
from atnet.models.load import has_fixed_input, load
from atnet.models.pretrained import unnamed
from atnet.training import distributed
from atnet.training.probe import Probe, features_of, fit, linear_head, set_head

log = logging.getLogger("atnet")


class Teachers:
    """Trained networks that are asked about each batch."""

    def __init__(
        self, names: tuple[str, ...], classes: tuple[str, ...], data: DataConfig, device: torch.device, size: int = 0
    ) -> None:
        """As `Teacher`, each."""
        self.each = [Teacher(name, classes, data, device, size) for name in names]

    @property
    def digests(self) -> list[str]:
        """What their answers hang on: SHA-256 of each one's tensors, as they are now."""
        return [teacher.digest for teacher in self.each]

    @property
    def probes(self) -> list[dict[str, Any]]:
        """Classifier and accuracy of each that was probed; empty of one that knows the classes by itself."""
        return [
            {"head": linear_head(each.model).state_dict(), "top1": each.cross_validated} if each.probed else {}
            for each in self.each
        ]

    def take_probes(self, probes: list[dict[str, Any]]) -> None:
        """What `probes` gave, of the run that is gone on with."""
        for teacher, probe in zip(self.each, probes, strict=True):
            if probe:
                linear_head(teacher.model).load_state_dict(probe["head"])
                teacher.note_probe(float(probe["top1"]))

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

        One that does not know the run's classes is to be probed before it is asked; it sees images at its own size if
        no other is named.
        Raises ConfigError if it does not know them and cannot be probed, WeightsError if there are no weights.
        """
        try:
            self.model, info = load(name)
        except WeightsError as error:
            raise WeightsError(f"--teacher {error}") from error
        count = len(info.classes)
        known = {} if info.classes == unnamed(count) else {one: i for i, one in enumerate(info.classes)}
        other = next((one for one in classes if one not in known), "") if known else ""
        self.name, self.info, self.device = name, info, device
        self.probed = False
        self.cross_validated = float("nan")
        self.knows = not other and (bool(known) or count == len(classes))
        self.columns: Tensor | None = None  # of its classes the run's
        if not self.knows:
            self.why = f"knows {count} classes, not " + (printable(other) if other else f"the run's {len(classes)}")
            try:
                linear_head(self.model)
                self.model.reset_classifier(len(classes))  # type: ignore[operator]
            except (ConfigError, AttributeError) as error:
                raise ConfigError(
                    f"--teacher {name}: {self.why}, and it cannot be probed ({error}): use another teacher"
                ) from error
            size = size or info.preprocess.size
            self.info = dataclasses.replace(info, preprocess=dataclasses.replace(info.preprocess, size=size))
        elif known and info.classes != classes:
            self.columns = torch.tensor([known[one] for one in classes], device=device)
        if self.knows and not known:
            log.warning(
                "--teacher %s does not say which %d classes it knows: they are taken for the run's, in this order: %s",
                name, count, printable(", ".join(classes[:5])) + (", ..." if count > 5 else ""),
            )  # fmt: skip
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.size = info.preprocess.size if has_fixed_input(info.model) else size
        theirs = torch.tensor([info.preprocess.mean, info.preprocess.std], device=device)
        ours = torch.tensor([data.mean, data.std], device=device)
        self.scale = (ours[1] / theirs[1]).view(1, 3, 1, 1)
        self.shift = ((ours[0] - theirs[0]) / theirs[1]).view(1, 3, 1, 1)

    @property
    def network(self) -> nn.Module:
        """The network with the run's classes in their order, of images prepared as it wants them."""
        return self.model if self.columns is None else OfClasses(self.model, self.columns)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its tensors, which a probe changes once."""
        return _digest(self.model)

    def note_probe(self, top1: float) -> None:
        """That its classifier is a probe by now, of this accuracy in cross-validation."""
        self.probed, self.cross_validated = True, top1
        self.__dict__.pop("digest", None)

    def learn(self, samples: Samples, *, batch: int, workers: int, balanced: bool = False) -> None:
        """Fits a linear probe on these images, if it does not know their classes: then it does.

        Raises ConfigError or DataError if it cannot be.
        """
        if self.knows or self.probed:
            return
        count = len(samples.classes)

        def fitted() -> Probe:
            found = features_of(self.model, samples, self.info, self.device, batch=batch, workers=workers)
            return fit(found, count, balanced=balanced)

        probe = distributed.on_main_process(fitted)
        set_head(self.model, probe)
        self.note_probe(probe.top1)
        figure = f": {probe.top1:.2f}% in cross-validation" if math.isfinite(probe.top1) else ""
        log.info("--teacher %s %s: a linear probe of %s images%s", self.name, self.why, f"{probe.images:,}", figure)

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """Logits (B, classes) for images (B, 3, H, W) normalised as the run's are."""
        images = images * self.scale + self.shift
        if self.size and images.shape[-1] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        logits: Tensor = self.model(images).float()
        return logits if self.columns is None else logits[:, self.columns]


class OfClasses(nn.Module):
    """A network's logits of some of its classes."""

    def __init__(self, model: nn.Module, columns: Tensor) -> None:
        super().__init__()
        self.model, self.columns = model, columns

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits[:, self.columns]


def _digest(model: nn.Module) -> str:
    """SHA-256 of a network's tensors."""
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        found.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float, *, each: bool = False) -> Tensor:
    """Kullback-Leibler divergence from the teacher's logits at the temperature, times its square; both (B, classes).

    The mean over the images, or with `each` the divergence of each one, (B,).
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network".
    """
    student, teacher = F.log_softmax(logits / temperature, dim=1), F.log_softmax(taught / temperature, dim=1)
    if each:
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1) * temperature**2
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
