"""Checkpoints to go on from: whole or absent, each checked against the hash in its name when it is read."""

import hashlib
import io
import logging
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atnet.errors import ConfigError, TrainingError
from atnet.files import write_whole
from atnet.measure.record import CHECKPOINTS, checkpoints

log = logging.getLogger("atnet")

DIGITS = 16
"""Of the SHA-256 hash, in a checkpoint's name."""


def save_checkpoint(run: Path, state: dict[str, Any], keep: int) -> Path:
    """Writes checkpoints/step-STEP-epoch-EPOCH-HASH.pt, then removes all but the `keep` newest; returns its path.

    state: tensors and plain values, with "step" and "epoch", those done, among them.
    Raises TrainingError, and writes nothing, if a tensor is not finite; OSError if the disk does not take it.
    """
    for name, tensor in _tensors(state):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"{run}: not saved after step {state['step']}: {name} is not finite")
    content = io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()[:DIGITS]
    path = run / CHECKPOINTS / f"step-{state['step']:010}-epoch-{state['epoch']:06}-{digest}.pt"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, content.getbuffer())
    others = [other for other in checkpoints(run) if other != path]
    older = [other for other in others if other.name < path.name]
    # Newer ones are damaged, or the run would have gone on from them; unfinished ones are of a process that was killed.
    for other in {*others, *path.parent.glob("*.tmp")} - set(older[: keep - 1]):
        other.unlink()
    return path


def saved_step(checkpoint: Path) -> int:
    """The steps that were done, by its name."""
    return int(checkpoint.name.split("-")[1])


def load_checkpoint(run: Path) -> dict[str, Any]:
    """The run's newest sound state; runs no code from the file. What is damaged is named and passed over.

    Raises ConfigError if there is none.
    """
    found = checkpoints(run)
    if not found:
        raise ConfigError(f"{run}: no checkpoint in it, so there is nothing to resume; start the run anew")
    for path in found:
        try:
            state = read_checkpoint(path)
        except ConfigError as error:
            log.warning("%s", error)
            continue
        if path != found[0]:
            log.warning("%s: the newest sound one, so what was trained after it is trained again", path)
        return state
    raise ConfigError(f"{run}: every checkpoint in it is damaged, so there is nothing to resume; start the run anew")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One checkpoint's state. Raises ConfigError if its content is not what its name says."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:DIGITS] != path.stem.rpartition("-")[2]:
        raise ConfigError(f"{path}: damaged, its SHA-256 hash is not the one in its name")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, ValueError) as error:
        raise ConfigError(f"{path}: damaged, or no checkpoint ({error})") from error
    if unpacked > len(content):
        raise ConfigError(f"{path}: packed, which no checkpoint is")  # or it could eat the memory
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: damaged, or no checkpoint ({str(error).splitlines()[0]})") from error
    return state


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors inside, each with the way to it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(part, f"{name}.{key}".removeprefix("."))
