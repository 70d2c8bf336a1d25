"""What goes wrong in training: images that cannot be read, listed; steps that were not taken, because a loss, a
gradient or a statistic was not finite, noted and played again.
"""

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atnet.data.classes import printable
from atnet.data.loader import BadSample, TrainSet, batch_order, collate
from atnet.data.order import Draw
from atnet.data.pack import BAD_FILES, write_bad_files
from atnet.errors import ConfigError, DataError, TrainingError
from atnet.files import csv_table, quoted, write_whole
from atnet.models.load import load, to_safetensors
from atnet.run.record import open_run, own_folder, read_rows
from atnet.training import distributed
from atnet.training.state import State, train_step

log = logging.getLogger("atnet")

FOLDER, LIST = "faults", "faults.csv"
KEPT = 3
"""How many faults of a run keep the network as it was."""


def note_bad(state: State, run: Path, holes: list[BadSample]) -> None:
    """Lists images of a step that could not be read. Raises DataError if they became too many.

    holes: of this process's share.  To be called in all processes, if there are holes in one.
    """
    found = {hole.image: hole.reason for share in distributed.all_gather_object(holes) for hole in share}
    new = {image: reason for image, reason in found.items() if image not in state.bad}
    if not new:
        return
    state.bad |= new
    count, total = len(state.bad), len(state.shown)
    if distributed.rank() == 0:
        write_bad_files(run / BAD_FILES, (("train", *known) for known in state.bad.items()))
        for reason in new.values():
            log.warning("skipped: %s", printable(reason))
    allowed = state.config.data.max_bad
    if count > max(allowed * total, 1 if allowed else 0):
        raise DataError(
            f"{count:,} of {total:,} training images could not be read, more than --data.max-bad {allowed:g} allows; "
            f"{run / BAD_FILES} lists them, `atnet doctor` finds all; mend or remove them"
        )


def note_fault(state: State, run: Path, fault: str) -> None:
    """Writes down a step that was not taken: its images and seed, and the network for `replay`.

    Raises TrainingError if it is one too many in a row.
    """
    epoch = state.step // state.steps_per_epoch
    first = _write_down(state, run, epoch, fault) if distributed.rank() == 0 else state.step
    state.faults += 1
    if state.faults >= state.config.optim.max_faults:
        raise TrainingError(
            f"{fault} at step {state.step} (epoch {epoch + 1}), and {state.faults} steps in a row were not taken: "
            f"lower --optim.lr {state.config.optim.lr:g} or lengthen --schedule.warmup; {run / FOLDER / LIST} says "
            f"which images they were of, `atnet replay {quoted(run)} {first}` what happened first"
        )


def _write_down(state: State, run: Path, epoch: int, fault: str) -> int:
    """A line, and of the first ones the network; returns the first faulty step."""
    folder = own_folder(run, FOLDER)
    samples = " ".join(str(draw.image) for draw in _batch(state, state.step))
    row: dict[str, Any] = {
        "step": state.step,
        "epoch": epoch + 1,
        "seed": state.config.seed,
        "fault": fault,
        "images": samples,
    }
    rows: list[dict[str, Any]] = [
        old for old in read_rows(folder / LIST, "step") if old["step"].isdecimal() and float(old["step"]) < state.step
    ]  # a line that is damaged is left out: it would end the training
    rows.append(row)
    if len(rows) <= KEPT:
        write_whole(folder / f"step-{state.step}.safetensors", to_safetensors(state.model.state_dict(), state.info))
    write_whole(folder / LIST, csv_table(rows).encode())
    return int(rows[0]["step"])


def _batch(state: State, step: int) -> list[Draw]:
    """Which images a step shows."""
    return next(iter(batch_order(state.shown, state.config, step, step + 1)))


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a step does when it is played again.

    images: their files.  fault: what was not finite, "" if now all is.
    layer: the first one whose output was not finite, "" if none.
    gradients: the parameters whose gradient was not finite, from the output on.
    """

    step: int
    images: tuple[str, ...]
    loss: float
    fault: str
    layer: str
    gradients: tuple[str, ...]


def replay(run: Path, step: int) -> Replay:
    """Plays a step that was not taken again: same network, images, augmentation and seeds.

    Raises ConfigError if the run keeps no network of that step.
    """
    config = open_run(run)
    network = run / FOLDER / f"step-{step}.safetensors"
    if not network.is_file():
        names = [path.stem.removeprefix("step-") for path in (run / FOLDER).glob("step-*.safetensors")]
        kept = sorted(int(name) for name in names if name.isdecimal())
        known = f"those kept are {', '.join(map(str, kept))}" if kept else "every step of it was finite"
        raise ConfigError(f"{run}: step {step} is not among those that can be replayed; {known}")
    state = State(dataclasses.replace(config, compile=False, data=dataclasses.replace(config.data, workers=0)))
    state.teach_teachers()
    state.model.load_state_dict(load(network)[0].state_dict())
    state.step = step
    batch = _batch(state, step)
    samples = state.shown.only([draw.image for draw in batch])
    train_set = TrainSet(samples, state.config)
    pixels, labels, _ = collate([train_set.at(place, draw) for place, draw in enumerate(batch)])
    first: list[str] = []
    faulty: dict[str, None] = {}

    def look(name: str, module: nn.Module) -> None:
        def after(module: nn.Module, given: object, out: object) -> None:
            if isinstance(out, Tensor) and not first and not bool(torch.isfinite(out).all()):
                first.append(name)

        module.register_forward_hook(after)

    def watch(name: str, parameter: nn.Parameter) -> None:
        def arrived(gradient: Tensor) -> None:
            if not bool(torch.isfinite(gradient).all()):
                faulty.setdefault(name)

        parameter.register_hook(arrived)  # type: ignore[no-untyped-call]

    for name, module in state.model.named_modules():
        if not any(module.children()) and not isinstance(module, nn.Sequential):
            look(name, module)
    for name, parameter in state.model.named_parameters():
        if parameter.requires_grad:
            watch(name, parameter)
    state.train_mode()
    done = train_step(state, pixels, labels)
    return Replay(
        step=step,
        images=tuple(samples.ids),
        loss=done.loss if math.isfinite(done.loss) else float("nan"),
        fault=done.fault,
        layer=first[0] if first else "",
        gradients=tuple(faulty),
    )
