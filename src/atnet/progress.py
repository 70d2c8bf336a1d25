"""Progress on the terminal: a bar, or where there is none, a line from time to time."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 60.0
log = logging.getLogger("atnet")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def counted(count: int, what: str) -> str:
    """1 epoch, 1,200 epochs, 3 classes."""
    return f"{count:,} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"


@contextmanager
def working(title: str) -> Iterator[None]:
    """A sign of life on a terminal, for what cannot be counted."""
    if log.isEnabledFor(logging.INFO):
        with Console(stderr=True).status(title):
            yield
    else:
        yield


@contextmanager
def progress_bar(title: str, total: int, done: int = 0, eta: bool = True) -> Iterator[Callable[..., None]]:
    """A bar that shows itself after a second; the yielded call advances it: advance(1, note="loss 0.3").

    eta: say when it will be done; False where the note does.
    In a notebook too; where there is neither, a line each minute instead.
    """
    console = Console(stderr=True)
    seen = console.is_jupyter or (console.is_terminal and log.isEnabledFor(logging.INFO))
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(40 if eta else 16),
        MofNCompleteColumn(),
        *([TimeRemainingColumn()] if eta else []),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not seen,
    )
    task = progress.add_task(title, total=total, completed=done, note="")
    began = printed = time.monotonic()
    shown = False

    def advance(count: int, note: str | None = None) -> None:
        nonlocal done, printed, shown
        done += count
        progress.update(task, completed=done)
        if note is not None:
            progress.update(task, note=note)
        now = time.monotonic()
        if not shown and now - began > 1:
            progress.start()
            shown = True
        if not console.is_terminal and not console.is_jupyter and now - printed >= LINE_SECONDS:
            log.info("%s  %s/%s  %s", title, f"{done:,}", f"{total:,}", note or "")
            printed = now

    try:
        yield advance
    finally:
        if shown:
            progress.stop()
