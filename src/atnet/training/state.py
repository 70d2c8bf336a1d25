"""What a run holds between two steps, and one step of it."""

import contextlib
import dataclasses
import math
import operator
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from atnet.config import Config, DataConfig
from atnet.data.augment import make_mix
from atnet.data.classes import display_names
from atnet.data.loader import NO_LABEL, BadSample
from atnet.data.order import Draw, derive_seed, epoch_steps
from atnet.data.preprocess import make_preprocess
from atnet.data.samples import Samples
from atnet.data.sources import open_configured
from atnet.data.unlabelled import with_unlabelled
from atnet.device import (
    cuda_settings,
    in_precision,
    keep_freed_memory,
    multiplies_in_bf16,
    naming_shortage,
    pick_device,
    seed_generators,
)
from atnet.errors import ConfigError
from atnet.eval.metrics import topk_correct, topk_hits
from atnet.models.heads import fuse
from atnet.models.load import create_classifier
from atnet.models.ops import normalised, with_kernels
from atnet.training import distributed
from atnet.training.answers import Answers, open_answers
from atnet.training.distill import Teachers, WithFeatures, distillation_loss, feature_loss
from atnet.training.norm import RunningStatistics
from atnet.training.optim import make_optimizers
from atnet.training.pace import Pace
from atnet.training.probe import Probe, features_of, fit, linear_head, set_head
from atnet.training.transfer import draws_head, freeze, load_into
from atnet.weights.info import EMA, LAST, WeightsInfo

FIGURES = 5
_SMALLER = "use half the --batch, --optim.accumulate 2 (it in two parts), --checkpointing, or a smaller --data.size"


@dataclass
class EpochMeter:
    """Sums over the training steps of the epoch under way, and their seconds."""

    loss: float = 0.0
    top1: int = 0
    top5: int = 0
    seen: int = 0
    labelled: int = 0
    seconds: float = 0.0


class State:
    """What a run holds between two steps."""

    def __init__(self, config: Config, samples: tuple[Samples, Samples] | None = None) -> None:
        """samples: to train and to validate on; None: as the configuration says."""
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        distributed.require_shares(config.optim.accumulate)
        self.device = pick_device(config.device)
        keep_freed_memory(self.device, keep=True)
        self.train_images, self.val_images = samples or open_configured(config.data)
        self.shown = self.train_images  # in training, after them those without labels
        if config.data.unlabelled:
            self.shown = with_unlabelled(self.train_images, config.data.unlabelled, self.val_images)
        self.steps_per_epoch = epoch_steps(len(self.shown), config.batch)
        classes = self.train_images.classes
        seed_generators(derive_seed(config.seed, "weights"), self.device)
        self.model = with_kernels(
            create_classifier(config.model, classes=len(classes), size=config.data.size, drop_path=config.drop_path)
        )
        if getattr(self.model, "several_heads", False):
            self.model.set_separate_heads()  # type: ignore[operator]
        if config.checkpointing:
            if not hasattr(self.model, "set_grad_checkpointing"):
                raise ConfigError(f"{config.model} has no activation checkpointing: use --no-checkpointing")
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last)
        self.frozen = freeze(self.model, config.freeze)
        if config.batchnorm == "frozen":
            self.frozen += [part for part in self.model.modules() if isinstance(part, _BatchNorm)]
        self.teachers = None
        if config.teacher:
            self.teachers = Teachers(config.teacher, classes, config.data, self.device, config.distill.size)
        self.answers: Answers | None = None
        self._try_out()
        self.ema = None
        if config.ema and config.epochs:
            self.ema = ModelEmaV3(self.model, decay=config.ema, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
        self.bf16 = multiplies_in_bf16(config.precision, self.device)
        self.optimizers = make_optimizers(self.model, config.optim, torch.bfloat16 if self.bf16 else torch.float32)
        self.statistics = RunningStatistics(self.model)
        self.colours = mean_and_std(config.data, self.device)
        self.with_features: WithFeatures | None = None  # in training alone
        if self.teachers and config.distill.features:
            seed_generators(derive_seed(config.seed, "features"), self.device)
            self.with_features = WithFeatures(self.model, sum(self.teachers.widths)).to(self.device)
            projection = self.with_features.projection.parameters()
            self.optimizers.append(torch.optim.AdamW(projection, lr=config.optim.lr, fused=True))
        self.parallel = distributed.data_parallel(self.with_features or self.model, slow=config.compile)
        self.forward: Any = torch.compile(self.parallel) if config.compile else self.parallel
        self.mix = make_mix(config.augment, len(classes))
        self.class_weight = None
        if config.data.balance == "loss":
            self.class_weight = balanced_weights(self.train_images).to(self.device)
        self.epoch = 0  # epochs done, evaluated and saved: whole ones, but for the last
        self.step = 0  # steps done
        self.sums = EpochMeter()
        self.faults = 0  # steps in a row, up to this one, that were not taken
        self.head_kept = False  # the weights', whose classes are the same
        self.probe: dict[str, float] = {}  # the figures of the probe of a run from weights
        self.drawn: dict[str, Tensor] = {}  # the head before the probe
        self.unread: list[BadSample] = []  # training images without features for the probe
        self.bad: dict[str, str] = {}  # training images that could not be read, and why
        self.best = -1.0
        self.best_epoch = 0  # after which it was reached
        self.pace = Pace()
        self.seconds = 0.0  # of the whole epochs
        self.info = WeightsInfo(
            model=config.model,
            classes=classes,
            class_names=display_names(classes),
            preprocess=make_preprocess(config.data),
            epoch=0,
            moving_average=False,
        )

    def _try_out(self) -> None:
        """One empty image, so that a network that cannot take the input says so before the run begins."""
        try:
            with torch.no_grad():
                for size in sorted({self.config.data.size, self.config.data.train_side, self.config.train_side(0)}):
                    self.model.eval()(torch.zeros(1, 3, size, size, device=self.device))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"{self.config.model} does not take images of {size} px ({error}); use --data.size of another"
            ) from error

    def teach_teachers(self) -> None:
        """Teachers that do not know the run's classes are probed on its training images, before the first step."""
        config = self.config
        for teacher in self.teachers.each if self.teachers else []:
            teacher.learn(
                self.train_images,
                batch=config.batch // config.optim.accumulate,
                workers=config.data.workers,
                balanced=config.data.balance != "none",
            )
            if self.with_features:
                teacher.measure(
                    self.train_images, batch=config.batch // config.optim.accumulate, workers=config.data.workers
                )

    def start_from_weights(self, probe: bool = True) -> str:
        """The network and its moving average begin as config.weights are, with a linear probe as the head if the
        classes differ; returns a sentence about it.
        """
        said, self.head_kept = load_into(self.model, self.config, self.info.classes)
        if probe and (not self.head_kept or not self.config.epochs):
            said += self._probe()
        if self.ema is not None:
            self.ema.module.load_state_dict(self.model.state_dict())
        return said

    def _probe(self) -> str:
        """Makes a logistic regression on the frozen network's features the head; the end of a sentence about it.

        A network without one linear classifier keeps the head that was drawn, but for a run that is the probe alone.
        """
        try:
            found = distributed.on_main_process(self._fit_probe)
        except ConfigError as error:
            if not self.config.epochs:
                raise
            return f" ({error})"
        probe, self.probe = found
        self.drawn = {name: tensor.clone() for name, tensor in linear_head(self.model).state_dict().items()}
        set_head(self.model, probe)
        return (
            f", a linear probe of {probe.images:,} images"
            + (f": {probe.top1:.2f}% in cross-validation" if math.isfinite(probe.top1) else "")
        )  # fmt: skip

    def start_fine_tuning(self) -> None:
        """The head that was drawn comes back in place of the probe, where fine-tuning gets farther from it."""
        if not self.drawn or not draws_head(self.config.model):
            return
        for network in (self.model, *([] if self.ema is None else [self.ema.module])):
            linear_head(network).load_state_dict(self.drawn)

    def _fit_probe(self) -> tuple[Probe, dict[str, float]]:
        began, config = time.perf_counter(), self.config
        batch = config.batch // config.optim.accumulate
        features = features_of(
            self.model, self.train_images, self.info, self.device, batch=batch, workers=config.data.workers
        )
        self.unread = list(features.bad)
        balanced = config.data.balance != "none"
        probe = fit(features, len(self.info.classes), balanced=balanced)
        logits = torch.from_numpy(probe.logits(features.vectors))
        fused, labels = fuse(logits), torch.from_numpy(features.labels)
        seconds = time.perf_counter() - began
        return probe, {
            "strength": probe.strength,
            "cross_validated_top1": round(probe.top1, 4) if math.isfinite(probe.top1) else -1.0,
            "images": probe.images,
            "train_loss": round(float(cross_entropy(fused, labels)), 5),
            "train_top1": round(100 * topk_correct(fused, labels, 1) / len(labels), 4),
            "train_top5": round(100 * topk_correct(fused, labels, 5) / len(labels), 4),
            "seconds": round(seconds, 1),
        }

    @property
    def over(self) -> bool:
        """Whether all steps of the run are done."""
        return self.pace.over(self.step, self.steps_per_epoch, self.config)

    def settings(self) -> AbstractContextManager[None]:
        """Around a step on a GPU: see `cuda_settings`."""
        fp32 = self.config.precision == "fp32"
        return cuda_settings(self.device, deterministic=self.config.deterministic, fp32=fp32)

    @torch.no_grad()
    def update_average(self) -> None:
        """The moving average after a step: what ModelEmaV3.update does, but in two operations whatever the layers."""
        if self.ema is None:
            return
        (averages, numbers), (copies, counts) = self._averaged
        torch._foreach_lerp_(averages, numbers, weight=1.0 - self.ema.get_decay(self.step))
        if counts:
            torch._foreach_copy_(copies, counts)

    @cached_property
    def _averaged(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """The average's tensors and the network's, of numbers and of counts: they are written into, never replaced."""
        assert self.ema is not None
        averages, now = self.ema.module.state_dict(), self.model.state_dict()
        names = [[name for name in now if now[name].is_floating_point() == floats] for floats in (True, False)]
        return [([averages[name] for name in some], [now[name] for name in some]) for some in names]

    def train_mode(self) -> None:
        """Before training steps; what is frozen keeps its batch statistics too."""
        self.model.train()
        for part in self.frozen:
            part.eval()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The raw network and, if there is one, its moving average, by the file each is saved in."""
        return {LAST: self.model} if self.ema is None else {LAST: self.model, EMA: self.ema.module}

    @property
    def data_digest(self) -> str:
        """Which images the run is on."""
        return f"{self.shown.digest} {self.val_images.digest}"

    @contextmanager
    def keeping_answers(self) -> Iterator[None]:
        """Has the teachers asked about each view of an image once, if --distill.views says so."""
        if self.teachers is None or not self.config.distill.views:
            yield
            return
        kept = open_answers(self.config, self.shown, self.teachers, bf16=self.bf16)
        with contextlib.closing(kept) as self.answers:
            yield
        self.answers = None

    def ask(self, images: Tensor) -> Tensor:
        """What the teachers see, (B, widths), computed in the precision of the training."""
        assert self.teachers is not None
        with in_precision(self.device, self.bf16):
            return self.teachers.see(images)

    def checkpoint(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "sums": dataclasses.asdict(self.sums),
            "faults": self.faults,
            "bad": self.bad,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "pace": self.pace.checkpoint(),
            "seconds": self.seconds,
            "probe": self.probe,
            "data": self.data_digest,
            "teachers": self.teachers.digests if self.teachers else [],
            "teachers_probes": self.teachers.learned if self.teachers else [],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            **({"projection": self.with_features.projection.state_dict()} if self.with_features else {}),
        }

    @property
    def most_bytes(self) -> int:
        """More than a checkpoint of this run takes: networks, two moments, and a line on each training image."""
        numbers: int = sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())
        return 4 * numbers + 64_000_000 + 1000 * len(self.shown)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes what `checkpoint` gave.

        Raises ConfigError if the run's images or teachers are others by now; KeyError, TypeError, ValueError or
        RuntimeError if it is no state of this run. Then the state is to be restored from another one, or given up.
        """
        if checkpoint["data"] != self.data_digest:
            raise ConfigError(
                f"{self.config.data.source}: its images are not those the run began with, so order and split "
                "would be others; bring them back or start the run anew"
            )
        if self.teachers and (learned := checkpoint.get("teachers_probes")):
            self.teachers.take_learned(learned)
        taught = self.teachers.digests if self.teachers else []
        if checkpoint.get("teachers", taught) != taught:  # checkpoints did not have them once
            raise ConfigError(
                f"--teacher {' '.join(self.config.teacher)}: not what the run began with, so its end would be another; "
                "bring it back or start the run anew"
            )
        self.epoch, self.step, self.faults = (operator.index(checkpoint[name]) for name in ("epoch", "step", "faults"))
        self.best, self.seconds = float(checkpoint["best"]), float(checkpoint["seconds"])
        self.probe = {str(name): float(value) for name, value in dict(checkpoint.get("probe", {})).items()}
        sums = checkpoint["sums"]
        self.sums = EpochMeter(**{"labelled": sums["seen"]} | sums)  # all were once
        self.bad = dict(checkpoint["bad"])
        self.best_epoch = operator.index(checkpoint.get("best_epoch", 0))
        self.pace = Pace.restored(checkpoint["pace"]) if "pace" in checkpoint else Pace()
        first = self.epoch * self.steps_per_epoch
        if not self.over and not (self.epoch >= 0 and first <= self.step <= first + self.steps_per_epoch):
            raise ValueError(f"step {self.step} of epoch {self.epoch}")
        if not all(
            map(
                math.isfinite,
                (self.best, self.seconds, self.pace.progress, self.pace.used, *dataclasses.astuple(self.sums)),
            )
        ):
            raise ValueError("figures that are not finite")
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizers"], strict=True):
            groups = optimizer.state_dict()["param_groups"]  # as the configuration has them
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
            for parameter, kept in optimizer.state.items():
                shapes = {value.shape for value in kept.values() if isinstance(value, Tensor) and value.ndim}
                if shapes - {parameter.shape}:
                    raise ValueError(f"an optimizer's {shapes} for a parameter of {parameter.shape}")
        for name, network in self.networks.items():
            network.load_state_dict(checkpoint["networks"][name])
        if self.with_features:
            self.with_features.projection.load_state_dict(checkpoint["projection"])


def mean_and_std(data: DataConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the colours, each (1, 3, 1, 1)."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (data.mean, data.std))
    return mean, std


def balanced_weights(samples: Samples) -> Tensor:
    """Weights of the classes in the loss, (classes,): the mean of all images' is 1, and all classes count alike."""
    counts = torch.from_numpy(np.bincount(samples.labels, minlength=len(samples.classes))).float()
    present = counts > 0
    return torch.where(present, len(samples) / (present.sum() * counts.clamp(min=1)), 0.0)


def prepare(state: State, pixels: Tensor, labels: Tensor, part: int) -> tuple[Tensor, Tensor]:
    """`normalise_and_mix` of a part of the step's batch."""
    number = state.step * state.config.optim.accumulate + part
    return normalise_and_mix(state.config.seed, state.colours, state.mix, number, pixels, labels)


def normalise_and_mix(
    seed: int, colours: tuple[Tensor, Tensor], mix: nn.Module | None, number: int, pixels: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """uint8 pixels (N, 3, H, W) and labels (N,) to normalised images and targets on the device of colours, mixed.

    colours: their mean and standard deviation, each (1, 3, 1, 1).
    number: of the part of a batch in the run; seeds torch's generators, so that mixing and stochastic depth are
    functions of (seed, number).
    """
    device = colours[0].device
    seed_generators(derive_seed(seed, "step", number), device)
    pixels = pixels.to(device, non_blocking=True, memory_format=torch.channels_last)
    images = normalised(pixels, *colours)
    targets = labels.to(device, non_blocking=True)
    return mix(images, targets) if mix else (images, targets)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step came to, over all processes.  loss: mean.  top1, top5: how many were right, before the step.

    seen: images, those that could be read; labelled: of them those with a label.  holes: those that could not.
    fault: what was not finite, so that nothing was changed; "" if all was.
    """

    loss: float
    top1: int
    top5: int
    seen: int
    labelled: int
    holes: int
    fault: str


def train_step(state: State, pixels: Tensor, labels: Tensor) -> Step:
    """One step of the optimizers and the moving average; none of it if something is not finite.

    pixels, labels: this process's share of the batch, the label of a hole being NO_LABEL.
    The device is waited for once, between the gradient and what is done with it.
    Raises TrainingError if another process is gone; then nothing was changed.
    """
    config = state.config
    lr = state.pace.lr(state.step, state.steps_per_epoch, config)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
    state.statistics.begin()
    try:
        with (
            naming_shortage(f"--batch {config.batch} of {config.data.train_side} px", _SMALLER),
            distributed.naming_loss(),
            state.settings(),
        ):
            parts = torch.cat(distributed.all_gather(_gradient(state, pixels, labels)))
            statistics = parts[:, FIGURES:]
            clipped = nn.utils.clip_grad_norm_(state.parallel.parameters(), config.optim.clip or math.inf)
            of_all = torch.cat([parts[:, :FIGURES].flatten(), clipped[None], statistics.sum()[None]]).cpu()
    except BaseException:
        _forget(state)
        raise
    figures = of_all[:-2].view(-1, FIGURES).double()
    norm, statistics_sum = of_all[-2:].tolist()
    seen = int(figures[:, 3].sum())
    loss = float((figures[:, 0] * figures[:, 3]).sum()) / max(seen, 1)
    found = {"loss": loss, "gradient's norm": norm, "sum of batch statistics": statistics_sum}
    fault = next((f"the {what} is {value}" for what, value in found.items() if not math.isfinite(value)), "")
    if fault:
        _forget(state)
    else:
        state.statistics.finish(list(statistics))
        with state.settings():
            for optimizer in state.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        state.update_average()
    top1, top5 = (int(column.sum()) for column in (figures[:, 1], figures[:, 2]))
    return Step(
        loss=loss,
        top1=top1,
        top5=top5,
        seen=seen,
        labelled=int(figures[:, 4].sum()),
        holes=len(labels) * distributed.world_size() - seen,
        fault=fault,
    )


def _gradient(state: State, pixels: Tensor, labels: Tensor) -> Tensor:
    """The gradient, averaged over all parts of the batch, and a row for each part of this process's share.

    A row has `FIGURES` figures: loss, right answers among one and five, images, those of them with a label; then the
    batch statistics.
    An image that cannot be read leaves its part smaller, with as much less weight.
    """
    share = state.config.optim.accumulate // distributed.world_size()
    draws = state.answers.order.at(state.step) if state.answers else []
    rows = []
    for number, (some, their) in enumerate(zip(pixels.chunk(share), labels.chunk(share), strict=True)):
        readable = their != NO_LABEL
        seen = int(readable.sum())
        weight = seen / len(their)
        drawn = draws[number * len(their) : (number + 1) * len(their)]
        if 0 < seen < len(their):
            some, their = some[readable], their[readable]
            drawn = [draw for draw, there in zip(drawn, readable.tolist(), strict=False) if there]
        images, targets = prepare(state, some, their.clamp(min=0), distributed.rank() * share + number)
        with state.statistics.part(images), distributed.averaging(state.parallel, now=number == share - 1):
            with _naming_single(state, images), in_precision(state.device, state.bf16):
                logits, told = state.forward(images) if state.with_features else (state.forward(images), None)
            logits = logits.float()
            known = None
            labelled = seen
            if state.config.data.unlabelled:
                known, labelled = (their >= 0).to(state.device, non_blocking=True), int((their >= 0).sum())
            loss = _loss(state, images, logits, targets, drawn, known, told)
            (loss * (weight / share)).backward()  # type: ignore[no-untyped-call]
        answers, their = (
            (fuse(logits) if logits.ndim == 3 else logits).detach(),
            their.to(state.device, non_blocking=True),
        )
        hits = [topk_hits(answers, their, k).float() for k in (1, 5)]
        counts = [torch.full_like(hits[0], count) for count in (seen, labelled)]
        figures = torch.stack([loss.detach(), *hits, *counts])
        rows.append(torch.cat([figures, state.statistics.read()]))
    return torch.stack(rows)


@contextmanager
def _naming_single(state: State, images: Tensor) -> Iterator[None]:
    """Makes the error of a normalisation without running statistics that sees one number a ConfigError."""
    try:
        yield
    except ValueError as error:
        if "Expected more than 1" not in str(error):
            raise
        raise ConfigError(
            f"{state.config.model} cannot be trained on {len(images)} image(s) of {images.shape[-1]} px at once: "
            f"use a larger --data.size, or --batch {2 * state.config.optim.accumulate} or more"
        ) from error


def _forget(state: State) -> None:
    """Leaves nothing of a step that is not taken."""
    state.statistics.finish([])
    for optimizer in state.optimizers:
        optimizer.zero_grad()


def _loss(
    state: State,
    images: Tensor,
    logits: Tensor,
    targets: Tensor,
    draws: Sequence[Draw] = (),
    known: Tensor | None = None,
    told: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with the labels and, with teachers, distillation from their answer.

    draws: of the images, where answers are kept.  known: which of them have a label, (B,); None: all. Of the others the
    loss is distillation alone.  told: the teachers' features as the network tells them, (B, widths).
    With several heads: the mean of each head's loss, the loss of their mean probability, or a share of both.
    """
    config = state.config
    heads = logits if logits.ndim == 3 else logits[:, None]  # (B, heads, classes)
    taught = None  # (B, classes)
    if state.teachers:
        rows = state.answers.of(draws, images, state.ask) if draws and state.answers else state.ask(images)
        taught = state.teachers.answer(rows)

    def loss_of(said: Tensor) -> Tensor:
        count = said.shape[1]
        labels = targets.repeat_interleave(count, 0)
        said = said.flatten(0, 1)
        if known is not None:
            assert taught is not None
            has = known.repeat_interleave(count, 0)
            of_label = cross_entropy(
                said, labels, weight=state.class_weight, label_smoothing=config.label_smoothing, reduction="none"
            )
            answers = taught.repeat_interleave(count, 0)
            of_teacher = distillation_loss(said, answers, config.distill.temperature, each=True)
            shares = torch.where(has, config.distill.share, 1.0)
            mixed: Tensor = ((1 - shares) * of_label + shares * of_teacher).mean()
            return mixed
        loss = cross_entropy(
            said, labels, weight=state.class_weight, label_smoothing=config.label_smoothing, reduction="sum"
        ) / len(said)  # torch's own mean is over the weights of this part, which undoes them where it is small
        if taught is None:
            return loss
        share = config.distill.share
        answers = taught.repeat_interleave(count, 0)
        return (1 - share) * loss + share * distillation_loss(said, answers, config.distill.temperature)

    loss = loss_of(heads)
    if heads.shape[1] > 1 and (together := config.heads.together):
        loss = (1 - together) * loss + together * loss_of(fuse(heads)[:, None])
    if told is not None and state.teachers:
        loss = loss + config.distill.features * feature_loss(told.float(), state.teachers.standardised(rows))
    return loss
