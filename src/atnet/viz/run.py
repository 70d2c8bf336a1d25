"""Draws a finished run: curves, confusion matrix, most confident mistakes, samples of the training images."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atnet.config import Config, make_config
from atnet.data.augment import make_mix
from atnet.data.classes import display_names, spreadsheet_names, spreadsheet_safe
from atnet.data.loader import batches_of, train_loader
from atnet.data.sources import open_configured
from atnet.errors import AtnetError, ConfigError, DataError
from atnet.eval.metrics import Scores
from atnet.run.record import kept_weights, read_metrics, read_predictions, read_record, reading
from atnet.training.state import mean_and_std, normalise_and_mix
from atnet.viz.plots import (
    CELLS,
    CONFUSION,
    CURVES,
    MISTAKES,
    MOSAIC,
    SAMPLES,
    draw_confusion,
    draw_curves,
    draw_mistakes,
    draw_samples,
    surest_mistakes,
)
from atnet.weights.info import CONFIG

log = logging.getLogger("atnet")


def render_run(where: str | Path) -> list[Path]:
    """Draws a finished run into its folder: curves.png, confusion.png, mistakes.png, samples.png; returns their paths.

    The last two need the run's images; without them they are left out, and the log says why.
    Raises ConfigError if the run is not finished or damaged, OSError if its folder can't be written.
    """
    run, record = read_record(where)
    with reading(run):
        scores, classes = scores_of(run, record)
        rows = read_metrics(run)
    names = display_names(classes)
    draw_curves(rows, run / CURVES)
    draw_confusion(scores.confusion_of(-(-len(names) // CELLS)), names, run / CONFUSION)
    drawn = [run / CURVES, run / CONFUSION]
    try:
        config = make_config(run / CONFIG)
        train, val = open_configured(config.data)
        if train.classes != classes:
            raise DataError(f"{config.data.source}: other classes or images than the run had")
        place = {spreadsheet_safe(name): i for i, name in enumerate(val.ids)}
        worst, shown = surest_mistakes(scores, MOSAIC), [row["image"] for row in read_predictions(run)]
        gone = [shown[i] for i in worst if shown[i] not in place]
        if gone:
            raise DataError(f"{gone[0]}: no longer in {config.data.source}")
        draw_mistakes([val.read(place[shown[i]]) for i in worst], worst, scores, names, run / MISTAKES)
        images, targets = _first_batch(config, train)
        draw_samples(images, targets, names, run / SAMPLES)
        drawn += [run / MISTAKES, run / SAMPLES]
    except (AtnetError, OSError) as error:
        log.warning("%s: without plots: %s", run, error)
    return drawn


def scores_of(run: Path, record: dict[str, Any]) -> tuple[Scores, tuple[str, ...]]:
    """The scores of the run's predictions, and its classes in their order.

    Raises ConfigError if predictions and record do not fit.
    """
    rows = read_predictions(run)
    classes = tuple(record["class_names"])
    position = {name: i for i, name in enumerate(spreadsheet_names(classes))}
    try:
        labels = np.array([position[row["class"]] for row in rows])
        predicted = np.array([position[row["called"]] for row in rows])
        confidence = np.array([float(row["confidence"]) for row in rows], dtype=np.float32)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{run}: its predictions do not fit its record ({error}); was one of them edited?") from error
    kept = kept_weights(record)
    scores = Scores(
        loss=record["loss"][kept], top1=record["top1"][kept], top5=record["top5"][kept],
        classes=len(classes), labels=labels, predicted=predicted, confidence=confidence,
    )  # fmt: skip
    return scores, classes


def _first_batch(config: Config, train: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images that the run trained on, augmented and mixed: colours 0 to 1 (N, 3, H, W), and their targets."""
    plain = dataclasses.replace(config.data, cache="none", workers=0)  # one batch alone is read
    first = batches_of(train_loader(train, dataclasses.replace(config, data=plain), 0, 1))
    pixels, labels, _ = next(first)
    first.close()
    some = slice(config.batch // config.optim.accumulate)
    with torch.random.fork_rng(devices=[]):
        colours = mean, std = mean_and_std(config.data, torch.device("cpu"))
        mix = make_mix(config.augment, len(train.classes))
        images, targets = normalise_and_mix(config.seed, colours, mix, 0, pixels[some], labels[some].clamp(min=0))
    return (images[:MOSAIC] * std + mean).clamp(0, 1), targets
