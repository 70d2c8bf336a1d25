"""What this machine can do at most, measured: matrix products, and memory's bandwidth."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from atnet.bench.timing import timer
from atnet.progress import counted

SIDE, LARGE_SIDE, COPIED, SECONDS = 1024, 8192, 2**26, 0.5


@dataclass(frozen=True, kw_only=True)
class Roof:
    """threads, bf16, device: what it was measured in.  flops: operations a second, two to a multiply-add.
    bytes: a second.
    """

    threads: int
    bf16: bool
    flops: float
    bytes: float
    device: str = "cpu"

    def __str__(self) -> str:
        where = f"in {counted(self.threads, 'thread')}" if self.device == "cpu" else f"on {self.device}"
        kind = "bf16 GFLOP/s" if self.bf16 else "GFLOP/s"
        return f"at most {self.flops / 1e9:.0f} {kind} and {self.bytes / 1e9:.0f} GB/s {where}"


@functools.cache
def measure_roof(threads: int, *, bf16: bool = False, device: str = "cpu") -> Roof:
    """The best of half a second each: products of square matrices, copies of 256 MB (read and written).

    bf16: whether the products are, instead of fp32.  device: cpu, of 1024 x 1024 matrices, or cuda or mps, of
    8192 x 8192.

    Source: Williams et al. 2009, "Roofline: an insightful visual performance model".
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        side = SIDE if device == "cpu" else LARGE_SIDE
        dtype = torch.bfloat16 if bf16 else torch.float32
        left, right, product = torch.rand(3, side, side, device=device).to(dtype)
        source, target = torch.zeros(COPIED, device=device), torch.zeros(COPIED, device=device)
        timed = timer(device)
        return Roof(
            threads=threads,
            bf16=bf16,
            flops=2 * side**3 / _least(lambda: timed(lambda: torch.mm(left, right, out=product))),
            bytes=2 * 4 * COPIED / _least(lambda: timed(lambda: target.copy_(source))),
            device=device,
        )
    finally:
        torch.set_num_threads(before)


def _least(seconds: Callable[[], float]) -> float:
    """The fewest seconds that it took."""
    least, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        least = min(least, seconds())
    return least
