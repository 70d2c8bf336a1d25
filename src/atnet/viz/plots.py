"""Plots from plain rows: curves, confusion matrix, mosaics of images, benchmarks, studies."""

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import one_hot

from atnet.eval.metrics import Calibration, Scores
from atnet.files import write_whole
from atnet.models.sizes import FAMILY
from atnet.progress import counted

if TYPE_CHECKING:
    from atnet.bench.bench import Timing
    from atnet.bench.blocks import Block
    from atnet.export.quantize import Trial
    from atnet.study.study import Bar
    from atnet.study.table import Point

CURVES, CONFUSION, MISTAKES, SAMPLES = "curves.png", "confusion.png", "mistakes.png", "samples.png"
BLUE, RED, GREEN = "#4477aa", "#cc6677", "#228833"
MOSAIC = 16
NAMED = 40
"""Most classes whose names fit beside a confusion matrix."""

CELLS = 1000
"""Most cells along a side of a drawn confusion matrix; of more classes, several share one."""


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Writes a figure as the ending of its file says. Raises OSError if the disk does not take it."""
    content = BytesIO()
    figure.savefig(content, dpi=dpi, format=path.suffix.removeprefix(".") or "png")
    write_whole(path, content.getbuffer())


def _save_image(image: Image.Image, path: Path) -> None:
    content = BytesIO()
    image.save(content, "PNG")
    write_whole(path, content.getbuffer())


def draw_curves(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Loss, top-1 and learning rate over the epochs of a run's metrics, as a PNG.

    The gap between training and validation is shaded; training is measured on augmented images.
    """
    evaluated = [row for row in rows if row["val_loss"]]
    epochs, at = ([int(row["epoch"]) for row in some] for some in (rows, evaluated))
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    loss, top1, rate = figure.subplots(1, 3)
    for axes, kind, title in ((loss, "loss", "Cross-entropy"), (top1, "top1", "Top-1, %")):
        train, val = ([float(row[f"{part}_{kind}"]) for row in evaluated] for part in ("train", "val"))
        axes.fill_between(at, train, val, color="0.92", label="gap")
        axes.plot(epochs, [float(row[f"train_{kind}"]) for row in rows], color=BLUE, label="training", marker=".")
        axes.plot(at, val, color=RED, label="validation", marker=".")
        if evaluated[-1][f"ema_val_{kind}"]:
            average = [float(row[f"ema_val_{kind}"]) for row in evaluated]
            axes.plot(at, average, color=RED, label="validation, moving average", linestyle="--")
        axes.set_title(title)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    rate.plot(epochs, [float(row["lr"]) for row in rows], color=GREEN, marker=".")
    rate.set_title("Learning rate at the epoch's end")
    for axes in (loss, top1, rate):
        axes.set_xlabel("Epoch")
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)  # a probe's only row is of epoch 0
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=110)


def draw_confusion(confusion: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """The confusion matrix as a PNG: a row a true class, its shares over the called ones.

    confusion: counts, (classes, classes), or of groups of neighbouring classes, as many as are drawn.
    Names are left out beyond 40 classes, counts beyond 20; beyond 1,000, neighbouring classes are counted together.
    """
    classes = len(names)
    side = min(4 + 0.32 * classes, 14)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    each = -(-classes // CELLS)
    if each > 1 and len(confusion) == classes:
        starts = np.arange(0, classes, each)
        confusion = np.add.reduceat(np.add.reduceat(confusion, starts, axis=0), starts, axis=1)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    edges = (-0.5, each * len(confusion) - 0.5)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, extent=(*edges, *edges[::-1]))
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    if classes <= NAMED:
        shown = [drawable(name, 22) for name in names]
        axes.set_xticks(range(classes), shown, rotation=90, parse_math=False)
        axes.set_yticks(range(classes), shown, parse_math=False)
    if classes <= NAMED / 2:
        size = "medium" if classes <= 10 else "small"
        for row, column in np.argwhere(confusion):
            colour = "white" if shares[row, column] > 0.5 else "0.2"
            count = str(confusion[row, column])
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=size)
    axes.set_xlabel("class called by the network")
    axes.set_ylabel("true class")
    save_figure(figure, path, dpi=100)


def draw_mistakes(
    images: list[Image.Image], worst: Sequence[int], scores: Scores, names: Sequence[str], path: Path
) -> None:
    """Mistakes, at these positions among the scores, as a PNG."""
    titles = [
        f"network: {names[scores.predicted[i]]}, {100 * scores.confidence[i]:.0f}%\ntruth: {names[scores.labels[i]]}"
        for i in worst
    ]
    _save_image(mosaic(images, titles, empty="no mistakes"), path)


def surest_mistakes(scores: Scores, most: int) -> list[int]:
    """Positions of the most confident mistakes, the surest first."""
    wrong = np.flatnonzero(scores.predicted != scores.labels)
    worst: list[int] = wrong[np.argsort(-scores.confidence[wrong], kind="stable")][:most].tolist()
    return worst


def draw_samples(pixels: Tensor, targets: Tensor, names: Sequence[str], path: Path) -> None:
    """Training samples as the network sees them after augmentation, as a PNG.

    pixels: colours 0 to 1, (N, 3, H, W), N up to 16.  targets: labels (N,) or shares (N, classes).
    """
    targets = targets[: len(pixels)].cpu()
    shares = targets if targets.ndim > 1 else one_hot(targets, len(names))
    titles = []
    for share in np.asarray(shares, dtype=np.float64):
        first = np.argsort(-share, kind="stable")[:2]
        titles.append("\n".join(f"{names[i]} {100 * share[i]:.0f}%" if share[i] < 1 else names[i]
                                for i in first if share[i] > 0))  # fmt: skip
    colours = (255 * pixels).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    _save_image(mosaic([Image.fromarray(one) for one in colours], titles, empty="no samples"), path)


def draw_calibration(found: Calibration) -> bytes:
    """Accuracy over confidence, and how many images have which, as a PNG."""
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0, 100, len(found.count) + 1)
    axes.bar(edges[:-1], 100 * found.count / found.count.sum(), np.diff(edges), align="edge", color="0.9",
             label="share of the images")  # fmt: skip
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=1)
    axes.plot(found.confidence, found.accuracy, color=BLUE, marker=".", label="accuracy")
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("%")
    axes.legend(fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    written = BytesIO()
    figure.savefig(written, dpi=100)
    return written.getvalue()


def draw_accuracy(title: str, points: "Sequence[Point]", path: Path) -> None:
    """Top-1 over parameters, as a PNG: AT-Net's sizes, joined by a line for each number of epochs, and other networks.

    A bar is a standard deviation over seeds. Open circles, not named: several heads, taught by other networks, the
    published recipe and layouts.
    """
    figure = Figure(figsize=(8.5, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xscale("log")
    axes.margins(0.16, 0.08)
    names: list[Annotation] = []
    for epochs in sorted({point.epochs for point in points}):
        drawn = sorted((point for point in points if point.epochs == epochs), key=lambda point: point.parameters)
        sizes = [point for point in drawn if point.row.removeprefix("atnet_") in FAMILY]
        axes.plot([point.parameters for point in sizes], [point.top1 for point in sizes], color=RED, alpha=0.5)
        for point in drawn:
            ours, plain = point.row.startswith("atnet_"), point in sizes
            color, opened = RED if ours else BLUE, ours and not plain
            axes.errorbar(
                point.parameters, point.top1, point.spread, marker="o", color=color, capsize=3,
                markerfacecolor="white" if opened else color,
            )  # fmt: skip
            if opened:
                continue
            name = point.row.removeprefix("atnet_") + (f", {epochs} epochs" if plain and point is sizes[-1] else "")
            text = axes.annotate(
                name, (point.parameters, point.top1), xytext=(7, 3), textcoords="offset points", fontsize="small",
                fontweight="bold" if plain else "normal", color=color,
            )  # fmt: skip
            names.append(text)
    axes.plot([], [], "o", color=RED, markerfacecolor="white", label="several heads, taught, or as published")
    others = sorted({point.epochs for point in points if not point.row.startswith("atnet_")})
    if others:
        axes.plot([], [], "o", color=BLUE, label=f"other networks, {' and '.join(map(str, others))} epochs")
    axes.legend(frameon=False, loc="lower left")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda count, _: f"{count / 1e6:g}M")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Parameters without classifier")
    axes.set_ylabel("Top-1, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()  # the layout, in which the names are parted
    part_names(axes, names)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, dpi=110)


def part_names(axes: Axes, names: Sequence[Annotation]) -> None:
    """Moves the names of points up or down, each no farther than it has to, until none covers another or a point."""
    taken = [Bbox([dot - 5, dot + 5]) for dot in (axes.transData.transform(name.xy) for name in names)]
    for name in sorted(names, key=lambda name: -name.xy[1]):
        box, (right, up) = name.get_window_extent(), name.get_position()
        step = box.height / 4
        moves = sorted((step * i for i in range(-60, 61)), key=abs)
        move = next((move for move in moves if not any(box.translated(0, move).overlaps(other) for other in taken)), 0)
        name.set_position((right, up + move * 72 / axes.figure.dpi))
        taken.append(box.translated(0, move))


def draw_bench(timings: "Sequence[Timing]", path: Path) -> None:
    """Milliseconds an image of each network as a PNG: curves over what was varied, else bars."""
    varied = next((name for name in ("size", "batch", "threads") if len({getattr(t, name) for t in timings}) > 1), None)
    panels: dict[str, list[Timing]] = {}
    for timing in timings:
        setting = {
            "size": f"{timing.size} px",
            "batch": f"batch {timing.batch}",
            "threads": counted(timing.threads, "thread"),
        }
        title = ", ".join([timing.engine, *(words for name, words in setting.items() if name != varied)])
        panels.setdefault(title, []).append(timing)
    tallest = max(map(len, panels.values()))
    height = 4.2 if varied else 1.2 + 0.28 * tallest
    figure = Figure(figsize=(6.5 * len(panels), height), layout="constrained")
    for axes, (title, shown) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        axes.set_title(title, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        if varied:
            _curves(axes, [(t.model.removeprefix("atnet_"), getattr(t, varied), t.median / t.batch) for t in shown])
            axes.set_xlabel({"size": "side of the image, px", "batch": "images at a time"}.get(varied, varied))
            axes.set_ylabel("milliseconds an image")
            continue
        shown = sorted(shown, key=lambda timing: -timing.median)
        bars = axes.barh(
            [timing.model.removeprefix("atnet_") for timing in shown],
            [timing.median / timing.batch for timing in shown],
            color=[RED if timing.model.startswith("atnet_") else BLUE for timing in shown],
        )
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize="small")
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_xlabel("milliseconds an image")
    save_figure(figure, path, dpi=100)


def draw_blocks(blocks: "Sequence[Block]", path: Path) -> None:
    """Milliseconds of each block over its width, a curve for each stride, as a PNG."""
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    _curves(axes, [(f"{block.name}, stride {block.stride}", block.width, block.median) for block in blocks])
    axes.set_xlabel("width, channels")
    axes.set_ylabel("milliseconds")
    save_figure(figure, path, dpi=100)


def draw_study(bars: "Sequence[Bar]", path: Path, unit: str) -> None:
    """What came out of a study, a line a variant or factor with its spread, as a PNG."""
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(bars)), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.errorbar(
        [bar.value for bar in bars], [bar.name for bar in bars], xerr=[bar.spread for bar in bars],
        fmt="o", color=BLUE, capsize=3,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(unit)
    save_figure(figure, path, dpi=100)


def draw_dots(groups: "dict[str, list[tuple[float, ...]]]", titles: "Sequence[str]", path: Path) -> None:
    """Groups of like things, a line each, beside each other as a PNG: a dot a thing, a bar at their mean.

    groups: of each thing a figure for each title.
    """
    figure = Figure(figsize=(2 + 3.2 * len(titles), 0.8 + 0.4 * len(groups)), layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True)
    for number, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for name, things in groups.items():
            values = [thing[number] for thing in things]
            axes.plot(values, [name] * len(values), "o", color=BLUE, alpha=0.6)
            axes.plot([sum(values) / len(values)], [name], "|", color=RED, markersize=18, markeredgewidth=2)
        axes.set_title(title, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
        axes.margins(y=0.2)
    panels[0].invert_yaxis()
    save_figure(figure, path, dpi=100)


def draw_quantized(trials: "Sequence[Trial]", costs: dict[str, float], max_drop: float, path: Path) -> None:
    """Top-1, size and time of each trial, and what each part costs in 8 bits, as a PNG.

    max_drop: points of top-1 below the first trial that are allowed.
    """
    tallest = max(len(trials), len(costs))
    figure = Figure(figsize=(13, 1.4 + 0.24 * tallest), layout="constrained")
    top1, size, time, cost = figure.subplots(1, 4)
    names = [trial.name for trial in trials]
    top1.plot([trial.top1 for trial in trials], names, "o", color=BLUE)
    top1.axvline(trials[0].top1 - max_drop, color=RED, linestyle="--")
    top1.set_title(f"Top-1, %; dashed: {max_drop:g} points less")
    panels = (
        (size, "Megabytes", names, [trial.megabytes for trial in trials]),
        (time, "Milliseconds an image", names, [trial.milliseconds for trial in trials]),
        (cost, "Error of the logits, one part in 8 bits, %", list(costs), [100 * one for one in costs.values()]),
    )
    for axes, title, lines, values in panels:
        axes.bar_label(axes.barh(lines, values, color=BLUE), fmt="%.3g", padding=3, fontsize="small")
        axes.set_title(title)
        axes.margins(x=0.15)
    for axes in (top1, size, time, cost):
        axes.title.set_fontsize("medium")
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", labelsize="small", labelleft=axes not in (size, time))
    save_figure(figure, path, dpi=100)


def _curves(axes: Axes, points: "Sequence[tuple[str, int, float]]") -> None:
    """A curve a name through its points (x, y), on logarithmic axes whose x ticks are the values there are."""
    for name in dict.fromkeys(point[0] for point in points):
        curve = sorted(point[1:] for point in points if point[0] == name)
        axes.plot(*zip(*curve, strict=True), marker=".", label=name)
    ticks = sorted({x for _, x, _ in points})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize="small")


def mosaic(images: list[Image.Image], titles: list[str], *, empty: str) -> Image.Image:
    """Images with a title of one or two lines above each, four in a row.  empty: what to write if there are none."""
    side, gap, letters, columns = 232, 10, 13, 4
    font = ImageFont.truetype(findfont("DejaVu Sans"), letters)
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    head = lines * (letters + 2) + 18  # the space above a title is wider than that below it
    rows = max(-(-len(images) // columns), 1)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (head + side + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = gap + place % columns * (side + gap), gap + place // columns * (head + side + gap)
        scale = side / max(image.size)
        shown = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        smooth = Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.NEAREST  # pixels stay visible
        sheet.paste(image.resize(shown, smooth), (x, y + head))
        for line, words in enumerate(title.split("\n")[:2]):
            pen.text((x, y + 14 + line * (letters + 2)), drawable(words, 30), "black", font)
    if not images:
        pen.text((gap, gap), empty, "black", font)
    return sheet


def drawable(name: str, length: int) -> str:
    """The name as the figures' font has it: letters that are not in it become "?"; shortened to the length."""
    known = _letters()
    shown = "".join(c if ord(c) in known else "?" for c in name)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
