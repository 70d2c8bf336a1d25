"""Several processes that train one network: who is which, and what they tell each other.

One process alone is rank 0 of 1, and tells itself. `torchrun` starts several, and says so by the environment.
"""

import datetime
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from atnet.errors import AtnetError, ConfigError, TrainingError

TIMEOUT = datetime.timedelta(seconds=60)
Told = TypeVar("Told")
log = logging.getLogger("atnet")


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started, if it did, and leaves them; only the first goes on logging.

    NCCL where there are GPUs, gloo elsewhere.  A process that is waited for longer than a minute counts as dead.
    """
    if not is_launched() or dist.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        store, number, world = next(dist.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
        store = dist.PrefixStore(_round(store, number, world), store)  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=number, world_size=world, timeout=TIMEOUT)
    except (dist.DistError, TimeoutError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(f"the processes did not all meet at {place} within a minute: is it reachable?") from error
    level = log.level
    if rank():
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
        dist.destroy_process_group()


def _round(store: Any, number: int, world: int) -> str:
    """A name for this meeting of the processes, the same for all of them, that none before it had.

    After a restart, torchrun's store still has the addresses of processes that are gone (torch 2.14, where the round is
    no longer in the keys), and NCCL and gloo would wait for them. So each process says a word of its own, the first one
    repeats what it heard with the name, and whoever finds its word in that answers with the name.
    Raises TimeoutError if they are not all there within a minute.
    """
    word, deadline = uuid.uuid4().hex, time.monotonic() + TIMEOUT.total_seconds()

    def read(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    store.set(f"atnet/word/{number}", word)
    others = range(1, world)
    while time.monotonic() < deadline:
        if number == 0:
            heard = " ".join(read(f"atnet/word/{other}") for other in others)
            store.set("atnet/round", f"{word} {heard}")
            if all(read(f"atnet/answer/{other}") == word for other in others):
                return word
        else:
            name, *heard_words = read("atnet/round").split() or [""]
            if word in heard_words:
                store.set(f"atnet/answer/{number}", name)
                return name
        time.sleep(0.02)
    raise TimeoutError(f"process {number} of {world} was left alone")


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_distributed() -> bool:
    """Whether torchrun started more than this process, also before they are joined."""
    return is_launched() and os.environ.get("WORLD_SIZE", "1") != "1"


def rank() -> int:
    """This process's number, from 0; the first one writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the first, also before and after they are joined."""
    return os.environ.get("RANK", "0") == "0"


def is_restarted() -> bool:
    """Whether torchrun started the processes again after one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def require_shares(parts: int) -> None:
    """Raises ConfigError if the parts of a batch cannot be shared evenly by the processes."""
    if parts % world_size():
        fitting = ", ".join(str(n) for n in range(1, parts + 1) if parts % n == 0)
        raise ConfigError(
            f"a batch of {parts} parts (optim.accumulate) cannot be shared by {world_size()} processes: "
            f"use {fitting} of them; the parts are those the run began with, for BatchNorm sees one at a time"
        )


def data_parallel(model: nn.Module) -> nn.Module:
    """The network whose backward pass averages gradients over the processes; itself if there is one."""
    return DistributedDataParallel(model, forward_sync_buffers=False) if world_size() > 1 else model


def averaging(model: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Around a forward and backward pass: whether the gradients are averaged now, or summed up for a later one."""
    if isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return nullcontext()


def all_gather(tensor: Tensor) -> list[Tensor]:
    """The tensor of each process, all of one shape, in the order of their numbers."""
    if world_size() == 1:
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(found, tensor.contiguous())
    return found


def all_gather_object(value: Told) -> list[Told]:
    """A plain value of each process, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    found: list[Told | None] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def broadcast(value: Told) -> Told:
    """The first process's value, for all."""
    if world_size() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found)
    return found[0]


def on_main_process(function: Callable[[], Told]) -> Told:
    """What the first process finds, or the error that it raises, for all."""
    if world_size() == 1:
        return function()
    answer: tuple[Told | None, AtnetError | None] = (None, None)
    if rank() == 0:
        try:
            answer = function(), None
        except AtnetError as raised:
            answer = None, raised
    found, error = broadcast(answer)
    if error is not None:
        raise error
    return found  # type: ignore[return-value]


@contextmanager
def naming_loss() -> Iterator[None]:
    """Makes the error of a process that is no longer there a TrainingError."""
    try:
        yield
    except RuntimeError as error:  # of which torch.distributed's own are
        if world_size() == 1 or not _is_loss(error):
            raise
        raise TrainingError(f"process {rank()} of {world_size()}: another one ended or hangs") from error


def _is_loss(error: Exception) -> bool:
    said = str(error).lower()
    signs = ("connection closed", "connection reset", "broken pipe", "timed out", "gloo", "nccl", "socket")
    return isinstance(error, dist.DistError) or any(sign in said for sign in signs)
