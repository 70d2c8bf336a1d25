"""Progress bars on the terminal, nothing where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar that shows itself after a second; the yielded call advances it: advance(1, note="loss 0.3")."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task(title, total=total, note="")
    began = time.monotonic()
    shown = False

    def advance(count: int, note: str | None = None) -> None:
        nonlocal shown
        progress.update(task, advance=count)
        if note is not None:
            progress.update(task, note=note)
        if not shown and time.monotonic() - began > 1:
            progress.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            progress.stop()
