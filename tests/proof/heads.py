"""`make proof-heads PLAIN="RUN..." STARRED="RUN..."`: what several decision heads gain, beside separate networks.

Runs of a size and of the same size with a star, seed by seed, on the validation photos. One half of these, every other
one, fits the temperature (Guo et al. 2017) and the thresholds; the figures are of the other half, but for top-1, which
is of all. They are those of the network without a star, of its best head and of all heads together with one, and as the
ceiling of the mean probability of all networks without. The last columns: of answers as sure as the fitted half says
that they have to be, how many are right, and how many there are.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from sklearn.metrics import roc_auc_score

from atnet.data.loader import eval_loader
from atnet.data.sources import open_labelled
from atnet.measure.metrics import HeadScores, calibration
from atnet.measure.trust import TRUST, fit_trust, least_confidence
from atnet.model.heads import answer
from atnet.model.load import load

FIT, SEEN = slice(0, None, 2), slice(1, None, 2)
PROMISED = (0.95, 0.99)


def ask(run: Path, photos: str) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities (N, heads, classes) of a run's averaged weights, and the labels (N,)."""
    model, info = load(run)
    pictures = open_labelled(photos).relabel(info.classes)
    found = []
    with torch.inference_mode():
        for images, _, _ in eval_loader(pictures, info.preprocess, 64, 0):
            together, each = answer(model.to(memory_format=torch.channels_last), images)
            found.append(log_softmax((together[:, None] if each is None else each).double().numpy(), axis=-1))
    return np.concatenate(found), np.asarray(pictures.labels)


def fused(logs: np.ndarray) -> np.ndarray:
    """The log of the mean probability (N, classes) of heads (N, heads, classes)."""
    return logsumexp(logs, axis=1) - np.log(logs.shape[1])


def loss_of(logs: np.ndarray, labels: np.ndarray, heat: float = 1.0) -> float:
    return float(-log_softmax(logs / heat, axis=-1)[np.arange(len(labels)), labels].mean())


def figures(logs: np.ndarray, labels: np.ndarray) -> list[str]:
    """Top-1 of all, and of the second half: loss and calibration error at the first half's temperature."""
    found = minimize_scalar(lambda heat: loss_of(logs[FIT], labels[FIT], heat), bounds=(0.2, 5), method="bounded")
    probabilities = np.exp(log_softmax(logs[SEEN] / found.x, axis=-1))
    right = probabilities.argmax(1) == labels[SEEN]
    return [
        f"{100 * (logs.argmax(1) == labels).mean():.2f}",
        f"{loss_of(logs[SEEN], labels[SEEN], found.x):.4f}",
        f"{calibration(right, probabilities.max(1)).error:.2f}",
    ]


def auroc(wrong: np.ndarray, doubt: np.ndarray) -> str:
    return f"{roc_auc_score(wrong, doubt):.3f}"


def keeps(logs: np.ndarray, labels: np.ndarray) -> list[str]:
    """For each promise: what the second half's surer answers hold, within which standard error, and their share."""
    sure, right = np.exp(logs).max(1), logs.argmax(1) == labels
    facts = {TRUST: fit_trust(sure[FIT], right[FIT])}
    told = []
    for promise in PROMISED:
        kept = sure[SEEN] >= least_confidence(facts, promise)[0]
        held, count = right[SEEN][kept].mean(), kept.sum()
        error = (held * (1 - held) / count) ** 0.5
        told.append(f"{100 * held:.2f} +- {100 * error:.2f} ({100 * kept.mean():.0f}%)")
    return told


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("photos")
    options.add_argument("--plain", nargs="+", type=Path, required=True)
    options.add_argument("--starred", nargs="+", type=Path, required=True)
    given = options.parse_args()
    plain, starred = [], []
    for runs, into in ((given.plain, plain), (given.starred, starred)):
        for run in runs:
            logs, labels = ask(run, given.photos)
            into.append(logs)
    rows = [["network", "top-1", "loss", "ECE", "promised 95", "promised 99"]]
    for run, logs in zip(given.plain, plain, strict=True):
        rows.append([run.name, *figures(logs[:, 0], labels), *keeps(logs[:, 0], labels)])
    together = fused(np.concatenate(plain, axis=1))
    rows.append([f"{len(plain)} networks together", *figures(together, labels), *keeps(together, labels)])
    for run, logs in zip(given.starred, starred, strict=True):
        best = max(range(logs.shape[1]), key=lambda head: (logs[:, head].argmax(1) == labels).mean())
        for name, one in ((f"{run.name}, head {best}, the best", logs[:, best]), (f"{run.name}, fused", fused(logs))):
            rows.append([name, *figures(one, labels), *keeps(one, labels)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    wins = losses = 0
    for base, logs in zip(plain, starred, strict=False):
        ours, theirs = fused(logs).argmax(1) == labels, base[:, 0].argmax(1) == labels
        wins, losses = wins + int((ours & ~theirs).sum()), losses + int((theirs & ~ours).sum())
    pairs = min(len(plain), len(starred)) * len(labels)
    print(
        f"fused against one head, pooled over seeds: {wins} pictures won, {losses} lost: "
        f"{100 * (wins - losses) / pairs:+.2f} points, standard error {100 * (wins + losses) ** 0.5 / pairs:.2f}"
    )
    for run, logs in zip(given.starred, starred, strict=True):
        called = logs.argmax(2)
        heads = HeadScores(loss=np.zeros(0), predicted=called, confidence=np.zeros(0))
        mean = np.exp(fused(logs))
        missed = mean.argmax(1) != labels
        differ = (np.exp(logs) * logs).sum(2).mean(1) - (mean * np.log(mean)).sum(1)  # mutual information, in nats
        print(
            f"{run.name}: the errors of two heads correlate by {heads.error_correlation(labels):.3f}, they disagree on "
            f"{heads.disagreement:.2f}%; AUROC of an error by disagreement {auroc(missed, differ)}, "
            f"by the largest probability {auroc(missed, -mean.max(1))}"
        )


if __name__ == "__main__":
    main()
