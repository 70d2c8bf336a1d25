"""The device that a run uses, its random generators, and its memory when that runs out."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import torch

from atnet.errors import ConfigError, TrainingError

# cuBLAS gives the same bits each time so, which --deterministic needs; it is read once, at the first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_MOST_KEPT = 32 * 1024 * 1024
"""Up to which size glibc comes to keep what is freed by itself, and no longer does once it was told anything: then
each larger than 128 kB is fetched page by page, and networks are three times as slow."""


def present_devices() -> list[str]:
    """Those of cuda, mps and cpu that torch sees, in the order in which auto takes them."""
    seen = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, here in seen.items() if here]


def use_threads(count: int) -> None:
    """As many CPU threads for networks in this process; 0: as they are. Raises ConfigError if there are fewer."""
    if count < 0:
        raise ConfigError(f"--threads {count}: use 1 or more, or 0 for all")
    if count:
        torch.set_num_threads(count)


def pick_device(name: str) -> torch.device:
    """auto is cuda, then mps, then cpu; behind torchrun the GPU of this process's number on its machine, and no mps.

    Raises ConfigError if the one named is not there.
    """
    present = present_devices()
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if launched and os.environ.get("WORLD_SIZE", "1") != "1":  # the processes average gradients by NCCL or gloo
        present = [one for one in present if one != "mps"]
    if name == "auto":
        name = present[0]
    if name not in present:
        raise ConfigError(f"device={name}: torch does not see one; here are: {', '.join(present)}")
    if name != "cuda":
        return torch.device(name)
    if not launched:
        return torch.device(name, torch.cuda.current_device())
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ:  # to each process its own
        number = 0
    if number >= count:
        raise ConfigError(
            f"process {number} of this machine has no GPU of its own, torch sees {count}: "
            "start as many processes as there are GPUs, or use --device cpu"
        )
    torch.cuda.set_device(number)
    return torch.device(name, number)


def multiplies_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products are bf16: where asked for, or under auto, where the GPU or CPU has the arithmetic."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def in_precision(device: torch.device, bf16: bool) -> torch.autocast:
    """Around a forward pass: its matrix products are bf16, or not."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


@contextlib.contextmanager
def cuda_settings(device: torch.device, *, deterministic: bool, fp32: bool) -> Iterator[None]:
    """While a GPU trains: a search for its fastest convolutions, or with `deterministic` the same bits each time.

    fp32: whether fp32 was asked for; else products that stay in it may be TF32.  On another device it does nothing.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, products = torch.backends.cudnn, torch.get_float32_matmul_precision()
    strict = torch.are_deterministic_algorithms_enabled()
    warning = torch.is_deterministic_algorithms_warn_only_enabled()
    if deterministic:
        torch.use_deterministic_algorithms(True)
    if not fp32:
        torch.set_float32_matmul_precision("high")
    try:
        with cudnn.flags(enabled=True, benchmark=not deterministic, deterministic=deterministic, allow_tf32=not fp32):
            yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise ConfigError(f"--deterministic: {str(error).splitlines()[0]}; use --no-deterministic") from error
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warning)
        torch.set_float32_matmul_precision(products)


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
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1 if keep else 2 * _MOST_KEPT)
        libc.mallopt(_M_MMAP_THRESHOLD, _MOST_KEPT)
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
