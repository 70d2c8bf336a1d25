"""Whether fine-tuning is better than its linear probe: cross-validation on the training images."""

import dataclasses
import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atnet.config import Config
from atnet.data.loader import eval_loader
from atnet.data.on_device import training_batches
from atnet.data.samples import Samples
from atnet.eval.evaluate import score_together
from atnet.progress import progress_bar
from atnet.training import distributed
from atnet.training.state import State, train_step
from atnet.weights.info import EMA, LAST

FOLDS = 3
ENOUGH = 80
"""Images that are judged, if there are as many: no further fold is trained then."""

MOST_IMAGES = 5000
"""Of more than these fine-tuning is better than its probe, as far as we have seen, and a fold takes long."""

log = logging.getLogger("atnet")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Right answers, in percent, of the probe and of fine-tuning on images that neither was trained on.

    images: how many.  error: the standard error of the difference, percent.
    """

    probe: float
    tuned: float
    images: int
    error: float

    @property
    def keep_probe(self) -> bool:
        """Whether the probe is ahead by more than chance would have it; else fine-tuning, which usually is ahead."""
        return self.probe - self.tuned > self.error

    @property
    def figures(self) -> dict[str, float]:
        """For the run's record."""
        return {f"compared_{name}": round(value, 4) for name, value in dataclasses.asdict(self).items()}

    def __str__(self) -> str:
        kept = "the probe is kept" if self.keep_probe else "fine-tuning goes on"
        return (
            f"cross-validated on {self.images:,} of the training images: probe {self.probe:.1f}%, fine-tuned "
            f"{self.tuned:.1f}% (standard error of the difference {self.error:.1f}): {kept}; --no-choose leaves it out"
        )


def _folds(labels: NDArray[np.int64]) -> int:
    """Folds of the training images, so that each has an image of every class."""
    counts = np.bincount(labels)
    return int(min(FOLDS, counts[counts > 0].min()))


def folds_to_train(config: Config, labels: NDArray[np.int64]) -> int:
    """How many trainings the comparison takes, each on all but a fold; 0: there is none.

    labels: of the training images.
    """
    folds = _folds(labels)
    # With images without labels each fold would train as long as the run, to judge by few.
    wanted = config.choose and config.weights and config.epochs and not config.data.unlabelled
    wanted = wanted and not distributed.is_distributed()
    if not wanted or folds < 2 or len(labels) > MOST_IMAGES:
        return 0
    return min(folds, -(-ENOUGH * folds // len(labels)))


def compare_with_probe(config: Config, train: Samples) -> Comparison | None:
    """Trains as configured on all but a fold of the training images, and judges its probe and its end by that fold.

    None if there is nothing to compare: the head of the weights is kept, a class has one image alone, there are very
    many images, images without labels, or several processes.
    """
    wanted = folds_to_train(config, train.labels)
    if not wanted:
        return None
    from sklearn.model_selection import StratifiedKFold

    splits = StratifiedKFold(_folds(train.labels), shuffle=True, random_state=config.seed).split(
        train.labels, train.labels
    )
    right: list[tuple[bool, bool]] = []
    for number, (kept, held) in enumerate(splits, 1):
        state = State(config, (train.only(kept.tolist()), train.only(held.tolist())))
        state.start_from_weights()
        state.teach_teachers()
        if not state.probe:
            return None
        before = _judge(state, LAST)
        state.start_fine_tuning()
        _train(state, f"Cross-validating {number}/{wanted}")
        after = _judge(state, EMA if EMA in state.networks else LAST)
        right += zip(before, after, strict=True)
        if number == wanted:
            break
    probe, tuned = np.array(right, dtype=float).T
    return Comparison(
        probe=100 * float(probe.mean()),
        tuned=100 * float(tuned.mean()),
        images=len(right),
        error=100 * float((tuned - probe).std()) / math.sqrt(len(right)),
    )


def _train(state: State, title: str) -> None:
    last = state.steps_per_epoch * state.config.epochs
    batches = training_batches(state.shown, state.config, state.device, 0, last)
    state.train_mode()
    with progress_bar(title, last) as advance:
        for _ in range(last):
            pixels, labels, _ = next(batches)
            train_step(state, pixels, labels)
            state.step += 1
            advance(1)
    batches.close()


def _judge(state: State, name: str) -> list[bool]:
    """Whether each image of the fold that can be read is recognised."""
    config, samples = state.config, state.val_images
    batch = config.batch // config.optim.accumulate
    loader = eval_loader(samples, state.info.preprocess, batch, config.data.workers)
    networks = {name: state.networks[name]}
    found = score_together(networks, loader, classes=len(state.info.classes), device=state.device, total=len(samples))
    return list(found[name].predicted == found[name].labels)
