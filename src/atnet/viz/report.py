"""A run as one HTML page."""

import logging
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup, escape
from PIL import Image

from atnet.config import make_config, read_yaml, to_yaml
from atnet.data.classes import display_names, printable, spreadsheet_safe
from atnet.data.decode import decode
from atnet.errors import AtnetError, ConfigError, DataError
from atnet.eval.evaluate import open_validation
from atnet.eval.fitting import describe_fit
from atnet.eval.metrics import Calibration, Scores, calibration, interval
from atnet.files import read_regular, require_new
from atnet.models.load import load
from atnet.progress import counted, duration
from atnet.run.record import ENVIRONMENT, accuracy, kept_weights, read_metrics, read_predictions, read_record, reading
from atnet.viz.explain import lit, maps_of
from atnet.viz.html import jpeg_address, png_address, write_page
from atnet.viz.plots import (
    CONFUSION,
    CURVES,
    MISTAKES,
    MOSAIC,
    SAMPLES,
    draw_calibration,
    mosaic,
    surest_mistakes,
)
from atnet.viz.run import render_run, scores_of
from atnet.weights.find import find_weights
from atnet.weights.info import CONFIG

log = logging.getLogger("atnet")

REPORT = "report.html"
MOST_CLASSES = 200
PHOTOS = (MISTAKES, SAMPLES)
MAX_IMAGE_BYTES = 50_000_000
LOOKED_AT = 8
"""Mistakes of which the page shows what the network looked at."""


def write_report(where: str | Path, out: str | Path | None = None) -> Path:
    """Writes a finished run's report and returns its path.

    out: the file, which must be new; report.html in the run if None, made anew each time.
    Raises ConfigError if the run is not finished or the file cannot be written.
    """
    run, record = read_record(where)
    path = Path(out).expanduser() if out else run / REPORT
    if out:
        require_new(path)
    with reading(run):
        if not all((run / name).is_file() for name in (CURVES, CONFUSION, *PHOTOS)):
            try:
                render_run(run)
            except OSError as error:
                log.warning("%s: not drawn anew (%s)", run, error)
        contents = _contents(run, record)
    write_page(path, REPORT, **contents)
    return path


def _contents(run: Path, record: dict[str, Any]) -> dict[str, Any]:
    rows = read_metrics(run)
    environment = _read_environment(run)
    scores, classes = scores_of(run, record)
    begun = f"{datetime.fromisoformat(environment['started']):%d %B %Y, %H:%M} UTC".lstrip("0")
    found = calibration(scores.predicted == scores.labels, scores.confidence)
    kept = kept_weights(record)
    top1, low, high, judged = accuracy(record)
    hardest, left_out = _class_rows(scores, display_names(classes))
    images = {name.partition(".")[0]: _embedded(run / name) for name in (CURVES, CONFUSION, *PHOTOS)}
    images["calibration"] = png_address(draw_calibration(found))
    try:
        images["looked"] = _looked_at(run, scores, display_names(classes))
        not_looked = ""
    except AtnetError as error:
        not_looked = str(error)

    def figure(name: str, says: str) -> Markup:
        if images[name] is None:
            return Markup("<p class='note'>{}.png is not in the run folder.</p>").format(name)
        return Markup("<div class='wide'><img class='{}' src='{}' alt='{}'></div>").format(name, images[name], says)

    return {
        "title": f"{record['model']} on {printable(record['data'])}",
        "subtitle": f"Run {printable(run.resolve().name)}, begun {begun}, {duration(record['seconds'])}; "
        f"{record['train_images']:,} training and {record['val_images']:,} validation images of "
        f"{record['classes']} classes at {record['size']} px. Figures are those of the "
        f"{'moving average of the weights, which --weights takes,' if kept == 'ema' else 'weights'} "
        "after the last epoch.",
        "figures": [
            (f"{top1:.2f}%", f"top-1; 95% interval {low:.1f} to {high:.1f} ({counted(judged, 'image')})"),
            *([(f"{record['top1']['last']:.2f}%", "top-1 of the last weights")] if kept != "last" else []),
            *([(f"{record['top5'][kept]:.2f}%", "top-5")] if record["classes"] > 5 else []),
            (f"{scores.balanced_accuracy:.2f}%", "balanced accuracy"),
            (f"{scores.macro_f1:.2f}%", "macro F1"),
            (f"{found.error:.1f}%", "calibration error"),
            (f"{record['parameters'] / 1e6:.2f}M", "parameters"),
            (f"{record['images_per_s']:.0f}", "training images/s"),
        ],
        "fit": [_unbroken(s) for s in _words(record, rows)],
        "classes": hardest,
        "left_out": left_out,
        "mistakes": _mistake_rows(run, scores, display_names(classes)),
        "calibration": _calibration_in_words(found, scores),
        "repeat": _how_to_repeat(record, environment),
        "environment": [(name, value) for name, value in environment.items() if name != "resumed"],
        "config": to_yaml(make_config(run / CONFIG)),
        "figure": figure,
        "not_looked": not_looked,
    }


def _words(record: dict[str, Any], rows: list[dict[str, str]]) -> list[str]:
    return [*_start_in_words(record), *_teachers_in_words(record), *describe_fit(rows, record["config"])]


def _start_in_words(record: dict[str, Any]) -> Iterator[str]:
    """Of a run from weights of other classes: its probe, and what cross-validation said of fine-tuning."""
    probe = record.get("probe", {})
    if probe:
        top1, images = probe["cross_validated_top1"], counted(int(probe["images"]), "image")
        judged = f": {top1:.1f}% in cross-validation" if top1 >= 0 else ""
        yield f"First a linear probe was fitted, a logistic regression on the features of {images}{judged}."
    if "compared_images" in probe:
        kept = "so the probe was kept" if not record["epochs"] else "so fine-tuning went on"
        yield (
            f"Of {counted(int(probe['compared_images']), 'training image')} held back for it the probe had "
            f"{probe['compared_probe']:.1f}% right and fine-tuning {probe['compared_tuned']:.1f}%, the standard error "
            f"of the difference being {probe['compared_error']:.1f}: {kept}."
        )


def _teachers_in_words(record: dict[str, Any]) -> Iterator[str]:
    """How good each teacher is itself, of a run that had some."""
    for teacher in record.get("teachers", []):
        judged = ", a linear probe of the training images" if "cross_validated" in teacher else ""
        yield f"It learned from {printable(teacher['name'])}{judged}: {teacher['top1']:.1f}% of the validation images."


def _looked_at(run: Path, scores: Scores, names: Sequence[str]) -> str:
    """The surest mistakes and, brighter, what spoke for the class called, as the address of itself.

    Raises an AtnetError if the run's weights or images are not there any more, or the network has no map.
    """
    rows, weights = read_predictions(run), find_weights(run).path
    model, info = load(weights)
    samples = open_validation(weights, None)
    place = {spreadsheet_safe(name): i for i, name in enumerate(samples.ids)}
    images, titles = [], []
    for i in surest_mistakes(scores, LOOKED_AT):
        called, image = int(scores.predicted[i]), rows[i]["image"]
        if image not in place:
            raise DataError(f"{printable(image)}: not among the run's images any more")
        pixels = info.preprocess.resize_and_crop(samples.read(place[image]))
        maps = maps_of(model, torch.from_numpy(info.preprocess.normalise(pixels))[None], called)
        images.append(Image.fromarray((255 * lit(pixels, maps.gradient, maps.stride)).round().astype(np.uint8)))
        titles.append(f"what spoke for\n{names[called]}")
    return jpeg_address(mosaic(images, titles, empty="no mistakes"))


def _class_rows(scores: Scores, names: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """A row for each of the hardest classes, and how many classes have none."""
    counts, recall, precision = scores.support, scores.recall, scores.precision
    order = [i for i in np.argsort(recall, kind="stable").tolist() if counts[i]]
    rows = []
    for i in order[:MOST_CLASSES]:
        wrong = np.bincount(scores.predicted[scores.labels == i], minlength=scores.classes)
        wrong[i] = 0
        k = int(wrong.argmax())
        rows.append(
            {
                "name": printable(names[i]),
                "count": int(counts[i]),
                "recall": f"{recall[i]:.1f}%",
                "interval": "{:.0f} to {:.0f}".format(*interval(recall[i], int(counts[i]))),
                "bar": round(recall[i]),
                "precision": "-" if np.isnan(precision[i]) else f"{precision[i]:.1f}%",
                "instead": f"{printable(names[k])} ({wrong[k]})" if wrong[k] else "",
            }
        )
    return rows, len(order) - len(rows)


def _mistake_rows(run: Path, scores: Scores, names: Sequence[str]) -> list[dict[str, str]]:
    """The images that the picture of mistakes has, in its order."""
    rows = read_predictions(run)
    return [
        {
            "image": printable(rows[i]["image"]),
            "class": printable(names[scores.labels[i]]),
            "called": printable(names[scores.predicted[i]]),
            "confidence": f"{100 * scores.confidence[i]:.1f}%",
        }
        for i in surest_mistakes(scores, MOSAIC)
    ]


def _unbroken(sentence: str) -> Markup:
    """The sentence with its options as code, which a narrow page does not break."""
    return Markup(re.sub(r"(--[\w.-]*\w(?: \d[\d.]*\b)?)", r"<code>\1</code>", str(escape(sentence))))


def _calibration_in_words(found: Calibration, scores: Scores) -> str:
    accuracy, sure = scores.top1, 100 * float(scores.confidence.mean())
    leaning = "agrees with" if abs(sure - accuracy) < 1 else "lies above" if sure > accuracy else "lies below"
    return (
        f"Mean confidence, {sure:.1f}%, {leaning} accuracy, {accuracy:.1f}%. The expected calibration error over "
        f"{len(found.count)} bins is {found.error:.1f}%: the mean distance between a stated probability and the truth."
    )


def _how_to_repeat(record: dict[str, Any], environment: dict[str, Any]) -> str:
    commit = str(environment.get("commit") or "")
    lines = [f"pip install atnet=={environment['atnet']} torch=={environment['torch']}"]
    if commit:
        changed = "  # with changes that were not committed" if commit.endswith("+") else ""
        lines = [f"git checkout {commit.rstrip('+')}{changed}"]
    lines.append(str(environment["command"]))
    lines.append(f"# or: atnet train {CONFIG}   (seed {record['seed']}, {environment['threads']} threads)")
    return "\n".join(printable(line) for line in lines)


def _embedded(path: Path) -> str | None:
    """An image of the run folder as a data URI, photos as JPEG; None if it is not there.

    Raises DataError if it is no image.
    """
    try:
        content = read_regular(path, MAX_IMAGE_BYTES, DataError)
    except FileNotFoundError:
        return None
    image = decode(content, str(path))
    return jpeg_address(image) if path.name in PHOTOS else png_address(content)


def _read_environment(run: Path) -> dict[str, Any]:
    """What the run was trained with. Raises ConfigError if the file is damaged."""
    found = read_yaml(run / ENVIRONMENT)
    try:
        datetime.fromisoformat(found["started"])
        missing = {"atnet", "torch", "command", "threads"} - found.keys()
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{run / ENVIRONMENT}: damaged (no time when it started); bring it back from a copy"
        ) from error
    if missing:
        raise ConfigError(f"{run / ENVIRONMENT}: damaged (no {', '.join(sorted(missing))}); bring it back from a copy")
    return found
