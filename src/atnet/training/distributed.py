"""Several processes that train one network: who is which, and what they tell each other.

One process alone is rank 0 of 1, and tells itself. `torchrun` starts several, and says so by the environment.
"""

import _thread
import contextlib
import datetime
import logging
import os
import signal as signals
import threading
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

MEETING, STEP = datetime.timedelta(seconds=60), datetime.timedelta(seconds=60)
WAITING, WORK = datetime.timedelta(minutes=10), datetime.timedelta(hours=2)
"""How long a process waits for the others to be started, in the midst of a step, for their data before it, and for what
the first one alone does: a folder listed over a network, an epoch evaluated."""
STOP, LOOKING, LONGEST_NAP = "atnet/stop", 0.5, 0.002  # key of the store; seconds
Told = TypeVar("Told")
log = logging.getLogger("atnet")


class _Joined:
    """What the processes of a group share: the groups by patience, and the store by which one tells all to stop."""

    store: Any = None
    backend = "gloo"
    steps: Any = None
    waiting: Any = None


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started, if it did, and leaves them; only the first goes on logging.

    NCCL for what lies on GPUs, gloo for the rest: what the processes tell each other, and gradients on CPUs.
    A process that is waited for longer than `STEP` in a step counts as dead, or than `WAITING` before it.
    """
    if torch.cuda.is_available() and dist.is_nccl_available():
        _Joined.backend = "cpu:gloo,cuda:nccl"
    if dist.is_initialized() and _Joined.store is None:  # by who calls us
        name = broadcast(uuid.uuid4().hex)
        _join(dist.PrefixStore(name, dist.distributed_c10d._get_default_store()))  # type: ignore[attr-defined]
        try:
            yield
        finally:
            _leave()
        return
    if not is_launched() or dist.is_initialized():
        yield
        return
    try:
        store, number, world = next(dist.rendezvous("env://", timeout=MEETING))  # type: ignore[attr-defined]
        store = dist.PrefixStore(_round(store, number, world), store)  # type: ignore[attr-defined]
        dist.init_process_group(_Joined.backend, store=store, rank=number, world_size=world, timeout=WORK)
        _join(store)
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
        _leave()


def _join(store: Any) -> None:
    _Joined.store = store
    _Joined.waiting = dist.new_group(timeout=WAITING, backend="gloo")


def _leave() -> None:
    _Joined.store = _Joined.steps = _Joined.waiting = None


def _round(store: Any, number: int, world: int) -> str:
    """A name for this meeting of the processes, the same for all of them, that none before it had.

    After a restart, torchrun's store still has the addresses of processes that are gone (torch 2.14, where the round is
    no longer in the keys), and NCCL and gloo would wait for them. So each process says a word of its own, the first one
    repeats what it heard with the name, and whoever finds its word in that answers with the name.
    Raises TimeoutError if they are not all there within a minute.
    """
    word, deadline = uuid.uuid4().hex, time.monotonic() + MEETING.total_seconds()

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


def data_parallel(model: nn.Module, slow: bool = False) -> nn.Module:
    """The network whose backward pass averages gradients over the processes; itself if there is one.

    slow: a step may take minutes on one of them, which compiles.
    """
    if world_size() == 1:
        return model
    all_gather_object(None)  # all are here, so that a short wait is enough
    _Joined.steps = dist.new_group(timeout=WAITING if slow else STEP, backend=_Joined.backend)
    return DistributedDataParallel(model, forward_sync_buffers=False, process_group=_Joined.steps)


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
    dist.all_gather(found, tensor.contiguous(), group=_Joined.steps)
    return found


def agree_to_stop(signal: Callable[[], int]) -> int:
    """Before a step, when this process has its data or a signal came: the signal that any process was sent, 0 if none.

    All of them get the same answer, so none begins a step that another one will not take part in. Whoever gets a signal
    while it waits tells the others by the store, for one of them may wait for data: see `hearing_others`.
    """
    mine, told = torch.tensor([signal()]), False
    found = [torch.empty_like(mine) for _ in range(world_size())]
    work: Any = dist.all_gather(found, mine, group=_Joined.waiting, async_op=True)
    nap = 0.00005
    while not work.is_completed():  # and not wait(), in which Python would see no signal
        if not told and (number := signal()):
            _Joined.store.set(STOP, str(number))
            told = True
        time.sleep(nap)
        nap = min(2 * nap, LONGEST_NAP)
    work.wait()
    return int(torch.stack(found).max())


@contextmanager
def hearing_others() -> Iterator[None]:
    """While entered, a signal that another process was sent, as `agree_to_stop` tells of it, comes to this one too."""
    if world_size() == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    done, main, store = threading.Event(), threading.get_ident(), _Joined.store

    def listen() -> None:
        with contextlib.suppress(dist.DistError, RuntimeError):  # the store went with the process that held it
            while not done.wait(LOOKING):
                if store.check([STOP]):
                    number = signals.Signals(int(store.get(STOP)))
                    if hasattr(signals, "pthread_kill"):
                        signals.pthread_kill(main, number)  # a real one, which ends a wait too
                    else:
                        _thread.interrupt_main(number)
                    return

    listener = threading.Thread(target=listen, name="atnet-stop", daemon=True)
    listener.start()
    try:
        yield
    finally:
        done.set()
        listener.join(timeout=2)  # and no longer: the machine that holds the store may be gone without a word


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
