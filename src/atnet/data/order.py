"""Which sample comes next, and the seed of each random choice: functions of the run's seed, no state."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler


def derive_seed(*parts: int | str) -> int:
    """A seed, 0 to 2**63 - 1, for one purpose: derive_seed(seed, "order", epoch)."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def epoch_order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of count samples in an epoch, each once."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def balanced_order(seed: int, epoch: int, labels: NDArray[np.int64]) -> list[int]:
    """As many samples as there are labels, each class as often as the others: a rare one's are repeated.

    All of a class are shown before one is shown again.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    members = [torch.from_numpy(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    each = -(-len(labels) // len(members))
    drawn = [
        torch.cat([own[torch.randperm(len(own), generator=generator)] for _ in range(-(-each // len(own)))])[:each]
        for own in members
    ]
    pool = torch.cat(drawn)
    order: list[int] = pool[torch.randperm(len(pool), generator=generator)[: len(labels)]].tolist()
    return order


MANY_STEPS = 20
"""Steps of an epoch from which on a rest smaller than a batch, another one in each epoch, is left out."""


def epoch_steps(count: int, batch: int) -> int:
    """Steps of an epoch of count samples; with fewer than 20 batches of them no sample is left out."""
    return count // batch if count >= MANY_STEPS * batch else -(-count // batch)


class Draw(NamedTuple):
    """An image's turn, by its position.  repeat: how often it was shown in this epoch before."""

    epoch: int
    image: int
    repeat: int = 0


class BatchOrder(Sampler[list[Draw]]):
    """The batches of steps first to last, each a list of draws, or one of several equal shares of it.

    share: (0, 1) is all of each batch, (2, 4) the third of its four quarters.
    labels: of the samples, if each class is to be shown equally often.
    Every epoch has `epoch_steps` steps.  The samples left over differ from epoch to epoch; a last batch that would be
    short is filled with samples of the epoch's first ones, augmented anew.
    Starting at any step gives the batches that an unbroken run has from there on.
    """

    def __init__(
        self,
        *,
        seed: int,
        count: int,
        batch: int,
        first: int,
        last: int,
        share: tuple[int, int] = (0, 1),
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        self.seed, self.count, self.batch, self.first, self.last, self.share = seed, count, batch, first, last, share
        self.labels = labels
        self._known: tuple[int, list[Draw]] = (-1, [])  # the last epoch asked for, and its order

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        return map(self.at, range(self.first, self.last))

    def at(self, step: int) -> list[Draw]:
        """The batch of a step, or the share of it."""
        epoch, position = divmod(step, epoch_steps(self.count, self.batch))
        if epoch != self._known[0]:
            self._known = epoch, self._epoch(epoch)
        mine, shares = self.share
        size = self.batch // shares
        start = position * self.batch + mine * size
        return self._known[1][start : start + size]

    def _epoch(self, epoch: int) -> list[Draw]:
        if self.labels is None:
            order = epoch_order(self.seed, epoch, self.count)
        else:
            order = balanced_order(self.seed, epoch, self.labels)
        order = list(islice(cycle(order), max(self.count, self.batch * epoch_steps(self.count, self.batch))))
        shown: Counter[int] = Counter()
        draws = []
        for index in order:
            draws.append(Draw(epoch, index, shown[index]))
            shown[index] += 1
        return draws
