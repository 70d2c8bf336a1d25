"""Whether fine-tuning is better than its linear probe: cross-validation on the training images."""

import logging
import math
from dataclasses import dataclass

import numpy as np

from atnet.config import Config
from atnet.data.loader import batches_of, eval_loader, train_loader
from atnet.data.sources import open_configured
from atnet.eval.evaluate import score_together
from atnet.progress import progress_bar
from atnet.training.state import State, train_step
from atnet.weights.info import EMA, LAST

FOLDS = 4
ENOUGH = 300
"""Images that are judged, if there are as many: no further fold is trained then."""

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

    def __str__(self) -> str:
        kept = "the probe is kept" if self.keep_probe else "fine-tuning goes on"
        return (
            f"cross-validation on {self.images:,} of the training images: probe {self.probe:.1f}%, fine-tuned "
            f"{self.tuned:.1f}% (standard error of the difference {self.error:.1f}): {kept}"
        )


def compare_with_probe(config: Config) -> Comparison | None:
    """Trains as configured on all but a fold of the training images, and judges its probe and its end by that fold.

    None if a class has one image alone, or the head of the weights is kept.
    """
    from sklearn.model_selection import StratifiedKFold

    train, _ = open_configured(config.data)
    counts = np.bincount(train.labels)
    folds = int(min(FOLDS, counts[counts > 0].min()))
    if folds < 2:
        return None
    right: list[tuple[bool, bool]] = []
    for kept, held in StratifiedKFold(folds, shuffle=True, random_state=config.seed).split(train.labels, train.labels):
        state = State(config, (train.only(kept.tolist()), train.only(held.tolist())))
        state.start_from_weights()
        if not state.probe:
            return None
        before = _judge(state, LAST)
        _train(state)
        after = _judge(state, EMA if EMA in state.networks else LAST)
        right += zip(before, after, strict=True)
        if len(right) >= ENOUGH:
            break
    probe, tuned = np.array(right, dtype=float).T
    return Comparison(
        probe=100 * probe.mean(),
        tuned=100 * tuned.mean(),
        images=len(right),
        error=100 * float((tuned - probe).std()) / math.sqrt(len(right)),
    )


def _train(state: State) -> None:
    config = state.config
    last = state.steps_per_epoch * config.epochs
    batches = batches_of(train_loader(state.train_pictures, config, 0, last))
    state.train_mode()
    with progress_bar("Cross-validating", last) as advance:
        for _ in range(last):
            pixels, labels, _ = next(batches)
            train_step(state, pixels, labels)
            state.step += 1
            advance(1)
    batches.close()


def _judge(state: State, name: str) -> list[bool]:
    """Whether each image of the fold that can be read is recognised."""
    config, pictures = state.config, state.val_pictures
    loader = eval_loader(pictures, state.info.preprocess, config.batch, config.data.workers)
    networks = {name: state.networks[name]}
    found = score_together(networks, loader, classes=len(state.info.classes), device=state.device, total=len(pictures))[
        name
    ]
    return list(found.predicted == found.labels)
