"""What this machine can do at most, measured: matrix products, and memory's bandwidth."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from atnet.progress import counted

SIDE, COPIED, SECONDS = 1024, 2**26, 0.5


@dataclass(frozen=True, kw_only=True)
class Roof:
    """threads, bf16: what it was measured in.  flops: operations a second, two to a multiply-add.  bytes: a second."""

    threads: int
    bf16: bool
    flops: float
    bytes: float

    def __str__(self) -> str:
        threads = counted(self.threads, "thread")
        kind = "bf16 GFLOP/s" if self.bf16 else "GFLOP/s"
        return f"at most {self.flops / 1e9:.0f} {kind} and {self.bytes / 1e9:.0f} GB/s in {threads}"


@functools.cache
def measure_roof(threads: int, *, bf16: bool = False) -> Roof:
    """The best of half a second each: products of 1024 x 1024 matrices, copies of 256 MB (read and written).

    bf16: whether the products are, instead of fp32.

    Source: Williams et al. 2009, "Roofline: an insightful visual performance model".
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right, product = torch.rand(3, SIDE, SIDE, dtype=torch.bfloat16 if bf16 else torch.float32)
        source, target = torch.zeros(COPIED), torch.zeros(COPIED)
        return Roof(
            threads=threads,
            bf16=bf16,
            flops=2 * SIDE**3 / _least(lambda: torch.mm(left, right, out=product)),
            bytes=2 * 4 * COPIED / _least(lambda: target.copy_(source)),
        )
    finally:
        torch.set_num_threads(before)


def _least(work: Callable[[], object]) -> float:
    """The fewest seconds that it took."""
    least, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - began)
    return least
