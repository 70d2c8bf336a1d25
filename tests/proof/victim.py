"""`atnet` with an accident: python victim.py SIGNAL PLACE COUNT LOG -- ARGUMENTS

At the COUNT-th time that PLACE is reached, the process gets SIGNAL from itself. The loss of each step goes to LOG, a
line a step. PLACE is one of `PLACES`, or "nowhere".
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atnet.files
from atnet.cli import main
from atnet.training import checkpoint, loop, state


def accident(number: signal.Signals, count: int, half: Callable[..., None] | None = None) -> Callable[..., Any]:
    """A wrapper of a function: at its count-th call, half of its work and the signal."""
    calls = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*words: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                if half:
                    half(*words)
                os.kill(os.getpid(), number)
            return function(*words, **named)

        return called

    return wrap


def write_half(path: Path, content: bytes) -> None:
    with path.with_name(f".{path.name}.{'0' * 16}.tmp").open("wb") as file:
        file.write(content[: len(content) // 2])


def second_parts_only(wrapped: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def called(state: Any, pixels: Any, labels: Any, part: int) -> Any:
        return (wrapped if part % 2 else function)(state, pixels, labels, part)

    return called


PLACES = ("step", "accumulation", "data", "evaluation", "write", "rename", "save")


def prepare(place: str, number: signal.Signals, count: int) -> None:
    if place == "step":
        loop.train_step = accident(number, count)(loop.train_step)  # type: ignore[assignment]
    elif place == "accumulation":
        state.prepare = second_parts_only(accident(number, count)(state.prepare), state.prepare)  # type: ignore[assignment]
    elif place == "data":
        real = loop.batches_of

        def batches(loader: Any) -> Any:
            for batch in real(loader):
                reached()
                yield batch

        reached = accident(number, count)(lambda: None)
        loop.batches_of = batches  # type: ignore[assignment]
    elif place == "evaluation":
        loop.score_together = accident(number, count)(loop.score_together)
    elif place == "write":
        checkpoint.write_whole = accident(number, count, write_half)(checkpoint.write_whole)  # type: ignore[assignment]
    elif place == "rename":
        atnet.files.os.replace = accident(number, count)(os.replace)  # type: ignore[assignment]
    elif place == "save":
        loop._save = accident(number, count)(loop._save)  # type: ignore[assignment]


if __name__ == "__main__":
    name, place, count, losses = sys.argv[1:5]
    prepare(place, signal.Signals[name], int(count))
    take = loop.train_step

    def logging(*words: Any) -> Any:
        done = take(*words)
        with open(losses, "a", encoding="utf-8") as file:
            file.write(f"{words[0].step} {done.loss!r}\n")
        return done

    loop.train_step = logging  # type: ignore[assignment]
    main(sys.argv[6:])
