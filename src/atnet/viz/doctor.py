"""A dataset's diagnosis as one HTML page."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from atnet.data.classes import display_names, printable, spreadsheet_safe
from atnet.data.loader import TrainSet
from atnet.data.order import Draw
from atnet.data.samples import Samples
from atnet.errors import DataError
from atnet.eval.doctor import Diagnosis, Finding
from atnet.files import csv_table, write_whole
from atnet.training.labels import Labels, Named
from atnet.training.plan import configure
from atnet.viz.html import jpeg_address, write_page
from atnet.viz.plots import BLUE, mosaic

PAGE = "doctor.html"
MOST_LINES, MOST_PAIRS, MOST_CLASSES, SAMPLES, MOST_LABELS = 50, 8, 200, 16, 32
LABELS = {"wrong": "Mend this.", "odd": "Look at this.", "fine": "Good to know."}


def write_diagnosis(found: Diagnosis, out: Path, forecast: str, labels: Labels | None = None) -> None:
    """Writes the page. Raises ConfigError if the file cannot be written.

    forecast: how long training will take, in words.  labels: what a network says of them, if it was asked.
    """
    train, val = found.parts["train"], found.parts["val"]
    counts, counts_val = (np.bincount(part.labels, minlength=len(train.classes)) for part in (train, val))
    before, after = _samples(found)
    write_page(
        out,
        PAGE,
        title=f"The data set {printable(Path(found.source).name)}",
        subtitle=f"{len(train):,} training and {len(val):,} validation images of {len(train.classes):,} classes",
        verdict="Nothing found would corrupt a result."
        if found.healthy
        else "Mend what is marked first: it would corrupt a result.",
        figures=[
            (f"{len(train):,}", "training images"),
            (f"{len(val):,}", "validation images"),
            (f"{len(train.classes):,}", "classes"),
            (f"{int(np.median(found.sides.min(1))) if len(found.sides) else 0} px", "median shorter side"),
        ],
        findings=[_shown(finding, found.parts) for finding in found.findings],
        classes=_class_rows(display_names(train.classes), counts, counts_val),
        left_out=max(len(train.classes) - MOST_CLASSES, 0),
        labels=_of_labels(found, labels) if labels else {},
        sizes=jpeg_address(_draw_sizes(found.sides)),
        before=jpeg_address(before),
        after=jpeg_address(after),
        advice=f"A first training of this data set: {forecast}.",
        command=f"atnet train --data {printable(found.source)} {found.advice.command}".rstrip(),
    )


def write_labels(found: Labels, page: Path) -> list[Path]:
    """Beside the page, the labels to look at and the images to label next, as CSV files; returns their paths.

    Raises OSError if one cannot be written.
    """
    doubtful = [
        {
            "part": one.part, "image": spreadsheet_safe(one.image), "label": spreadsheet_safe(one.label),
            "looks_like": spreadsheet_safe(one.likely), "probably_wrong": f"{one.wrong:.3f}",
        }
        for one in found.doubtful
    ]  # fmt: skip
    following = [
        {"image": spreadsheet_safe(one.image), "looks_like": spreadsheet_safe(one.likely), "unsure": f"{one.wrong:.3f}"}
        for one in found.following
    ]
    written = []
    for name, rows in (("labels", doubtful), ("next", following)):
        if rows:
            written.append(page.with_name(f"{page.stem}-{name}.csv"))
            write_whole(written[-1], csv_table(rows).encode())
    return written


def _of_labels(found: Diagnosis, labels: Labels) -> dict[str, Any]:
    def shown(named: Sequence[Named], samples: dict[str, Samples]) -> str:
        images, titles = [], []
        for one in named[:MOST_LABELS]:
            try:
                images.append(samples[one.part].read(one.place))
            except DataError:
                images.append(Image.new("RGB", (8, 8), "white"))
            said = f"{one.label}?" if one.label else Path(one.image).name
            titles.append(printable(f"{said}\nlike {one.likely}"))
        return jpeg_address(mosaic(images, titles, empty="")) if images else ""

    return {
        "rate": f"{100 * labels.rate:.1f}%",
        "judged": f"{labels.judged:,}",
        "count": len(labels.doubtful),
        "doubtful": shown(labels.doubtful, found.parts),
        "following": shown(labels.following, {"": labels.unlabelled} if labels.unlabelled else {}),
    }


def _shown(finding: Finding, parts: dict[str, Samples]) -> dict[str, Any]:
    images, titles = [], []
    for one, i, other, k in finding.pairs[:MOST_PAIRS]:
        for part, place in ((one, i), (other, k)):
            try:
                images.append(parts[part].read(place))
            except DataError:
                images.append(Image.new("RGB", (8, 8), "white"))
            samples = parts[part]
            titles.append(f"{part}, {samples.classes[samples.labels[place]]}\n{Path(samples.ids[place]).name}")
    return {
        "grave": finding.grave,
        "label": LABELS[finding.grave],
        "what": printable(finding.what),
        "remedy": finding.remedy,
        "examples": [printable(line) for line in finding.examples[:MOST_LINES]],
        "more": max(len(finding.examples) - MOST_LINES, 0),
        "images": jpeg_address(mosaic(images, titles, empty="")) if images else "",
    }


def _class_rows(names: Sequence[str], counts: NDArray[np.int64], counts_val: NDArray[np.int64]) -> list[dict[str, Any]]:
    order = np.argsort(counts, kind="stable")[:MOST_CLASSES].tolist()
    return [
        {
            "name": printable(names[i]),
            "train": f"{counts[i]:,}",
            "val": f"{counts_val[i]:,}",
            "bar": round(160 * counts[i] / max(int(counts.max()), 1)),
        }
        for i in order
    ]


def _samples(found: Diagnosis) -> tuple[Image.Image, Image.Image]:
    """Training images over all classes, and what the first epoch makes of them."""
    train = found.parts["train"]
    advised = found.advice.settings
    config = configure(**advised | {"data": advised["data"] | {"cache": "none"}})
    train_set = TrainSet(train, config)
    names = display_names(train.classes)
    before, after, titles = [], [], []
    for place in np.linspace(0, len(train) - 1, min(SAMPLES, len(train))).round().astype(int).tolist():
        pixels, _, hole = train_set[Draw(0, place)]
        if hole is None:
            before.append(train.read(place))
            after.append(Image.fromarray(pixels.permute(1, 2, 0).to(torch.uint8).numpy()))
            titles.append(printable(names[train.labels[place]]))
    return mosaic(before, titles, empty="none can be read"), mosaic(after, titles, empty="none can be read")


def _draw_sizes(sides: NDArray[np.int64]) -> Image.Image:
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(sides.min(1) if len(sides) else [], bins=40, color=BLUE)
    axes.set_xlabel("shorter side, pixels")
    axes.set_ylabel("images")
    axes.spines[["top", "right"]].set_visible(False)
    written = io.BytesIO()
    figure.savefig(written, dpi=100)
    return Image.open(written, formats=["PNG"])
