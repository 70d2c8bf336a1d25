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
from atnet.training.probe import Features, Probe, features_of, fit, key_of, linear_head, reading, set_head

MEASURED = 1000
"""Training images whose features give the mean and spread of each one."""

log = logging.getLogger("atnet")


class Teachers:
    """Trained networks that are asked about each batch.

    What they see of an image is a row: each one's features, or its logits if no linear classifier reads them. It is
    what is kept, and answers to any classes follow from it.
    """

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
    def learned(self) -> list[dict[str, Any]]:
        """What each was taught of the run's images: a classifier, and the mean and deviation of its features."""
        found = []
        for each in self.each:
            probe = {"head": linear_head(each.model).state_dict(), "top1": each.cross_validated} if each.probed else {}
            found.append(probe | {"mean": each.mean, "deviation": each.deviation})
        return found

    def take_learned(self, learned: list[dict[str, Any]]) -> None:
        """What `learned` gave, of the run that is gone on with."""
        for teacher, one in zip(self.each, learned, strict=True):
            if "head" in one:
                linear_head(teacher.model).load_state_dict(one["head"])
                teacher.note_probe(float(one["top1"]))
            if "mean" in one:
                teacher.mean.copy_(one["mean"])
                teacher.deviation.copy_(one["deviation"])

    @property
    def keys(self) -> list[str]:
        """What their rows hang on."""
        return [teacher.key for teacher in self.each]

    @property
    def widths(self) -> list[int]:
        """Numbers in the row of each."""
        return [teacher.width for teacher in self.each]

    def see(self, images: Tensor) -> Tensor:
        """Rows (B, widths) of images (B, 3, H, W) normalised as the run's."""
        return torch.cat([teacher.see(images) for teacher in self.each], dim=1)

    def answer(self, rows: Tensor) -> Tensor:
        """Logits (B, classes) of the teachers' mean probability, for rows (B, widths)."""
        parts = torch.split(rows, self.widths, dim=1)
        each = [teacher.answer(part) for teacher, part in zip(self.each, parts, strict=True)]
        answer: Tensor = fuse(torch.stack(each, dim=1))
        return answer

    def standardised(self, rows: Tensor) -> Tensor:
        """Rows (B, widths), each number with mean 0 and deviation 1 on the training images."""
        parts = torch.split(rows, self.widths, dim=1)
        return torch.cat([each.standardised(part) for each, part in zip(self.each, parts, strict=True)], dim=1)


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
        self.heads, self.width = self._layout()
        self.mean, self.deviation = torch.zeros(self.width, device=device), torch.ones(self.width, device=device)

    @torch.no_grad()
    def _layout(self) -> tuple[int, int]:
        """How many heads read features, and how wide a row is; no heads if its logits do not follow from features."""
        size = self.size or self.info.preprocess.size
        image = torch.linspace(-1, 1, 3 * size * size, device=self.device).view(1, 3, size, size)
        try:
            with reading(self.model) as read:
                logits = self.model(image).float()
            (features,) = read
            features = features.view(1, -1, features.shape[-1])
            if torch.allclose(_of_heads(self.model, features), logits, rtol=1e-3, atol=1e-3):
                return features.shape[1], features[0].numel()
        except (ConfigError, ValueError):
            pass
        return 0, logits.shape[1]

    @property
    def network(self) -> nn.Module:
        """The network with the run's classes in their order, of images prepared as it wants them."""
        return self.model if self.columns is None else OfClasses(self.model, self.columns)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its tensors, which a probe changes once."""
        return _digest(self.model)

    @cached_property
    def key(self) -> str:
        """What its rows hang on: its tensors, but for the classifier's where rows are features, and what it sees."""
        return f"{key_of(self.model, self.info) if self.heads else self.digest} {self.size}"

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

    def measure(self, samples: Samples, *, batch: int, workers: int) -> None:
        """Takes mean and deviation of each number in a row from some of these images.

        Raises ConfigError if its rows are not features, DataError if none can be read.
        """
        if not self.heads:
            raise ConfigError(
                f"--teacher {self.name}: no linear classifier reads its features, so they cannot be learned: use "
                "--distill.features 0"
            )
        count = len(samples)
        some = samples.only([i * count // min(MEASURED, count) for i in range(min(MEASURED, count))])
        preprocess = dataclasses.replace(self.info.preprocess, size=self.size or self.info.preprocess.size)
        info = dataclasses.replace(self.info, preprocess=preprocess)

        def found() -> Features:
            return features_of(self.model, some, info, self.device, batch=batch, workers=workers)

        rows = torch.from_numpy(distributed.on_main_process(found).vectors).flatten(0, 1).flatten(1).to(self.device)
        self.mean, self.deviation = rows.mean(0), rows.std(0, correction=0) + 1e-3

    def see(self, images: Tensor) -> Tensor:
        """A row (B, width) for each of images (B, 3, H, W) normalised as the run's."""
        with torch.no_grad():
            images = images * self.scale + self.shift
            if self.size and images.shape[-1] != self.size:
                images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
            if not self.heads:
                logits: Tensor = self.model(images)
                return logits.float()
            with reading(self.model) as read:
                self.model(images)
            return read[0].float().flatten(1)

    @torch.no_grad()
    def answer(self, rows: Tensor) -> Tensor:
        """Logits (B, classes) for rows (B, width)."""
        logits = _of_heads(self.model, rows.view(len(rows), self.heads, -1)) if self.heads else rows
        return logits if self.columns is None else logits[:, self.columns]

    def standardised(self, rows: Tensor) -> Tensor:
        """Rows (B, width), each number with mean 0 and deviation 1 on the images of `measure`."""
        return (rows - self.mean) / self.deviation


def _of_heads(model: nn.Module, features: Tensor) -> Tensor:
    """Logits (B, classes) of what the classifier reads, (B, heads, features)."""
    logits: Tensor = linear_head(model)(features)
    return fuse(logits) if logits.shape[1] > 1 else logits[:, 0]


class WithFeatures(nn.Module):
    """A network in training, and a linear layer on its features that tells a teacher's; it is not kept."""

    def __init__(self, model: nn.Module, width: int) -> None:
        """width: of the teacher's features.  Raises ConfigError if no linear classifier reads the network's."""
        super().__init__()
        self.model, self.projection = model, nn.Linear(linear_head(model).in_features, width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) to logits, and to features (B, width)."""
        with reading(self.model) as read:
            logits = self.model(images)
        features = read[0]
        return logits, self.projection(features[:, 0] if features.ndim == 3 else features)


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


def feature_loss(told: Tensor, seen: Tensor) -> Tensor:
    """1 less the cosine between features (B, features) that a network tells and those its teacher sees, in the mean.

    Source: Romero et al. 2015, "FitNets", for features as what is learned.
    """
    return (1 - F.cosine_similarity(told, seen, dim=1)).mean()
