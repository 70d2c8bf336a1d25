"""Exact figures of a classifier from its counts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def hits(logits: Tensor, labels: Tensor, k: int) -> int:
    """How many samples have their label among the k largest logits (all of them if k >= classes).

    logits: (N, classes).  labels: int (N,).  Source: ILSVRC top-5 error, Russakovsky et al. 2015.
    """
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return int((top == labels[:, None]).any(dim=1).sum())


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A classifier on labelled pictures.

    loss: mean cross-entropy, nats.  top1, top5: percent.
    confusion: counts, (classes, classes), a row a true class, a column a predicted one.
    """

    loss: float
    top1: float
    top5: float
    confusion: NDArray[np.int64]

    @property
    def count(self) -> int:
        return int(self.confusion.sum())

    @property
    def recall(self) -> NDArray[np.float64]:
        """Percent of each class's pictures that are recognised; nan for a class without pictures."""
        return _percent(self.confusion.diagonal(), self.confusion.sum(1))

    @property
    def precision(self) -> NDArray[np.float64]:
        """Percent of what is called a class that is it; nan for a class never called."""
        return _percent(self.confusion.diagonal(), self.confusion.sum(0))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have pictures, percent."""
        return float(np.nanmean(self.recall))

    @property
    def macro_f1(self) -> float:
        """Mean over the classes that have pictures, or were called, of the F1 score, percent."""
        sizes = self.confusion.sum(0) + self.confusion.sum(1)
        return float(np.nanmean(_percent(2 * self.confusion.diagonal(), sizes)))


def _percent(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    shares = np.full(len(whole), np.nan)
    np.divide(100.0 * part, whole, out=shares, where=whole > 0)
    return shares
