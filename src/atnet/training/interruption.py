"""Ctrl-C, and the signals by which systems stop a job: between two steps, never inside one."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

SIGNALS = [
    number for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if (number := getattr(signal, name, None)) is not None
]


class Interruption:
    """While entered, a signal of `SIGNALS` raises KeyboardInterrupt at once, or at the end of a held block if in one.

    After the first, further ones do nothing: there is a checkpoint to be written.
    at_once: False for one of several processes: they stop together, so a signal is only noted, and interrupts nothing
    but an `interruptible` block.
    Does nothing outside the main thread, where Python delivers no signals; leaves ignored signals ignored.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.signal: int | None = None
        """The one that came."""
        self._at_once = at_once
        self._holding = not at_once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A block to be finished first."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = not self._at_once
        if self._at_once and self.signal is not None:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal ends at once, also one that came before it."""
        self._holding = False
        try:
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._holding = not self._at_once

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        self.signal = self.signal or number
        if first and not self._holding:
            raise KeyboardInterrupt
