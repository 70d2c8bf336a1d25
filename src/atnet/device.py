"""The device that a run uses, its random generators, and its memory when that runs out."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch

from atnet.errors import ConfigError, TrainingError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h; its defaults are the two values of keep=False below


def pick_device(name: str) -> torch.device:
    """auto is cuda, then mps, then cpu. Raises ConfigError if the one named is not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, here in present.items() if here)
    if not present.get(name, False):
        here = ", ".join(device for device, there in present.items() if there)
        raise ConfigError(f"device={name}: torch does not see one; here are: {here}")
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def multiplies_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products are bf16: where asked for, or under auto, where the GPU or CPU has the arithmetic."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's generator on the CPU and on the device.

    Unlike torch.manual_seed it leaves other devices alone: before CUDA is initialised, that call
    queues a stack trace each time, which at each step costs time and memory without end.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def keep_freed_memory(device: torch.device, *, keep: bool) -> None:
    """Has glibc keep what is freed for the next allocation, or give it back to the system, now and from now on.

    A training step on a CPU frees and takes the same gigabyte again and again; given back and fetched page by
    page, that is up to a tenth of its time. On another device, or without glibc,
    it does nothing.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if libc and hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_MAX, 0 if keep else 65536)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1 if keep else 128 * 1024)
        if not keep:
            libc.malloc_trim(0)


@contextlib.contextmanager
def naming_shortage(what: str, remedy: str) -> Iterator[None]:
    """Makes torch's errors of a full memory, of a GPU's or the machine's, a TrainingError with the remedy."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        raise TrainingError(f"out of memory with {what}: {remedy}") from error
