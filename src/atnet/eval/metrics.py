"""Exact figures of a classifier from its counts."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def topk_hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many samples have their label among the k largest logits (all of them if k >= classes), on their device.

    logits: (N, classes).  labels: int (N,).  Source: ILSVRC top-5 error, Russakovsky et al. 2015.
    """
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(dim=1).sum()


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> int:
    """`topk_hits` as a number."""
    return int(topk_hits(logits, labels, k))


def interval(top1: float, count: int) -> tuple[float, float]:
    """The 95% interval of an accuracy in percent, of count images: Wilson's, for few images too.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest

    found = binomtest(round(top1 * count / 100), count).proportion_ci(method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


@dataclass(frozen=True, kw_only=True)
class HeadScores:
    """What each of H decision heads says of N labelled images, the class token's first.

    loss: mean cross-entropy of each, nats, (H,).
    predicted: its likeliest class for each image, (N, H).  confidence: that one's probability, 0 to 1, (N, H).
    """

    loss: NDArray[np.float64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]

    @property
    def disagreement(self) -> float:
        """Share of the pairs of heads, over all images, that answer differently, percent."""
        return float(100 * np.mean([(self.predicted[:, i] != self.predicted[:, j]).mean() for i, j in self._pairs]))

    def error_correlation(self, labels: NDArray[np.int64]) -> float:
        """Mean correlation between the errors (wrong or right) of two heads: 1 if they err on the same images.

        nan if a head is always right or always wrong.
        """
        wrong = (self.predicted != labels[:, None]).astype(np.float64)
        if np.ptp(wrong, axis=0).min() == 0:
            return float("nan")
        found = np.corrcoef(wrong, rowvar=False)
        return float(np.mean([found[i, j] for i, j in self._pairs]))

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return list(itertools.combinations(range(self.predicted.shape[1]), 2))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A classifier on N labelled images.

    loss: mean cross-entropy, nats.  top1, top5: percent.  classes: how many there are.
    labels, predicted: the true and the likeliest class of each image, (N,).
    confidence: probability of the likeliest class, 0 to 1, (N,).
    bad: further images, which could not be read and are in none of the figures: id and reason of each.
    heads: of several decision heads, what each says by itself; the other figures are those of their mean probability.
    """

    loss: float
    top1: float
    top5: float
    classes: int
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    bad: tuple[tuple[str, str], ...] = ()
    heads: HeadScores | None = None

    @property
    def count(self) -> int:
        return len(self.labels)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts, (classes, classes), a row a true class, a column a predicted one."""
        return self.confusion_of(1)

    def confusion_of(self, each: int) -> NDArray[np.int64]:
        """The same of groups of so many neighbouring classes, the last one perhaps of fewer: memory is quadratic."""
        side = -(-self.classes // each)
        cells = self.labels // each * side + self.predicted // each
        return np.bincount(cells, minlength=side * side).reshape(side, side)

    @cached_property
    def support(self) -> NDArray[np.int64]:
        """How many images of each class there are."""
        return np.bincount(self.labels, minlength=self.classes)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Percent of each class's images that are recognised; nan for a class without images."""
        return _percent(self._right, self.support)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Percent of what is called a class that is it; nan for a class never called."""
        return _percent(self._right, self._called)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images, percent."""
        return float(np.nanmean(self.recall))

    @property
    def macro_f1(self) -> float:
        """Mean over the classes that have images, or were called, of the F1 score, percent."""
        return float(np.nanmean(_percent(2 * self._right, self.support + self._called)))

    @cached_property
    def _right(self) -> NDArray[np.int64]:
        """Of each class, how many are recognised."""
        return np.bincount(self.labels[self.labels == self.predicted], minlength=self.classes)

    @cached_property
    def _called(self) -> NDArray[np.int64]:
        """How many are called each class."""
        return np.bincount(self.predicted, minlength=self.classes)


def together(parts: Sequence[Scores]) -> Scores:
    """The scores on all the images of which the parts are scores on some, in their order."""
    if len(parts) == 1:
        return parts[0]
    count = max(sum(part.count for part in parts), 1)
    heads = [part.heads for part in parts if part.heads]
    return Scores(
        loss=sum(part.loss * part.count for part in parts) / count,
        top1=sum(part.top1 * part.count for part in parts) / count,
        top5=sum(part.top5 * part.count for part in parts) / count,
        classes=parts[0].classes,
        labels=np.concatenate([part.labels for part in parts]),
        predicted=np.concatenate([part.predicted for part in parts]),
        confidence=np.concatenate([part.confidence for part in parts]),
        bad=tuple(bad for part in parts for bad in part.bad),
        heads=HeadScores(
            loss=np.sum([of.loss * len(of.predicted) for of in heads], axis=0) / count,
            predicted=np.concatenate([of.predicted for of in heads]),
            confidence=np.concatenate([of.confidence for of in heads]),
        )
        if heads
        else None,
    )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How confidence agrees with accuracy, in bins of equal width.

    error: mean distance of the two over all images, percent (expected calibration error).
    confidence, accuracy: of each bin, percent, nan where it is empty.  count: its images.
    """

    error: float
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def calibration(correct: NDArray[np.bool_], confidence: NDArray[np.floating[Any]], bins: int = 15) -> Calibration:
    """Calibration of N answers. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    correct: whether each answer is right, (N,).  confidence: its probability, 0 to 1, (N,).
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # a bin is (low, high]
    count = np.bincount(place, minlength=bins)
    sure = np.bincount(place, weights=confidence, minlength=bins)
    right = np.bincount(place, weights=correct, minlength=bins)
    return Calibration(
        error=float(100 * np.abs(sure - right).sum() / len(correct)),
        confidence=_percent(sure, count),
        accuracy=_percent(right, count),
        count=count,
    )


def _percent(part: NDArray[Any], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    shares = np.full(len(whole), np.nan)
    np.divide(100.0 * part, whole, out=shares, where=whole > 0)
    return shares
