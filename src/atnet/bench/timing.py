"""What times a piece of work. Free of torch where the work is a CPU's."""

import time
from collections.abc import Callable
from typing import Any


def timer(device: str) -> Callable[[Callable[[], object]], float]:
    """What gives the seconds that some work takes: on a GPU by its own events around it, else by the clock."""
    if device == "cpu":
        return _by_clock
    import torch

    kind: Any = torch.cuda.Event if device == "cuda" else torch.mps.event.Event
    start, end = kind(enable_timing=True), kind(enable_timing=True)

    def by_events(work: Callable[[], object]) -> float:
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return by_events


def _by_clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
