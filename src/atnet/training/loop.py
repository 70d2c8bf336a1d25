"""The training loop, flat: batch, forward, backward, step, moving average; each epoch evaluated and saved."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from atnet.config import Config, DataConfig, make_config, read_yaml
from atnet.data.augment import make_mix
from atnet.data.classes import display_names
from atnet.data.loader import batches_of, eval_loader, make_preprocess, train_loader
from atnet.data.order import derive_seed
from atnet.data.sources import DIGITS, open_parts
from atnet.device import pick_device, seed_generators
from atnet.errors import ConfigError, DataError, TrainingError
from atnet.files import resolve_run, write_whole
from atnet.measure.evaluate import score
from atnet.measure.metrics import Scores, hits
from atnet.measure.record import (
    ENVIRONMENT,
    RECORD,
    new_run,
    note_resumption,
    open_run,
    peak_memory_mb,
    read_metrics,
    write_metrics,
    write_record,
)
from atnet.model.load import (
    BEST,
    EMA,
    LAST,
    WeightsInfo,
    architecture,
    create_classifier,
    to_safetensors,
)
from atnet.progress import progress_bar
from atnet.show.pictures import CURVES, draw_curves
from atnet.training.checkpoint import load_checkpoint, save_checkpoint
from atnet.training.optim import lr_at, make_optimizers

log = logging.getLogger("atnet")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training: its folder and what its record.json says."""

    folder: Path
    record: dict[str, Any]


def train(
    recipe: str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    **options: Any,
) -> Run:
    """Trains a classifier and leaves a run folder.

    recipe: a YAML file.  options go before it, nested as it is: epochs=3, optim={"lr": 1e-3}.
    out: the run's folder, runs/DATE-TIME-MODEL if None.
    resume: a run to go on with, from its last whole epoch, to the same weights as an unbroken run;
    it has its own configuration, so no recipe, out or options go with it.
    Raises ConfigError, DataError or TrainingError naming the thing and the remedy.
    """
    if resume is None:
        return train_config(make_config(recipe, **options), out=out)
    if recipe is not None or out is not None or options:
        raise ConfigError("resume goes on with the run's own configuration: give nothing else")
    return resume_run(resume)


def train_config(config: Config, *, out: str | Path | None = None) -> Run:
    """Trains as the configuration says."""
    config = dataclasses.replace(config, model=architecture(config.model), data=_absolute(config))
    state = _State(config)
    return _fit(state, new_run(config, out))


def resume_run(where: str | Path) -> Run:
    """Goes on with a run from its last whole epoch. Raises ConfigError if it is finished or damaged."""
    run = resolve_run(where).resolve()
    config = open_run(run)
    checkpoint = load_checkpoint(run)
    if checkpoint["epoch"] >= config.epochs and (run / RECORD).exists():
        raise ConfigError(f"{run}: all {config.epochs} epochs are done; nothing is left to resume")
    state = _State(config)
    state.restore(checkpoint)
    note_resumption(run)
    return _fit(state, run)


def _absolute(config: Config) -> DataConfig:
    """The data's section with the folder's absolute path, so that a run is resumed from anywhere."""
    source = config.data.source
    if source != DIGITS:
        source = str(Path(source).expanduser().resolve())
    return dataclasses.replace(config.data, source=source)


class _State:
    """What a run holds between two steps."""

    def __init__(self, config: Config) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.device = pick_device(config.device)
        self.train_pictures, self.val_pictures = open_parts(config.data.source, config.data.val_share)
        self.steps_per_epoch = len(self.train_pictures) // config.batch
        if not self.steps_per_epoch:
            raise DataError(
                f"{config.data.source}: {len(self.train_pictures)} training pictures are fewer than a batch of "
                f"{config.batch}: use --batch {2 ** int(math.log2(len(self.train_pictures)))}"
            )
        classes = self.train_pictures.classes
        seed_generators(derive_seed(config.seed, "weights"), self.device)
        self.model = create_classifier(
            config.model, classes=len(classes), size=config.data.size, drop_path=config.drop_path
        )
        if config.checkpointing:
            if not hasattr(self.model, "set_grad_checkpointing"):
                raise ConfigError(f"{config.model} has no activation checkpointing: use --no-checkpointing")
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last)
        self._try_out()
        self.ema = ModelEmaV3(self.model, decay=config.ema, use_warmup=True) if config.ema else None
        self.optimizers = make_optimizers(self.model, config.optim)
        self.epoch = 0  # whole epochs done
        self.best = -1.0
        self.seconds = 0.0
        self.info = WeightsInfo(
            model=config.model,
            classes=classes,
            class_names=display_names(classes),
            preprocess=make_preprocess(config.data),
            epoch=0,
            moving_average=False,
        )

    def _try_out(self) -> None:
        """One empty picture, so that a network that cannot take the input says so before the run begins."""
        size = self.config.data.size
        try:
            with torch.no_grad():
                self.model.eval()(torch.zeros(1, 3, size, size, device=self.device))
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"{self.config.model} does not take pictures of {size} px ({error}); use --data.size of another"
            ) from error

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The raw network and, if there is one, its moving average, by the file each is saved in."""
        return {LAST: self.model} if self.ema is None else {LAST: self.model, EMA: self.ema.module}

    @property
    def data_digest(self) -> str:
        """Which pictures the run is on."""
        return f"{self.train_pictures.digest} {self.val_pictures.digest}"

    def checkpoint(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "best": self.best,
            "seconds": self.seconds,
            "data": self.data_digest,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["data"] != self.data_digest:
            raise ConfigError(
                f"{self.config.data.source}: its pictures are not those the run began with, so order and split "
                "would be others; bring them back or start the run anew"
            )
        self.epoch, self.best = checkpoint["epoch"], checkpoint["best"]
        self.seconds = checkpoint["seconds"]
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, network in self.networks.items():
            network.load_state_dict(checkpoint["networks"][name])


def _fit(state: _State, run: Path) -> Run:
    """Trains the epochs that are left, saves each, and writes the record."""
    config, device = state.config, state.device
    per_epoch, last = state.steps_per_epoch, state.steps_per_epoch * config.epochs
    log.info(
        "%s: %s, %d classes, %s training and %s validation pictures, %s",
        run, config.model, len(state.info.classes), f"{len(state.train_pictures):,}",
        f"{len(state.val_pictures):,}", device,
    )  # fmt: skip
    rows: list[dict[str, Any]] = [dict(row) for row in read_metrics(run)[: state.epoch]]
    validation = eval_loader(
        state.val_pictures,
        state.info.preprocess,
        config.batch // config.optim.accumulate,
        config.data.workers,
        config.data.cache == "ram",
    )
    batches = batches_of(train_loader(state.train_pictures, config, first=state.epoch * per_epoch, last=last))
    scores: dict[str, Scores] = {}
    while state.epoch < config.epochs:
        began = time.perf_counter()
        row = _train_epoch(state, batches)
        row["images_per_s"] = round(per_epoch * config.batch / (time.perf_counter() - began), 1)
        scores = _validate(state, validation)
        state.epoch += 1
        state.seconds += time.perf_counter() - began
        row |= _columns(scores) | {
            "peak_memory_mb": round(peak_memory_mb(device)),
            "seconds": round(state.seconds, 1),
        }
        rows.append(row)
        _save(state, run, scores, rows)
        log.info(_line(state, row))
    batches.close()
    scores = scores or _validate(state, validation)  # of a run that ended before its record was written
    record = _record(state, run, scores, rows)
    write_record(run, record)
    draw_curves(read_metrics(run), run / CURVES)
    return Run(folder=run, record=record)


def _train_epoch(state: _State, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    config, device, model = state.config, state.device, state.model
    classes = len(state.info.classes)
    mix = make_mix(config.augment, classes)
    loss_of = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (config.data.mean, config.data.std))
    first = state.epoch * state.steps_per_epoch
    total_loss, top1, top5, seen, lr = 0.0, 0, 0, 0, 0.0
    model.train()
    title = f"Epoch {state.epoch + 1}/{config.epochs}"
    with progress_bar(title, state.steps_per_epoch) as advance:
        for step in range(first, first + state.steps_per_epoch):
            pixels, labels = next(batches)
            seed_generators(derive_seed(config.seed, "step", step), device)
            pixels = pixels.to(device, non_blocking=True, memory_format=torch.channels_last)
            images = (pixels / 255 - mean) / std
            labels = labels.to(device, non_blocking=True)
            images, targets = mix(images, labels) if mix else (images, labels)

            lr = lr_at(step, state.steps_per_epoch, config)
            for optimizer in state.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
            loss = 0.0
            parts = zip(images.chunk(config.optim.accumulate), targets.chunk(config.optim.accumulate), strict=True)
            logits = []
            for part, target in parts:
                with _autocast(config, device):
                    out = model(part)
                part_loss = loss_of(out.float(), target) / config.optim.accumulate
                part_loss.backward()
                loss += part_loss.item()
                logits.append(out.detach().float())
            _require_finite("loss", loss, step, state)
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or math.inf)
            _require_finite("gradient's norm", float(norm), step, state)
            for optimizer in state.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if state.ema is not None:
                state.ema.update(model, step=step)

            answers = torch.cat(logits)
            total_loss += loss * len(labels)
            top1 += hits(answers, labels, 1)
            top5 += hits(answers, labels, 5)
            seen += len(labels)
            advance(1, f"loss {total_loss / seen:.3f}  top-1 {100 * top1 / seen:.1f}%")
    return {
        "epoch": state.epoch + 1,
        "step": first + state.steps_per_epoch,
        "lr": f"{lr:.6g}",
        "train_loss": round(total_loss / seen, 5),
        "train_top1": round(100 * top1 / seen, 4),
        "train_top5": round(100 * top5 / seen, 4),
    }


def _require_finite(what: str, value: float, step: int, state: _State) -> None:
    """Stops the run before a step that would spoil the weights."""
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} is {value} at step {step} (epoch {state.epoch + 1}): lower --optim.lr "
            f"{state.config.optim.lr:g} or lengthen --schedule.warmup; the epochs before are saved"
        )


def _autocast(config: Config, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 matrix products where asked for, or where a GPU has them."""
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def _validate(state: _State, loader: DataLoader[tuple[Tensor, Tensor]]) -> dict[str, Scores]:
    classes, total = len(state.info.classes), len(state.val_pictures)
    return {
        name: score(network, loader, classes=classes, device=state.device, total=total)
        for name, network in state.networks.items()
    }


def _columns(scores: dict[str, Scores]) -> dict[str, Any]:
    """Metrics of the raw network, and of the moving average ("" where there is none)."""
    columns: dict[str, Any] = {}
    for prefix, name in (("val", LAST), ("ema_val", EMA)):
        found = scores.get(name)
        columns[f"{prefix}_loss"] = "" if found is None else round(found.loss, 5)
        columns[f"{prefix}_top1"] = "" if found is None else round(found.top1, 4)
        columns[f"{prefix}_top5"] = "" if found is None else round(found.top5, 4)
    return columns


def _save(state: _State, run: Path, scores: dict[str, Scores], rows: list[dict[str, Any]]) -> None:
    """Weights, metrics, then the checkpoint: what it stands for is whole when it appears."""
    written = {}
    for name, network in state.networks.items():
        found = scores[name]
        info = dataclasses.replace(
            state.info,
            epoch=state.epoch,
            moving_average=name == EMA,
            facts={"data": state.config.data.source_name, "val_top1": found.top1, "val_top5": found.top5},
        )
        written[name] = to_safetensors(network.state_dict(), info)
        write_whole(run / name, written[name])
    leading = max(scores, key=lambda name: scores[name].top1)
    if scores[leading].top1 > state.best:
        state.best = scores[leading].top1
        write_whole(run / BEST, written[leading])
    write_metrics(run, rows)
    save_checkpoint(run, state.checkpoint())


def _line(state: _State, row: dict[str, Any]) -> str:
    average = f" (average {row['ema_val_top1']:.2f})" if state.ema else ""
    return (
        f"epoch {row['epoch']:>3}/{state.config.epochs}  loss {row['train_loss']:.3f}  "
        f"top-1 train {row['train_top1']:.2f}  val {row['val_top1']:.2f}{average}  "
        f"best {state.best:.2f}  {row['images_per_s']:.0f} images/s"
    )


def _record(state: _State, run: Path, scores: dict[str, Scores], rows: list[dict[str, Any]]) -> dict[str, Any]:
    config = state.config
    named = dataclasses.replace(config.data, source=config.data.source_name)
    final = {name.removesuffix(".safetensors"): found for name, found in scores.items()}
    speeds = sorted(float(row["images_per_s"]) for row in rows)
    return {
        "model": config.model,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "parameters_without_classifier": _trunk_parameters(state.model),
        "data": config.data.source_name,
        "train_pictures": len(state.train_pictures),
        "val_pictures": len(state.val_pictures),
        "classes": len(state.info.classes),
        "size": config.data.size,
        "epochs": config.epochs,
        "batch": config.batch,
        "seed": config.seed,
        "top1": {name: round(found.top1, 4) for name, found in final.items()},
        "top5": {name: round(found.top5, 4) for name, found in final.items()},
        "loss": {name: round(found.loss, 5) for name, found in final.items()},
        "best_top1": round(state.best, 4),
        "seconds": round(state.seconds),
        "images_per_s": speeds[len(speeds) // 2],
        "peak_memory_mb": max(float(row["peak_memory_mb"]) for row in rows),
        "device": str(state.device),
        "environment": read_yaml(run / ENVIRONMENT),
        "config": dataclasses.asdict(dataclasses.replace(config, data=named)),
    }  # fmt: skip


def _trunk_parameters(model: nn.Module) -> int:
    heads = model.get_classifier()  # type: ignore[operator]
    heads = heads if isinstance(heads, tuple | list) else (heads,)
    counted = {id(p) for head in heads for p in head.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in counted)
