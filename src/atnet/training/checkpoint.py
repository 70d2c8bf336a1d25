"""Checkpoints to go on from: whole or absent, each checked against the hash in its name when it is read."""

import hashlib
import io
import logging
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atnet.errors import ConfigError, TrainingError
from atnet.files import read_regular, write_whole
from atnet.run.record import (
    CHECKPOINTS,
    WRITTEN,
    checkpoints,
    discard,
    discard_unfinished,
    own_folder,
    written_checkpoints,
)

log = logging.getLogger("atnet")

DIGITS = 16
"""Of the SHA-256 hash, in a checkpoint's name."""

MAX_BYTES = 50_000_000_000
"""Of a checkpoint whose network is not known."""


def save_checkpoint(run: Path, state: dict[str, Any], keep: int) -> Path:
    """Writes checkpoints/step-STEP-epoch-EPOCH-HASH.pt, removes the run's others but `keep` - 1; returns its path.

    state: tensors and plain values, with "step" and "epoch", those done, among them.
    Raises TrainingError, and writes nothing, if a tensor is not finite; OSError if the disk does not take it.
    """
    for name, tensor in _tensors(state):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"{run}: not saved after step {state['step']}: {name} is not finite")
    content = io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()[:DIGITS]
    folder = own_folder(run, CHECKPOINTS)
    path = folder / f"step-{state['step']:010}-epoch-{state['epoch']:06}-{digest}.pt"
    write_whole(path, content.getbuffer())
    _tidy(run, path, keep)
    return path


def _tidy(run: Path, newest: Path, keep: int) -> None:
    """Removes all checkpoints that this run wrote but the newest and the `keep` - 1 before it, and what was unfinished.

    Those after the newest are damaged, or the run would have gone on from them. Others' files stay.
    """
    folder = newest.parent
    ours = written_checkpoints(run) | {newest.name}
    others = [path for path in checkpoints(run) if path.name in ours - {newest.name} and not path.is_symlink()]
    older = [path for path in others if path.name < newest.name]
    for path in set(others) - set(older[: keep - 1]):
        if path.is_file():
            discard(path)
    discard_unfinished(folder)
    left = sorted(ours.intersection(os.listdir(folder)))
    write_whole(folder / WRITTEN, "".join(f"{name}\n" for name in left).encode())


def saved_step(checkpoint: Path) -> int:
    """The steps that were done, by its name."""
    return int(checkpoint.name.split("-")[1])


def load_checkpoint(
    run: Path, restore: Callable[[dict[str, Any]], None] = lambda state: None, most: int = MAX_BYTES
) -> dict[str, Any]:
    """The run's newest sound state; runs no code from the file. What is damaged is named and passed over.

    restore: takes the state, and raises an error if it is none of this run's; then the one before is tried.
    most: bytes; a larger file is none.
    Raises ConfigError if there is none, or checkpoints/ is a link.
    """
    reasons = []
    found = require_checkpoints(run)
    for path in found:
        try:
            state = read_checkpoint(path, most)
            _restore(restore, state, path)
        except ConfigError as error:
            reasons.append(error)
            log.warning("passed over: %s", error)
            continue
        if path != found[0]:
            log.warning("%s: the newest sound one, so what was trained after it is trained again", path)
        return state
    others = [reason for reason in reasons if isinstance(reason, _OtherRunError)]
    if others:
        raise ConfigError(str(others[0]))
    raise ConfigError(f"{run}: every checkpoint in it is damaged, so there is nothing to resume; start the run anew")


def require_checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, the newest first. Raises ConfigError if there is none, or checkpoints/ is a link."""
    own_folder(run, CHECKPOINTS)
    found = checkpoints(run)
    if not found:
        raise ConfigError(f"{run}: no checkpoint in it, so there is nothing to resume; start the run anew")
    return found


class _OtherRunError(ConfigError):
    """A sound checkpoint that does not suit the run as it is now: its dataset changed, for example."""


def _restore(restore: Callable[[dict[str, Any]], None], state: dict[str, Any], path: Path) -> None:
    try:
        restore(state)
    except ConfigError as error:
        raise _OtherRunError(str(error)) from error
    except Exception as error:  # whatever a mapping of tensors and plain values can be wrong in
        raise ConfigError(f"{path}: no state of this run ({type(error).__name__}: {error})") from error


def read_checkpoint(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """One checkpoint's state. Raises ConfigError if its content is not what its name says, or it is no mapping."""
    try:
        content = read_regular(path, most)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: a link to nowhere") from error
    if hashlib.sha256(content).hexdigest()[:DIGITS] != path.stem.rpartition("-")[2]:
        raise ConfigError(f"{path}: damaged, its SHA-256 hash is not the one in its name")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise ConfigError(f"{path}: damaged, or no checkpoint ({error})") from error
    if unpacked > len(content):
        raise ConfigError(f"{path}: packed, which no checkpoint is")  # or it could eat the memory
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # its reader of pickles raises what Python happens to raise on nonsense
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{path}: damaged, or no checkpoint ({said})") from error
    if not isinstance(state, dict):
        raise ConfigError(f"{path}: no checkpoint, for it holds {type(state).__name__}")
    for name, tensor in _tensors(state):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{path}: {name} is not finite")
    return state


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors inside, each with the way to it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(part, f"{name}.{key}".removeprefix("."))
