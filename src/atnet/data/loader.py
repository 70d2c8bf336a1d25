"""Batches for training and evaluation: read or cached images, transformed in worker processes."""

import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.sharedctypes import RawValue
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from atnet.config import Config, DataConfig
from atnet.data.augment import Augment
from atnet.data.order import BatchOrder, Draw
from atnet.data.preprocess import Preprocess, resize_shorter
from atnet.data.samples import Samples
from atnet.device import pick_device
from atnet.errors import DataError, TrainingError
from atnet.progress import progress_bar

log = logging.getLogger("atnet")


class BadSample(NamedTuple):
    """An image that cannot be read: its id, and why.  In its batch it has the label NO_LABEL, and no colours."""

    image: str
    reason: str


NO_LABEL = -1
Sample = tuple[Tensor, int, BadSample | None]


READ_AHEAD = 4096  # images that are read before one of them is taken
LONGEST_WAIT, NAP = 1.0, 0.0005
"""Seconds that a loader process leaves the processor to a training step, and between two looks whether it is over."""


class TrainSet(Dataset[Sample]):
    """Augmented training images by draw: uint8 (3, side, side), label, and a hole if it cannot be read.

    free: true while the processor is; until then, but not for long, each image waits. It is a value in shared memory,
    and no lock or event: of these a process that is killed while it waits leaves one that nobody can set again.
    """

    def __init__(self, samples: Samples, config: Config, free: ctypes.c_bool | None = None) -> None:
        data = config.data
        self.free = free
        self.samples = samples
        self.augment = Augment(config)
        self.cached: list[NDArray[np.uint8] | BadSample] | None = None
        if data.cache != "none":
            self.cached = list(read_shrunk(samples, data))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> Sample:
        if self.free is not None:
            end = time.monotonic() + LONGEST_WAIT
            while not self.free.value and time.monotonic() < end:
                time.sleep(NAP)
        return self.at(draw.image, draw)

    def at(self, place: int, draw: Draw) -> Sample:
        """The image at a place among these, as it looks in a draw."""
        side, chance = self.augment.config.train_side(draw.epoch), self.augment.chance(draw)
        try:
            if self.cached:
                found = self.cached[place]
                if isinstance(found, BadSample):
                    raise DataError(found.reason)
                pixels, (box, _) = found, self.augment.crop(found.shape[1], found.shape[0], side, chance)
            else:
                with self.samples.open(place) as image:
                    pixels, box = image.decode(*self.augment.crop(image.width, image.height, side, chance))
            pixels = self.augment(pixels, box, side, chance)
        except DataError as error:
            nothing = torch.zeros(side, side, 3, dtype=torch.uint8)
            return nothing.permute(2, 0, 1), NO_LABEL, BadSample(self.samples.ids[place], str(error))
        return torch.from_numpy(pixels).permute(2, 0, 1), int(self.samples.labels[place]), None


class EvalSet(Dataset[Sample]):
    """Images as evaluation sees them: float32 (3, size, size), label, and a hole if it cannot be read."""

    def __init__(self, samples: Samples, preprocess: Preprocess, cache: bool = False) -> None:
        self.samples = samples
        self.preprocess = preprocess
        self.cached: list[Any] | None = None
        if cache:
            self.cached = list(_read_all(samples, preprocess.resize_and_crop, "Caching validation images"))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        found = self.cached[index] if self.cached else _read(self.samples, index, self.preprocess.resize_and_crop)
        if isinstance(found, BadSample):
            return torch.zeros(3, self.preprocess.size, self.preprocess.size), NO_LABEL, found
        return torch.from_numpy(self.preprocess.normalise(found)), int(self.samples.labels[index]), None


def train_loader(
    samples: Samples, config: Config, first: int, last: int, share: tuple[int, int] = (0, 1)
) -> DataLoader[Any]:
    """Batches, or shares of them, of the training steps first to last; the same ones with any number of workers.

    A batch is pixels, labels, and the holes in it. Where a step takes all of the processors, loader processes work
    between steps: beside one, they would hold up all threads of it at each operation.
    """
    order = batch_order(samples, config, first, last, share)
    workers = config.data.workers
    free = None
    if workers and pick_device(config.device).type == "cpu" and torch.get_num_threads() >= (os.cpu_count() or 1):
        free = RawValue(ctypes.c_bool, True)  # `batches_of` sets it to false for each step
    return DataLoader(
        TrainSet(samples, config, free),
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # else the loader draws a seed from the global one
    )


def batch_order(samples: Samples, config: Config, first: int, last: int, share: tuple[int, int] = (0, 1)) -> BatchOrder:
    """Which images the training steps first to last show."""
    labels = samples.labels if config.data.balance == "sampler" else None
    return BatchOrder(
        seed=config.seed, count=len(samples), batch=config.batch, first=first, last=last, share=share, labels=labels
    )


def collate(samples: list[Sample]) -> tuple[Any, Any, list[BadSample]]:
    """Pixels, labels and holes of a batch; where a loader process finds shared memory full, arrays instead of tensors.

    Arrays go through a pipe. Left to the queue between the processes, a batch that has no room is lost, and waited for.
    """
    pixels, labels, holes = zip(*samples, strict=True)
    # Channels last, as the augmented images are and the network wants them.
    together = torch.stack([one.permute(1, 2, 0) for one in pixels]).permute(0, 3, 1, 2)
    numbers, found = torch.tensor(labels), [hole for hole in holes if hole is not None]
    if get_worker_info() is not None:
        try:
            together.share_memory_()  # type: ignore[no-untyped-call]
            numbers.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError:
            return together.permute(0, 2, 3, 1).numpy(), numbers.numpy(), found
    return together, numbers, found


def eval_loader(
    samples: Samples, preprocess: Preprocess, batch: int, workers: int, cache: bool = False
) -> DataLoader[Any]:
    """All images, each once, in order, the last batch too; a batch is pixels, labels, and the holes in it."""
    cached = EvalSet(samples, preprocess, cache)
    workers = 0 if cache else workers
    return DataLoader(
        cached,
        batch_size=batch,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def batches_of(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """The loader's batches.

    Raises TrainingError if a worker process was killed, or shared memory is full.
    """
    try:
        batches = iter(loader)
    except OSError as error:
        raise TrainingError(
            f"the loader processes could not be started ({error}): use --data.workers 0, or make /dev/shm larger"
        ) from error
    piped = False
    if loader.num_workers and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        # Torch's handler raises wherever the main process is, also inside a step or a checkpoint, when a worker ends;
        # without it, the loader finds out when it is next asked.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    free: ctypes.c_bool | None = getattr(loader.dataset, "free", None)
    while True:
        try:
            if free is not None:
                free.value = True
            batch = next(batches)
            if free is not None:
                free.value = False
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            said = str(error) or type(error).__name__
            cut_off = isinstance(error, OSError | EOFError) or "DataLoader worker" in said
            if any(words in said for words in ("shared memory", "shm", "torch_", "Bus error", "bus error")):
                remedy = "shared memory is full: use --data.workers 0, or make /dev/shm larger (docker: --shm-size 8g)"
            elif loader.num_workers and cut_off and "Caught" not in said:  # else a worker raised it, and lives
                remedy = "the system ran out of memory, most likely: use fewer --data.workers"
            else:
                raise
            raise TrainingError(f"a loader process ended ({said.strip().splitlines()[-1]}); {remedy}") from error
        if isinstance(batch[0], np.ndarray):
            if not piped:
                log.warning(
                    "shared memory is full, so batches take a slower way: make /dev/shm larger (docker: --shm-size 8g)"
                )
            piped = True
            pixels, labels, holes = batch
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels), holes
        yield batch


def read_shrunk(samples: Samples, data: DataConfig) -> Iterator[NDArray[np.uint8] | BadSample]:
    """All images in their order, colours (H, W, 3), as a cache keeps them: their shorter side is at most cache_size."""

    def shrink(image: Image.Image) -> NDArray[np.uint8]:
        if min(image.size) > data.cache_size:
            image = resize_shorter(image, data.cache_size, data.interpolation)
        return np.array(image)

    return _read_all(samples, shrink, "Caching training images")


def _read(samples: Samples, index: int, keep: Callable[[Image.Image], Any]) -> Any:
    """What is to be kept of an image; a hole if it cannot be read."""
    try:
        return keep(samples.read(index))
    except DataError as error:
        return BadSample(samples.ids[index], str(error))


def _read_all(samples: Samples, keep: Callable[[Image.Image], Any], title: str) -> Iterator[Any]:
    """What is to be kept of each image, read by threads: decoding leaves the interpreter's lock."""
    with progress_bar(title, len(samples)) as advance, ThreadPoolExecutor(os.cpu_count()) as threads:

        def read(index: int) -> Any:
            kept = _read(samples, index, keep)
            advance(1)
            return kept

        for first in range(0, len(samples), READ_AHEAD):
            yield from threads.map(read, range(first, min(first + READ_AHEAD, len(samples))))
