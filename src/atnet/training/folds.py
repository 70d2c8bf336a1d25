"""Cross-validation: as many trainings as folds, each validated on images that it has not seen, nor copies of."""

import dataclasses
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from atnet.config import Config
from atnet.data.duplicates import near_pairs, sketch
from atnet.data.samples import Samples
from atnet.data.sources import open_labelled
from atnet.errors import ConfigError, DataError
from atnet.eval.metrics import interval
from atnet.files import csv_table, write_whole
from atnet.progress import progress_bar
from atnet.run.record import (
    RECORD,
    accuracy,
    checkpoints,
    kept_weights,
    open_run,
    read_predictions,
    read_record,
)
from atnet.training import distributed
from atnet.training.loop import resume_run, train_config
from atnet.training.plan import settle
from atnet.weights.info import CONFIG

LIST, TABLE, PREDICTIONS = "images.csv", "folds.csv", "predictions.csv"
log = logging.getLogger("atnet")


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Finished trainings of each fold, below the folder out.

    records: theirs.  top1: of all images, each answered by the network that did not train on it, percent; low, high:
    its 95% interval.  spread: standard deviation of the folds' own top-1.
    """

    out: Path
    records: list[dict[str, Any]]
    top1: float
    low: float
    high: float
    spread: float


def cross_validate(config: Config, folds: int, out: str | Path) -> Folds:
    """Trains once for each of so many folds of the training images, and puts the answers of all into one table.

    Folds have each class in the same share; images that are the same or nearly the same are in one. A validation part
    of the source is left alone. What was stopped goes on by the same command.
    Raises ConfigError if a class has fewer images than folds, or out is of another training; and what `train` does.
    """
    if distributed.is_distributed():
        raise ConfigError("--folds trains by one process: leave torchrun out")
    config, out = settle(config), Path(out)
    samples = open_labelled(config.data.source, "train")
    files = [samples.locate(i) for i in range(len(samples))]
    if not os.path.isfile(files[0]):
        raise ConfigError(f"{config.data.source}: folds are of image files: unpack them into a folder")
    assigned = assign(samples, folds)
    for fold in range(folds):
        _train_fold(config, out / f"fold-{fold + 1}", _rows(samples, files, assigned == fold))
    records = [read_record(out / f"fold-{fold + 1}")[1] for fold in range(folds)]
    rows = [{"fold": fold + 1, **row} for fold in range(folds) for row in read_predictions(out / f"fold-{fold + 1}")]
    write_whole(out / PREDICTIONS, csv_table(rows).encode())
    each = [accuracy(record) for record in records]
    table = [
        {"fold": fold + 1, "weights": kept_weights(record), "top1": f"{top1:.2f}", "low": f"{low:.2f}",
         "high": f"{high:.2f}", "images": count}
        for fold, (record, (top1, low, high, count)) in enumerate(zip(records, each, strict=True))
    ]  # fmt: skip
    write_whole(out / TABLE, csv_table(table).encode())
    top1 = 100 * sum(row["class"] == row["called"] for row in rows) / len(rows)
    low, high = interval(top1, len(rows))
    spread = float(np.std([found for found, *_ in each], ddof=1))
    return Folds(out=out, records=records, top1=top1, low=low, high=high, spread=spread)


def assign(samples: Samples, folds: int) -> NDArray[np.int64]:
    """The fold of each image, 0 to folds - 1: stratified, and one for all copies of an image.

    Raises ConfigError if there are fewer than two folds, or fewer images of a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    counts = np.bincount(samples.labels, minlength=len(samples.classes))
    fewest = int(counts.argmin())
    if not 2 <= folds <= counts[fewest]:
        raise ConfigError(
            f"--folds {folds}: use 2 to {counts[fewest]}, the images of {samples.classes[fewest]}, which has the fewest"
        )
    found = np.zeros(len(samples), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for fold, (_, held) in enumerate(splitter.split(samples.labels, samples.labels, copies(samples))):
        found[held] = fold
    return found


def copies(samples: Samples) -> NDArray[np.int64]:
    """A number for each image, the same for those that are one file, or nearly one image, or copies of such."""
    first: dict[bytes, int] = {}
    pairs: list[tuple[int, int]] = []
    sketched: list[int] = []
    sketches = []
    with progress_bar("Looking for copies", len(samples)) as advance:
        for i in range(len(samples)):
            advance(1)
            try:
                digest = hashlib.sha256(samples.read_bytes(i)).digest()
                if digest in first:
                    pairs.append((first[digest], i))
                    continue
                first[digest] = i
                sketches.append(sketch(samples.read(i)))
                sketched.append(i)
            except DataError:
                continue  # training lists it
    if sketches:
        near = near_pairs(np.stack([one.bands for one in sketches]), np.stack([one.miniature for one in sketches]))
        pairs += [(sketched[one], sketched[other]) for one, other in near.tolist()]
    if pairs:
        log.info("%d pairs of copies stay in one fold each", len(pairs))
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(samples), len(samples)))
    numbers: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


def _rows(samples: Samples, files: list[str], held: NDArray[np.bool_]) -> list[dict[str, str]]:
    return [
        {"path": os.path.abspath(file), "label": samples.classes[label], "split": "val" if out else "train"}
        for file, label, out in zip(files, samples.labels.tolist(), held.tolist(), strict=True)
    ]


def _train_fold(config: Config, run: Path, rows: list[dict[str, str]]) -> None:
    """Trains the fold's network, or goes on with it; nothing if it is finished."""
    listed, place = csv_table(rows).encode(), run.with_name(f"{run.name}-{LIST}")
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, source=str(place.resolve()), classes="", mismatch="error")
    )
    if not (run / CONFIG).exists():
        run.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, listed)
        train_config(config, out=run)
        return
    had = open_run(run)
    same = dataclasses.replace(had, epochs=had.epochs or config.epochs) == config  # a probe that was kept has none
    if not same or not place.exists() or place.read_bytes() != listed:
        raise ConfigError(f"{run}: of other images, folds or options: give another --out, or remove {run.parent}")
    if (run / RECORD).exists():
        log.info("%s: done", run)
    elif checkpoints(run):
        resume_run(run)
    else:
        train_config(config, out=run)
