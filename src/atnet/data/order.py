"""Which sample comes next, and the seed of each random choice: functions of the run's seed, no state."""

import hashlib
from collections.abc import Iterator

import torch
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


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """The batches of steps first to last, each a list of (epoch, index), or one of several equal shares of it.

    share: (0, 1) is all of each batch, (2, 4) the third of its four quarters.
    Every epoch has count // batch steps; the samples left over differ from epoch to epoch.
    Starting at any step gives the batches that an unbroken run has from there on.
    """

    def __init__(
        self, *, seed: int, count: int, batch: int, first: int, last: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.seed, self.count, self.batch, self.first, self.last, self.share = seed, count, batch, first, last, share

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps = self.count // self.batch
        mine, shares = self.share
        size = self.batch // shares
        for step in range(self.first, self.last):
            epoch, position = divmod(step, steps)
            if position == 0 or step == self.first:
                order = epoch_order(self.seed, epoch, self.count)
            start = position * self.batch + mine * size
            yield [(epoch, index) for index in order[start : start + size]]
