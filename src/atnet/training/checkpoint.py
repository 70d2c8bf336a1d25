"""A checkpoint to go on from."""

import pickle
from pathlib import Path
from typing import Any

import torch

from atnet.errors import ConfigError
from atnet.files import write_whole
from atnet.measure.record import CHECKPOINT


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Replaces the run's checkpoint by the given state of tensors and plain values."""
    beside = run / (CHECKPOINT + ".part")
    torch.save(state, beside)
    write_whole(run / CHECKPOINT, beside.read_bytes())
    beside.unlink()


def load_checkpoint(run: Path) -> dict[str, Any]:
    """The run's state; runs no code from the file. Raises ConfigError if there is none or it is damaged."""
    path = run / CHECKPOINT
    if not path.is_file():
        raise ConfigError(f"{run}: no checkpoint in it, so there is nothing to resume; start the run anew")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise ConfigError(f"{path}: damaged, cannot resume from it ({str(error).splitlines()[0]})") from error
    return state
