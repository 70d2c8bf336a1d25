"""Labels that are probably wrong, and images that are worth a label, by a linear probe of a frozen network."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from atnet.data.samples import Samples
from atnet.data.unlabelled import UNLABELLED, with_unlabelled
from atnet.device import pick_device
from atnet.errors import ConfigError
from atnet.models.load import load_any
from atnet.progress import progress_bar
from atnet.training.probe import Features, features_of, fit

FOLDS = 5
ROUNDS = 4
"""Fits of all folds, each giving an image the weight that its label has by the one before."""

STRENGTHS = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""scikit-learn's C of features at unit variance: chosen in the first two rounds."""

FIRST_RATE, LEAST_RATE, MOST_RATE, STEPS = 0.1, 1e-4, 0.5, 50
"""Of the share of wrong labels: where its estimate begins, its bounds, and how often it is computed anew."""

DOUBTFUL = 0.5
"""The probability of being wrong from which a label is listed."""

CANDIDATES = 10
"""Unlabelled images that diversity chooses among, for each one that is wanted."""

NEARLY = 1.0
"""Of log-likelihood, within which temperatures are as likely."""

TEMPERATURES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
MOST_ITERATIONS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Doubts:
    """What is thought of the labels of N images.

    wrong: (N,) the probability that a label is wrong.  likely: (N,) the class that an image looks most like.
    rate: the estimated share of wrong labels.
    """

    wrong: NDArray[np.float64]
    likely: NDArray[np.int64]
    rate: float

    @property
    def doubtful(self) -> list[int]:
        """The images whose labels are to be looked at, the most doubtful first."""
        order = np.argsort(-self.wrong, kind="stable")
        return [i for i in order.tolist() if self.wrong[i] > DOUBTFUL]


def doubt_labels(features: Features, classes: int) -> Doubts:
    """How probably each label is wrong: what a probe that has not seen the image says, where a share of the labels is
    taken to be drawn at random from the other classes.

    The share is estimated, and the probe fitted again, each image counting by the probability that its label is right.
    Images of classes with fewer than five of them are not judged.
    Sources: Natarajan et al. 2013, "Learning with Noisy Labels", for labels that are wrong at random; Northcutt et al.
    2021, "Confident Learning", for out-of-sample probabilities; here by expectation and maximisation.
    Raises ConfigError if there are not two classes of five images.
    """
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(features.labels, minlength=classes)
    judged = np.flatnonzero(counts[features.labels] >= FOLDS)
    labels = features.labels[judged]
    known, given = np.unique(labels, return_inverse=True)
    if len(known) < 2:
        raise ConfigError(f"labels are judged in classes of {FOLDS} images or more: there is one such class, or none")
    rows = _standardised(features.vectors[judged])
    weights, strength = np.ones(len(judged)), 0.0
    every: list[NDArray[np.float64]] = []
    shares = np.empty((len(judged), len(known)))
    with progress_bar("Judging labels", FOLDS * (ROUNDS - 2 + 2 * len(STRENGTHS))) as advance:
        for turn in range(ROUNDS):
            folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=turn).split(given, given))
            tried = STRENGTHS if turn < 2 else (strength,)
            least = np.inf
            for one in tried:
                found = _held_out(rows, given, weights, folds, one, advance)
                loss = -float(weights @ np.log(np.maximum(found[np.arange(len(given)), given], 1e-12)))
                if loss < least:
                    least, strength, shares = loss, one, found
            every.append(shares)
            shares = np.mean(every[1:] or every, axis=0)
            wrong, rate = _probably_wrong(shares, given)
            weights = 1 - wrong
    everywhere = np.zeros(len(features.labels))
    everywhere[judged] = wrong
    likely = features.labels.copy()
    likely[judged] = known[shares.argmax(1)]
    return Doubts(wrong=everywhere, likely=likely, rate=rate)


def _probably_wrong(shares: NDArray[np.float64], given: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """The probability that each label is wrong, and the share of such labels.

    shares: (N, classes) what a probe that has not seen an image says of it; given: (N,) the labels.
    A probe of few images, or of wrong labels, is less sure than it should be: how much, a temperature, is found
    together with the share, as what makes the labels most likely: of temperatures that are nearly as likely the lowest,
    for with few images they hardly differ, and what is doubtful is to be listed.
    """
    logits = np.log(np.maximum(shares, 1e-12))
    tried = []
    for temperature in TEMPERATURES:
        right = softmax(logits / temperature, axis=1)[np.arange(len(given)), given]
        rate = FIRST_RATE
        for _ in range(STEPS):
            by_chance = rate / (shares.shape[1] - 1) * (1 - right)
            likelihood = np.maximum((1 - rate) * right + by_chance, 1e-12)
            wrong = by_chance / likelihood
            rate = float(np.clip(wrong.mean(), LEAST_RATE, MOST_RATE))
        tried.append((float(np.log(likelihood).sum()), wrong, rate))
    most = max(likelihood for likelihood, _, _ in tried)
    return next((wrong, rate) for likelihood, wrong, rate in tried if likelihood >= most - NEARLY)


def _standardised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features (N, views, features) at unit variance, of (N, views, heads, features)."""
    count, views, heads, width = vectors.shape
    rows = vectors.reshape(count, views * heads, width)
    mean, scale = rows.mean((0, 1), dtype=np.float64), rows.std((0, 1), dtype=np.float64) + 1e-6
    standard: NDArray[np.float32] = ((rows - mean) / scale).astype(np.float32)
    return standard


def _held_out(
    rows: NDArray[np.float32],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    strength: float,
    advance: Callable[[int], None],
) -> NDArray[np.float64]:
    """Probabilities (N, classes) of each image by a probe of the other folds' images, which count by their weights."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    count, views, width = rows.shape
    shares = np.zeros((count, int(labels.max()) + 1))
    for kept, held in folds:
        model = LogisticRegression(C=strength / views, max_iter=MOST_ITERATIONS, tol=1e-3)
        with warnings.catch_warnings():
            # A fit that ends at its iterations, before it has converged, is near enough to judge by.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows[kept].reshape(-1, width), np.repeat(labels[kept], views), np.repeat(weights[kept], views))
        found = model.predict_proba(rows[held].reshape(-1, width)).reshape(len(held), views, -1).mean(1)
        shares[np.ix_(held, model.classes_)] = found
        advance(1)
    return shares


@dataclass(frozen=True, kw_only=True)
class Unsure:
    """An image by its place, its likeliest class, and how near the second one is, 0 to 1."""

    place: int
    likely: int
    unsure: float


def choose_next(known: Features, unknown: Features, classes: int, count: int) -> list[Unsure]:
    """Which of the unknown images to label next: count of them, uncertain and unlike each other, the least sure first.

    Uncertain is one whose two likeliest classes are near each other by a probe of the known ones. Of the most uncertain
    ones, ten times as many as are wanted, k-means makes groups, and of each the image nearest to its middle is taken.
    Source: Zhdanov 2019, "Diverse mini-batch Active Learning".
    """
    from sklearn.cluster import KMeans

    shares = softmax(fit(known, classes).logits(unknown.vectors).mean(1), axis=1)
    first, second = -np.partition(-shares, 1, axis=1)[:, :2].T
    unsure = 1 - (first - second)
    candidates = np.argsort(-unsure, kind="stable")[: CANDIDATES * count]
    if len(candidates) > count:
        vectors = _standardised(unknown.vectors)[candidates].mean(1)
        groups = KMeans(count, n_init=1, random_state=0).fit(vectors, sample_weight=unsure[candidates] + 1e-6)
        away = np.linalg.norm(vectors - groups.cluster_centers_[groups.labels_], axis=1)
        order = np.lexsort((away, groups.labels_))
        candidates = candidates[order[np.unique(groups.labels_[order], return_index=True)[1]]]
    chosen = candidates[np.argsort(-unsure[candidates], kind="stable")].tolist()
    return [Unsure(place=i, likely=int(shares[i].argmax()), unsure=float(unsure[i])) for i in chosen]


@dataclass(frozen=True, kw_only=True, eq=False)
class Named:
    """An image, what its label says, and what it looks like; a class is none of an image without a label.

    part: "train" or "val"; "" of the images without labels.  place: its number in that part.  image: its path, or what
    messages call it.  wrong: the probability that the label is wrong; of an image without one, how unsure its class is.
    """

    part: str
    place: int
    image: str
    label: str
    likely: str
    wrong: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """What a network says of a source's labels.

    doubtful: labels to look at, the most probably wrong first.  rate: the estimated share of wrong ones.
    judged: of how many.  following: of unlabelled, the images to label next.
    """

    doubtful: tuple[Named, ...]
    rate: float
    judged: int
    following: tuple[Named, ...] = ()
    unlabelled: Samples | None = None


def examine_labels(
    parts: dict[str, Samples], weights: str, *, unlabelled: str = "", count: int = 50, batch: int = 64, workers: int = 2
) -> Labels:
    """Judges the labels of a source's parts by what names a network, and says which images of another source to label.

    Raises ConfigError or DataError naming what cannot be judged, WeightsError if there are no such weights.
    """
    device = pick_device("auto")
    network, info = load_any(weights, str(device))
    options: dict[str, int] = {"batch": batch, "workers": workers}
    found = {part: features_of(network, samples, info, device, **options) for part, samples in parts.items()}
    places = [(part, i) for part, samples in parts.items() for i in found[part].places(samples)]
    vectors = np.concatenate([one.vectors for one in found.values()])
    labels = np.concatenate([one.labels for one in found.values()])
    classes = parts["train"].classes
    known = Features(vectors=vectors, labels=labels, bad=())
    doubts = doubt_labels(known, len(classes))

    def named(index: int) -> Named:
        part, place = places[index]
        return Named(
            part=part, place=place, image=parts[part].locate(place), label=classes[labels[index]],
            likely=classes[doubts.likely[index]], wrong=float(doubts.wrong[index]),
        )  # fmt: skip

    made = Labels(doubtful=tuple(map(named, doubts.doubtful)), rate=doubts.rate, judged=len(labels))
    if not unlabelled:
        return made
    joined = with_unlabelled(parts["train"], (unlabelled,), parts["val"])
    others = joined.only(np.flatnonzero(joined.labels == UNLABELLED).tolist())
    seen = features_of(network, others, info, device, **options)
    readable = seen.places(others)
    following = tuple(
        Named(
            part="", place=readable[one.place], image=others.locate(readable[one.place]), label="",
            likely=classes[one.likely], wrong=one.unsure,
        )
        for one in choose_next(known, seen, len(classes), count)
    )  # fmt: skip
    return replace(made, following=following, unlabelled=others)
