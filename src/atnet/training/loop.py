"""The training loop, flat: batch, forward, backward, step, moving average; each epoch saved, evaluations between."""

import base64
import contextlib
import dataclasses
import datetime
import html
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from atnet.config import Config, read_yaml, to_plain
from atnet.data.classes import printable
from atnet.data.loader import BadSample, eval_loader
from atnet.data.on_device import training_batches
from atnet.data.pack import BAD_FILES, write_bad_files
from atnet.data.sources import open_configured
from atnet.device import keep_freed_memory
from atnet.errors import AtnetError, ConfigError, Stopped, TrainingError
from atnet.eval.evaluate import score, score_together, scored
from atnet.eval.metrics import Scores, together
from atnet.eval.selective import TRUST, fit_trust
from atnet.files import quoted, resolve_run, write_whole
from atnet.models.load import classifier_parameters, to_safetensors
from atnet.progress import counted, duration, progress_bar
from atnet.run.loggers import Logger, logging_to, tell
from atnet.run.record import (
    ENVIRONMENT,
    LAST_RUN,
    RECORD,
    accuracy,
    checkpoints,
    discard_unfinished,
    discard_unsaved,
    holding,
    in_use,
    new_run,
    note_resumption,
    open_run,
    peak_memory_mb,
    point_last,
    read_metrics,
    write_metrics,
    write_predictions,
    write_record,
)
from atnet.training import distributed
from atnet.training.checkpoint import load_checkpoint, require_checkpoints, save_checkpoint, saved_step
from atnet.training.choose import compare_with_probe
from atnet.training.faults import note_bad, note_fault
from atnet.training.interruption import Interruption
from atnet.training.pace import AFTERWARDS, Pace
from atnet.training.plan import configure, forecast_config, settle
from atnet.training.state import EpochMeter, State, train_step
from atnet.training.transfer import from_random_weights
from atnet.weights.info import BEST, EMA, LAST, SHIPPED, note_hashes

log = logging.getLogger("atnet")

OnEpoch = Callable[[dict[str, Any]], None]

MOST_STRETCHED = 20
"""Times the epochs that a time budget was forecast to have room for: it ends at them."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training: its folder and what its record.json says."""

    folder: Path
    record: dict[str, Any]

    def _repr_html_(self) -> str:
        """For a notebook: the figures, the curves where they are drawn, and what comes next."""
        top1, low, high, count = accuracy(self.record)
        said = (
            f"{self.record['model']} on {printable(self.record['data'])}, {self.record['size']} px, "
            f"{counted(self.record['epochs'], 'epoch')}, {duration(self.record['seconds'])}: top-1 {top1:.2f}%, "
            f"95% interval {low:.1f} to {high:.1f} ({counted(count, 'validation image')})"
        )
        drawn = self.folder / "curves.png"
        address = base64.b64encode(drawn.read_bytes()).decode() if drawn.is_file() else ""
        source = f"data:image/png;base64,{address}"
        curves = f'<br><img alt="curves" style="max-width: 46rem" src="{source}">' if address else ""
        then = f"atnet report {quoted(self.folder)}"
        return f"<p>{html.escape(said)}<br><code>{html.escape(then)}</code>{curves}</p>"


def train(
    recipe: str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    time_budget: datetime.timedelta | None = None,
    on_epoch: OnEpoch | None = None,
    **options: Any,
) -> Run:
    """Trains a classifier and leaves a run folder.

    recipe: a YAML file.  options go before it, nested as it is: epochs=3, optim={"lr": 1e-3}.
    out: the run's folder, runs/DATE-TIME-MODEL if None.
    resume: a run to go on with, from where it was saved, to the same weights as an unbroken run;
    it has its own configuration, so no recipe, out or options go with it.
    time_budget: for how long to train in all, in place of epochs, however fast the steps turn out to be.
    on_epoch: called after each epoch with its row of metrics; what it raises ends the training, which can be resumed.
    Raises ConfigError, DataError or TrainingError naming the thing and the remedy.
    """
    if resume is None:
        return train_config(configure(recipe, **options), out=out, time_budget=time_budget, on_epoch=on_epoch)
    if recipe is not None or out is not None or time_budget is not None or options:
        raise ConfigError("resume goes on with the run's own configuration: give nothing else")
    return resume_run(resume, on_epoch)


def probe(
    data: str | dict[str, Any],
    weights: str | Path = SHIPPED,
    *,
    out: str | Path | None = None,
    **options: Any,
) -> Run:
    """A linear probe: a logistic regression on the features of a frozen network, as a run like any other.

    data: a source, or options of it: {"source": FOLDER, "size": 128}.  weights: what names a network.
    out, options: as of `train`.  Raises what `train` does.
    """
    return train(weights=str(weights), epochs=0, out=out, data=data, **options)


def train_config(
    config: Config,
    *,
    out: str | Path | None = None,
    time_budget: datetime.timedelta | None = None,
    on_epoch: OnEpoch | None = None,
    age: float = 0.0,
) -> Run:
    """Trains as the configuration says.  age: seconds of the time budget that have gone."""
    if time_budget is not None and distributed.is_distributed():
        raise ConfigError("--time-budget measures one process, not several: give --epochs; `atnet plan` says what fits")
    with distributed.process_group():
        began = time.monotonic() - age
        config = settle(config)
        pace = Pace()
        if time_budget is not None:
            found = forecast_config(config).within(time_budget)
            config = found.config
            pace = Pace(
                budget=time_budget.total_seconds(),
                step=found.step,
                evaluation=found.evaluation,
                afterwards=max(AFTERWARDS, age),
                began=began,
            )
        if distributed.is_restarted():
            unfinished = distributed.on_main_process(lambda: unfinished_run(config, out))
            if unfinished is not None:
                return _resume(unfinished, on_epoch)
        samples = open_configured(config.data)
        compared = compare_with_probe(config, samples[0])
        if compared is not None:
            log.info("%s", compared)
            if compared.keep_probe:
                config = dataclasses.replace(config, epochs=0)
        state = State(config, samples)
        state.pace = pace
        log.info(state.start_from_weights() if config.weights else from_random_weights(config.model))
        if config.epochs:
            state.start_fine_tuning()
            state.teach_teachers()
        if compared is not None:
            state.probe |= compared.figures
        run = distributed.on_main_process(lambda: new_run(config, out))
        with _held(run):
            return _fit(state, run, on_epoch)


def resume_run(where: str | Path, on_epoch: OnEpoch | None = None) -> Run:
    """Goes on with a run from where it was saved. Raises ConfigError if it is finished or damaged."""
    with distributed.process_group():
        return _resume(resolve_run(where).resolve(), on_epoch)


def _resume(run: Path, on_epoch: OnEpoch | None) -> Run:
    run = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    config = distributed.on_main_process(lambda: open_run(run))
    with _held(run):
        distributed.on_main_process(lambda: require_checkpoints(run))
        state = State(config)
        checkpoint = distributed.on_main_process(lambda: load_checkpoint(run, state.restore, state.most_bytes))
        if distributed.rank():
            state.restore(checkpoint)
        del checkpoint
        if state.over and (run / RECORD).exists():
            raise ConfigError(f"{run}: all {state.epoch} epochs are done; nothing is left to resume")
        distributed.on_main_process(lambda: _begin_again(run))
        return _fit(state, run, on_epoch)


def _begin_again(run: Path) -> None:
    with _naming_full_disk(run):
        discard_unfinished(run)
        note_resumption(run)


@contextlib.contextmanager
def _held(run: Path) -> Iterator[None]:
    """The first process holds the run for all."""
    with contextlib.ExitStack() as held:
        distributed.on_main_process(lambda: held.enter_context(holding(run)))
        yield


def unfinished_run(config: Config, out: str | Path | None = None) -> Path | None:
    """The run of a settled configuration that can be gone on with: `out`, or else the newest; None if it is none."""
    run = Path(out).expanduser() if out else resolve_run(LAST_RUN).resolve()
    if (run / RECORD).exists() or not checkpoints(run) or in_use(run):
        return None
    try:
        return run if open_run(run) == config else None
    except ConfigError:  # of another version, or damaged: none of this command's
        return None


def _fit(state: State, run: Path, on_epoch: OnEpoch | None = None) -> Run:
    """Trains what is left, saves each epoch, and writes the record. A signal saves the step and raises Stopped.

    Raises TrainingError if the disk does not take what is to be written; the checkpoints before are sound.
    """
    config = state.config
    steps = state.steps_per_epoch * config.epochs
    unlabelled = len(state.shown) - len(state.train_images)
    log.info(
        "%s: %s at %d px on %s: %d classes, %s training%s and %s validation images, %s",
        run,
        config.model,
        config.data.size,
        printable(config.data.source_name),
        len(state.info.classes),
        f"{len(state.train_images):,}",
        f" ({unlabelled:,} more without labels)" if unlabelled else "",
        f"{len(state.val_images):,}",
        state.device,
    )
    if state.step:
        log.info("resumed after step %s of %s", f"{state.step:,}", f"{steps:,}")
    alone = distributed.world_size() == 1
    with (
        Interruption(at_once=alone) as interruption,
        distributed.hearing_others(),
        state.keeping_answers(),
        logging_to([] if distributed.rank() else config.log, run, to_plain(for_others(config))) as loggers,
    ):
        try:
            with _naming_full_disk(run):
                scores, rows = _train_epochs(state, run, interruption, loggers, on_epoch)
        except KeyboardInterrupt:
            with distributed.naming_loss():  # the others wait, for torchrun ends the first one soon after them
                distributed.on_main_process(lambda: _save_stopped(state, run))
            raise Stopped(run, state.step, steps, interruption.signal or signal.SIGINT) from None
        except AtnetError as error:
            if distributed.rank():
                raise
            told = _save_what_can_be(state, run, error)
            if interruption.signal is not None:  # by which another process was ended first
                raise Stopped(run, state.step, steps, interruption.signal) from error
            raise type(error)(f"{error}{told}") from error
        finally:
            keep_freed_memory(state.device, keep=False)
    record = _record(state, run, scores, rows) if distributed.rank() == 0 else {}
    if distributed.rank() == 0:
        with _naming_full_disk(run):
            _write_results(state, run, scores, record)
    return Run(folder=run, record=distributed.broadcast(record))


def _save_stopped(state: State, run: Path) -> None:
    with _naming_full_disk(run):
        _save_checkpoint(state, run)


def _save_what_can_be(state: State, run: Path, error: AtnetError) -> str:
    """After an error between two steps: the end of its message, with what there is to go on with."""
    if not isinstance(error.__cause__, OSError) and (checkpoints(run) or distributed.world_size() > 1 or state.bad):
        with contextlib.suppress(AtnetError, OSError):
            _save_checkpoint(state, run)
    discard_unsaved(run)
    saved = checkpoints(run)
    if not saved:
        return ""
    return f"; saved after step {saved_step(saved[0]):,}, go on with: atnet train --resume {quoted(run)}"


def _write_results(state: State, run: Path, scores: dict[str, Scores], record: dict[str, Any]) -> None:
    """What a finished run leaves beside its weights; the record last, for it says that all is there."""
    final = scores.get(EMA, scores[LAST])
    if state.bad or final.bad:
        bad = [("train", *found) for found in state.bad.items()] + [("val", *found) for found in final.bad]
        write_bad_files(run / BAD_FILES, bad)
    write_predictions(run, scored(state.val_images, final), final)
    write_record(run / RECORD, record)


def _train_epochs(
    state: State, run: Path, interruption: Interruption, loggers: list[Logger], on_epoch: OnEpoch | None
) -> tuple[dict[str, Scores], list[dict[str, Any]]]:
    """The epochs that are left: the last one's scores, and the metrics of all."""
    config, per_epoch = state.config, state.steps_per_epoch
    rows: list[dict[str, Any]] = [dict(row) for row in read_metrics(run)[: state.epoch]]
    mine = np.array_split(np.arange(len(state.val_images)), distributed.world_size())[distributed.rank()]
    validation = eval_loader(
        state.val_images.only(mine.tolist()),
        state.info.preprocess,
        config.batch // config.optim.accumulate,
        config.data.workers,
        config.data.cache != "none",
    )
    last = per_epoch * config.epochs * (MOST_STRETCHED if state.pace.budget else 1)
    share = distributed.rank(), distributed.world_size()
    batches = training_batches(state.shown, config, state.device, state.step, last, share)
    scores: dict[str, Scores] = {}
    while not state.over or state.step > state.epoch * per_epoch:
        row = _train_epoch(state, batches, run, interruption)
        began = time.perf_counter()
        scores = {}
        if state.over or config.evaluated(state.epoch):
            scores = _validate(state, validation, interruption)
            state.pace.evaluation = time.perf_counter() - began
        with interruption.held():
            state.epoch += 1
            state.seconds += state.sums.seconds + time.perf_counter() - began
            state.sums = EpochMeter()
            row |= _columns(scores) | {
                "peak_memory_mb": round(peak_memory_mb(state.device)),
                "seconds": round(state.seconds, 1),
            }
            rows.append(row)
            best = max((found.top1 for found in scores.values()), default=-1.0)
            better = best > state.best
            if better:
                state.best, state.best_epoch = best, state.epoch
            elif config.early_stop and state.epoch - state.best_epoch >= config.early_stop and state.pace.ending < 0:
                state.pace.end_early(state.step)
                log.info("no better validation top-1 in %d epochs: the run ends", state.epoch - state.best_epoch)
            if distributed.rank() == 0:
                _save(state, run, scores, rows, better)
        log.info(_line(state, row))
        tell(loggers, row)
        if on_epoch is not None:
            on_epoch(dict(row))
    batches.close()
    scores = scores or _validate(state, validation, interruption)  # validated here: a run that ended before its record
    if not config.epochs:
        note_bad(state, run, state.unread)
        rows = [_probe_row(state) | _columns(scores)]
        state.seconds, state.best = state.probe["seconds"], max(found.top1 for found in scores.values())
        if distributed.rank() == 0:
            _save(state, run, scores, rows, better=True)
    return scores, rows


def _probe_row(state: State) -> dict[str, Any]:
    """The row of metrics of a run without epochs: those of its probe on the images that it was fitted to."""
    seconds = state.probe["seconds"]
    return {
        "epoch": 0,
        "step": 0,
        "lr": "0",
        **{name: state.probe[name] for name in ("train_loss", "train_top1", "train_top5")},
        "images_per_s": round(len(state.train_images) / max(seconds, 0.1), 1),
        "peak_memory_mb": round(peak_memory_mb(state.device)),
        "seconds": seconds,
    }


def _train_epoch(
    state: State, batches: Iterator[tuple[Tensor, Tensor, list[BadSample]]], run: Path, interruption: Interruption
) -> dict[str, Any]:
    """The epoch's steps that are left; its row of metrics."""
    config, sums = state.config, state.sums
    first = state.epoch * state.steps_per_epoch
    state.train_mode()
    title = f"Epoch {state.epoch + 1}" + (f"/{config.epochs}" if not state.pace.budget else "")
    saved = time.monotonic()
    with progress_bar(title, state.steps_per_epoch, done=state.step - first, eta=False) as advance:
        while state.step < first + state.steps_per_epoch and not state.over:
            began = time.perf_counter()
            pixels, labels, holes = _next_batch(batches, interruption)
            with interruption.held():
                done = train_step(state, pixels, labels)
                if done.fault:
                    note_fault(state, run, done.fault)
                else:
                    state.faults = 0
                    sums.loss += done.loss * done.seen
                    sums.top1 += done.top1
                    sums.top5 += done.top5
                    sums.seen += done.seen
                    sums.labelled += done.labelled
                state.step += 1
                seconds = time.perf_counter() - began
                sums.seconds += seconds
                state.pace.advance(seconds, state.steps_per_epoch, config)
                if done.holes:
                    note_bad(state, run, holes)
                if distributed.rank() == 0 and time.monotonic() - saved >= 60 * config.save_minutes:
                    _save_checkpoint(state, run)
                    saved = time.monotonic()
            advance(1, _note(state))
    return {
        "epoch": state.epoch + 1,
        "step": state.step,
        "lr": f"{state.pace.lr(state.step - 1, state.steps_per_epoch, config):.6g}",
        "train_loss": round(sums.loss / max(sums.seen, 1), 5),
        "train_top1": round(100 * sums.top1 / max(sums.labelled, 1), 4),
        "train_top5": round(100 * sums.top5 / max(sums.labelled, 1), 4),
        "images_per_s": round(sums.seen / sums.seconds, 1),
    }


def _next_batch(batches: Iterator[Any], interruption: Interruption) -> Any:
    """This process's share of the next batch. Raises KeyboardInterrupt, in all processes alike, if one got a signal."""
    if distributed.world_size() == 1:
        return next(batches)
    batch = None
    with contextlib.suppress(KeyboardInterrupt), interruption.interruptible():
        batch = next(batches)
    _stop_together(interruption)
    return batch


def _stop_together(interruption: Interruption) -> None:
    """Raises KeyboardInterrupt, in all processes alike, if one of them got a signal."""
    with distributed.naming_loss():
        stop = distributed.agree_to_stop(lambda: interruption.signal or 0)
    if stop:
        interruption.signal = interruption.signal or stop
        raise KeyboardInterrupt


def _note(state: State) -> str:
    """What stands beside the bar: the epoch so far, and when the run will be done."""
    sums = state.sums
    left = state.pace.seconds_left(state.step, state.steps_per_epoch, state.config)
    best = f"  best {state.best:.1f}%" if state.best >= 0 else ""
    return (
        f"loss {sums.loss / max(sums.seen, 1):.3f}  top-1 {100 * sums.top1 / max(sums.labelled, 1):.1f}%{best}  "
        f"{sums.seen / sums.seconds:.0f} images/s  run ends in {duration(left)}"
    )


def _validate(state: State, loader: DataLoader[Any], interruption: Interruption) -> dict[str, Scores]:
    """Of the last weights and their average, on each image once; loader: this process's share of them.

    Raises KeyboardInterrupt, in all processes alike, if one got a signal.
    """
    classes, total = len(state.info.classes), len(loader.dataset)  # type: ignore[arg-type]
    found: dict[str, Scores | None] = dict.fromkeys(state.networks)

    def score() -> None:
        if total:
            found.update(
                score_together(
                    state.networks, loader, classes=classes, device=state.device, total=total,
                    precision=state.config.precision,
                )
            )  # fmt: skip

    if distributed.world_size() == 1:
        score()
    else:
        with contextlib.suppress(KeyboardInterrupt), interruption.interruptible():
            score()
        _stop_together(interruption)
    with distributed.naming_loss():
        shares = distributed.all_gather_object(found)
    return {name: together([part for share in shares if (part := share[name]) is not None]) for name in found}


def _columns(scores: dict[str, Scores]) -> dict[str, Any]:
    """Metrics of the raw network, and of the moving average ("" where there is none)."""
    columns: dict[str, Any] = {}
    for prefix, name in (("val", LAST), ("ema_val", EMA)):
        found = scores.get(name)
        columns[f"{prefix}_loss"] = "" if found is None else round(found.loss, 5)
        columns[f"{prefix}_top1"] = "" if found is None else round(found.top1, 4)
        columns[f"{prefix}_top5"] = "" if found is None else round(found.top5, 4)
    return columns


def _save(state: State, run: Path, scores: dict[str, Scores], rows: list[dict[str, Any]], better: bool) -> None:
    """Weights, metrics, then the checkpoint: what it stands for is whole when it appears.

    scores: of the networks whose weights are written, none after an epoch without evaluation.
    better: whether one of them is the best so far.
    """
    written = {}
    for name, found in scores.items():
        info = dataclasses.replace(
            state.info,
            epoch=state.epoch,
            moving_average=name == EMA,
            facts={
                "data": state.config.data.source_name,
                "val_top1": found.top1,
                "val_top5": found.top5,
                TRUST: fit_trust(found.confidence, found.predicted == found.labels),
            },
        )
        written[name] = to_safetensors(state.networks[name].state_dict(), info)
    if better:
        written[BEST] = written[max(scores, key=lambda name: scores[name].top1)]
    note_hashes(run, written)
    for name, content in written.items():
        write_whole(run / name, content)
    write_metrics(run, rows)
    _save_checkpoint(state, run)


def _save_checkpoint(state: State, run: Path) -> None:
    """The first one makes the run the one that runs/last points to: before it there is nothing to go on with."""
    first = not checkpoints(run)
    save_checkpoint(run, state.checkpoint(), state.config.keep)
    if first:
        point_last(run)


@contextlib.contextmanager
def _naming_full_disk(run: Path) -> Iterator[None]:
    """Makes an error of the disk a TrainingError with the remedy."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{run}: cannot be written ({error.strerror or error}); make room or mend the folder"
        ) from error


def _line(state: State, row: dict[str, Any]) -> str:
    planned = "" if state.pace.budget else f"/{state.config.epochs}"
    average = f" (average {row['ema_val_top1']:.2f})" if row["ema_val_top1"] != "" else ""
    found = f"val {row['val_top1']:.2f}{average}  best {state.best:.2f}  " if row["val_top1"] != "" else ""
    return (
        f"epoch {row['epoch']:>3}{planned}  loss {row['train_loss']:.3f}  "
        f"top-1 train {row['train_top1']:.2f}  {found}{row['images_per_s']:.0f} images/s"
    )


def _record(state: State, run: Path, scores: dict[str, Scores], rows: list[dict[str, Any]]) -> dict[str, Any]:
    config = state.config
    final = {name.removesuffix(".safetensors"): found for name, found in scores.items()}
    heads = classifier_parameters(state.model)
    speeds = sorted(float(row["images_per_s"]) for row in rows)
    return {
        "model": config.model,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "parameters_without_classifier": sum(p.numel() for p in state.model.parameters() if id(p) not in heads),
        "data": config.data.source_name,
        "train_images": len(state.train_images),
        **({"unlabelled_images": len(state.shown) - len(state.train_images)} if config.data.unlabelled else {}),
        "val_images": len(state.val_images),
        "bad_images": {"train": len(state.bad), "val": len(next(iter(scores.values())).bad)},
        "classes": len(state.info.classes),
        "class_names": list(state.info.classes),
        "size": config.data.size,
        "epochs": state.epoch,
        "batch": config.batch,
        "seed": config.seed,
        "top1": {name: round(found.top1, 4) for name, found in final.items()},
        "top5": {name: round(found.top5, 4) for name, found in final.items()},
        "loss": {name: round(found.loss, 5) for name, found in final.items()},
        **({"probe": state.probe} if state.probe else {}),
        **({"teachers": _of_teachers(state)} if state.teachers else {}),
        **({"heads": _of_heads(final)} if next(iter(final.values())).heads else {}),
        "best_top1": round(state.best, 4),
        "seconds": round(state.seconds),
        "images_per_s": speeds[len(speeds) // 2],
        "peak_memory_mb": max(float(row["peak_memory_mb"]) for row in rows),
        "device": str(state.device),
        "environment": read_yaml(run / ENVIRONMENT),
        "config": to_plain(for_others(config)),
    }  # fmt: skip


def _of_teachers(state: State) -> list[dict[str, Any]]:
    """How good each teacher is on the validation images, seen as itself sees an image."""
    assert state.teachers
    config, found = state.config, []
    for name, teacher in zip(for_others(config).teacher, state.teachers.each, strict=True):
        preprocess = teacher.info.preprocess
        batch = config.batch // config.optim.accumulate
        loader = eval_loader(state.val_images, preprocess, batch, config.data.workers)
        scores = score(
            teacher.network, loader, classes=len(state.info.classes), device=state.device, total=len(state.val_images)
        )
        probe = {} if math.isnan(teacher.cross_validated) else {"cross_validated": round(teacher.cross_validated, 4)}
        found.append({"name": name, "top1": round(scores.top1, 4), "loss": round(scores.loss, 5), **probe})
    return found


def _of_heads(scores: dict[str, Scores]) -> dict[str, Any]:
    """Of several decision heads, by network: each one's figures, the class token's first, and how much they differ."""
    return {
        name: {
            "top1": (100 * (heads.predicted == found.labels[:, None]).mean(0)).round(4).tolist(),
            "loss": heads.loss.round(5).tolist(),
            "disagreement": round(heads.disagreement, 4),
            "error_correlation": None if math.isnan(alike) else round(alike, 4),
        }
        for name, found in scores.items()
        if (heads := found.heads)
        for alike in [heads.error_correlation(found.labels)]
    }


def for_others(config: Config) -> Config:
    """A settled configuration as records have it: files by name, without the folders of this machine."""
    data = dataclasses.replace(
        config.data,
        source=config.data.source_name,
        classes=Path(config.data.classes).name,
        unlabelled=tuple(Path(source).name for source in config.data.unlabelled),
    )
    teacher = tuple(map(_without_folders, config.teacher))
    return dataclasses.replace(config, weights=_without_folders(config.weights), teacher=teacher, data=data)


def _without_folders(weights: str) -> str:
    """A weights file's name and its folder's, for records that others read; "" of none."""
    return "/".join(Path(weights).parts[-2:])
