"""`make proof-heads PLAIN="RUN..." STARRED="RUN..."`: what several decision heads gain, beside separate networks.

Runs of a size and of the same size with a star, seed by seed, on the validation photos. One half of these, every other
one, fits the temperature (Guo et al. 2017) and the thresholds; the figures are of the other half, but for top-1, which
is of all. They are those of the network without a star, of its best head and of all heads together with one, and as the
ceiling of the mean probability of all networks without. The last columns: of answers as sure as the fitted half says
that they have to be, how many are right, and how many there are. All but the last are drawn, if an image is named.
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
from atnet.errors import ConfigError
from atnet.eval.metrics import HeadScores, calibration
from atnet.eval.selective import TRUST, fit_trust, least_confidence
from atnet.models.heads import answer
from atnet.models.load import load
from atnet.viz.plots import draw_dots

FIT, SEEN = slice(0, None, 2), slice(1, None, 2)
PROMISED = (0.95, 0.99)
PANELS = ("Top-1, %", "Loss, temperature fitted", "Calibration error, %")


def ask(run: Path, photos: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Log probabilities (N, heads, classes) of a run's averaged weights, and the labels (N,).

    The third is the mean cosine between what two heads read; 1 of one head.
    """
    model, info = load(run)
    samples = open_labelled(photos).relabel(info.classes)
    found, cosines = [], []

    def see(_: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        features = torch.nn.functional.normalize(given[0], dim=-1)
        if features.ndim == 3:
            heads = features.shape[1]
            cosines.append((features.sum(1).square().sum(-1) - heads) / (heads * (heads - 1)))

    model.head.register_forward_pre_hook(see)
    with torch.inference_mode():
        for images, _, _ in eval_loader(samples, info.preprocess, 64, 0):
            together, each = answer(model.to(memory_format=torch.channels_last), images)
            found.append(log_softmax((together[:, None] if each is None else each).double().numpy(), axis=-1))
    return np.concatenate(found), np.asarray(samples.labels), float(torch.cat(cosines).mean()) if cosines else 1.0


def fused(logs: np.ndarray) -> np.ndarray:
    """The log of the mean probability (N, classes) of heads (N, heads, classes)."""
    return logsumexp(logs, axis=1) - np.log(logs.shape[1])


def loss_of(logs: np.ndarray, labels: np.ndarray, heat: float = 1.0) -> float:
    return float(-log_softmax(logs / heat, axis=-1)[np.arange(len(labels)), labels].mean())


def figures(logs: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Top-1 of all, and of the second half: loss and calibration error at the first half's temperature."""
    found = minimize_scalar(lambda heat: loss_of(logs[FIT], labels[FIT], heat), bounds=(0.2, 5), method="bounded")
    probabilities = np.exp(log_softmax(logs[SEEN] / found.x, axis=-1))
    right = probabilities.argmax(1) == labels[SEEN]
    return (
        100 * float((logs.argmax(1) == labels).mean()),
        loss_of(logs[SEEN], labels[SEEN], found.x),
        calibration(right, probabilities.max(1)).error,
    )


def auroc(wrong: np.ndarray, doubt: np.ndarray) -> str:
    return f"{roc_auc_score(wrong, doubt):.3f}"


def keeps(logs: np.ndarray, labels: np.ndarray) -> list[str]:
    """For each promise: what the second half's surer answers hold, within which standard error, and their share."""
    sure, right = np.exp(logs).max(1), logs.argmax(1) == labels
    facts = {TRUST: fit_trust(sure[FIT], right[FIT])}
    told = []
    for promise in PROMISED:
        try:
            kept = sure[SEEN] >= least_confidence(facts, promise)[0]
        except ConfigError:
            told.append("not promised")
            continue
        held, count = right[SEEN][kept].mean(), kept.sum()
        error = (held * (1 - held) / count) ** 0.5
        told.append(f"{100 * held:.2f} +- {100 * error:.2f} ({100 * kept.mean():.0f}%)")
    return told


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("photos")
    options.add_argument("--plain", nargs="+", type=Path, required=True)
    options.add_argument("--starred", nargs="+", type=Path, required=True)
    options.add_argument("--plot", type=Path)
    given = options.parse_args()
    plain, starred, alike = [], [], []
    for runs, into in ((given.plain, plain), (given.starred, starred)):
        for run in runs:
            logs, labels, cosine = ask(run, given.photos)
            into.append(logs)
            alike.append(cosine)
    rows = [["network", "top-1", "loss", "ECE", "promised 95", "promised 99"]]
    drawn: dict[str, list[tuple[float, ...]]] = {}

    def tell(name: str, group: str, one: np.ndarray) -> None:
        top1, loss, error = found = figures(one, labels)
        rows.append([name, f"{top1:.2f}", f"{loss:.4f}", f"{error:.2f}", *keeps(one, labels)])
        drawn.setdefault(group, []).append(found)

    for run, logs in zip(given.plain, plain, strict=True):
        tell(run.name, "one head", logs[:, 0])
    for run, logs in zip(given.starred, starred, strict=True):
        count = logs.shape[1]
        best = max(range(count), key=lambda head: (logs[:, head].argmax(1) == labels).mean())
        tell(f"{run.name}, head {best}, the best", f"the best of {count} heads", logs[:, best])
        tell(f"{run.name}, fused", f"{count} heads together", fused(logs))
    tell(
        f"{len(plain)} networks together", f"{len(plain)} networks together, at {len(plain)} times the cost",
        fused(np.concatenate(plain, axis=1)),
    )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    wins = losses = 0
    points = []
    for base, logs in zip(plain, starred, strict=False):
        ours, theirs = fused(logs).argmax(1) == labels, base[:, 0].argmax(1) == labels
        won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        wins, losses = wins + won, losses + lost
        points.append(100 * (won - lost) / len(labels))
    pairs = len(points) * len(labels)
    print(
        f"fused against one head, pooled over seeds: {wins} images won, {losses} lost: "
        f"{100 * (wins - losses) / pairs:+.2f} points, standard error of these networks "
        f"{100 * (wins + losses) ** 0.5 / pairs:.2f}"
        + (f", over seeds {np.std(points, ddof=1) / len(points) ** 0.5:.2f}" if len(points) > 1 else "")
    )
    for run, logs, cosine in zip(given.starred, starred, alike[len(plain) :], strict=True):
        called = logs.argmax(2)
        heads = HeadScores(loss=np.zeros(0), predicted=called, confidence=np.zeros(0))
        mean = np.exp(fused(logs))
        missed = mean.argmax(1) != labels
        differ = (np.exp(logs) * logs).sum(2).mean(1) - (mean * np.log(mean)).sum(1)  # mutual information, in nats
        print(
            f"{run.name}: what two heads read has a cosine of {cosine:.3f}, their errors correlate by "
            f"{heads.error_correlation(labels):.3f}, they disagree on {heads.disagreement:.2f}%; "
            f"AUROC of an error by disagreement {auroc(missed, differ)}, "
            f"by the largest probability {auroc(missed, -mean.max(1))}"
        )
    if given.plot:
        draw_dots(drawn, PANELS, given.plot)
        print(f"Written: {given.plot}")


if __name__ == "__main__":
    main()
