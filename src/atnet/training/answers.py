"""What teachers see of each image in a few augmented views, computed once and kept in 16 bits."""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atnet.config import Config
from atnet.data.loader import batch_order
from atnet.data.order import BatchOrder, Draw, epoch_steps
from atnet.data.samples import Samples
from atnet.errors import ConfigError
from atnet.files import cache_folder
from atnet.training import distributed
from atnet.training.distill import Teachers
from atnet.training.probe import content_hashes

MOST = 60_000.0
"""Of a number, in 16 bits."""

log = logging.getLogger("atnet")


class Answers:
    """Teachers' rows by view and image, in a file that fills while a training runs: a killed one, or another, goes on.

    order: which images each step shows.  A row is `width` float16 numbers, and a 1 that says that they are there.
    """

    def __init__(self, path: Path, order: BatchOrder, *, views: int, images: int, width: int) -> None:
        """Raises ConfigError if the file cannot be made, or the disk has no room for it."""
        self.path, self.order, self.views, self.images, self.width = path, order, views, images, width + 1
        size = 2 * views * images * self.width
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() and shutil.disk_usage(path.parent).free < size:
                raise OSError(f"it takes {size / 1e6:,.0f} MB")
            path.touch()
            self._file = path.open("r+b", buffering=0)
            self._file.truncate(size)  # where nothing was written it takes no room
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot hold the teachers' answers ({error.strerror or error}): make room, set ATNET_CACHE to "
                "a folder on another disk, or use fewer --distill.views"
            ) from error
        self._full = False

    def of(self, draws: Sequence[Draw], images: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows (B, width) for the draws' images (B, 3, H, W); ask: gives them for those that are not there."""
        rows = np.stack([self._read(draw) for draw in draws])
        missing = np.flatnonzero((rows[:, -1] != 1) | ~np.isfinite(rows).all(1))
        if len(missing):
            found = ask(images[torch.from_numpy(missing).to(images.device, non_blocking=True)])
            rows[missing, :-1], rows[missing, -1] = found.clamp(-MOST, MOST).half().cpu().numpy(), 1
            for place in missing.tolist():
                self._write(draws[place], rows[place])
        return torch.from_numpy(rows[:, :-1].astype(np.float32)).to(images.device, non_blocking=True)

    def has(self, draws: Sequence[Draw]) -> bool:
        """Whether there is an answer to each of the draws that are kept."""
        return all(draw.repeat or self._read(draw)[-1] == 1 for draw in draws)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _place(self, draw: Draw) -> int:
        return 2 * self.width * (draw.epoch % self.views * self.images + draw.image)

    def _read(self, draw: Draw) -> NDArray[np.float16]:
        if draw.repeat:  # one that fills a short batch, in a view of its own
            return np.zeros(self.width, np.float16)
        self._file.seek(self._place(draw))
        return np.frombuffer(self._file.read(2 * self.width), np.float16).copy()

    def _write(self, draw: Draw, row: NDArray[np.float16]) -> None:
        if draw.repeat or self._full:
            return
        try:
            self._file.seek(self._place(draw))
            self._file.write(row.tobytes())
        except OSError as error:
            log.warning("%s: takes no more answers (%s), so the teachers are asked again", self._file.name, error)
            self._full = True


def open_answers(config: Config, samples: Samples, teachers: Teachers, *, bf16: bool) -> Answers:
    """The file of what these teachers see in these images, and the same views of them, in the cache folder.

    It is the same with other classifiers of the teachers, and other classes of the images.  bf16: how they compute.
    """
    data, views = config.data, config.distill.views
    pixels = data.mean, data.std, data.interpolation, data.resize, data.crop_pct, data.cache, data.cache_size
    sides = [config.train_side(epoch) for epoch in range(min(views, config.epochs))]
    made = config.seed, dataclasses.asdict(config.augment), pixels, sides, config.distill.size, views
    said = hashlib.sha256(json.dumps([teachers.keys, bf16, made]).encode())
    for one in content_hashes(samples)[0]:
        said.update(one or b"-")
    path = cache_folder() / "answers" / f"{said.hexdigest()}.f16"
    log.info("the teachers' answers are kept in %s", path)
    share = distributed.rank(), distributed.world_size()
    return Answers(
        path,
        batch_order(samples, config, 0, config.epochs * epoch_steps(len(samples), config.batch), share),
        views=views,
        images=len(samples),
        width=sum(teachers.widths),
    )
