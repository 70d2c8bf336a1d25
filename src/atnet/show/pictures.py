"""Pictures of a run: the only file that draws."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CURVES = "curves.png"


def draw_curves(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Loss, top-1 and learning rate over the epochs of a run's metrics, as a PNG.

    The gap between training and validation is shaded; training is measured on augmented pictures.
    """
    epochs = [int(row["epoch"]) for row in rows]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    loss, top1, rate = figure.subplots(1, 3)
    for axes, kind, title in ((loss, "loss", "Cross-entropy"), (top1, "top1", "Top-1, %")):
        train, val = ([float(row[f"{part}_{kind}"]) for row in rows] for part in ("train", "val"))
        axes.fill_between(epochs, train, val, color="0.92")
        axes.plot(epochs, train, color="#4477aa", label="training", marker=".")
        axes.plot(epochs, val, color="#cc6677", label="validation", marker=".")
        if rows[-1][f"ema_val_{kind}"]:
            average = [float(row[f"ema_val_{kind}"]) for row in rows]
            axes.plot(epochs, average, color="#cc6677", label="validation, moving average", linestyle="--")
        axes.set_title(title)
        axes.legend(fontsize="small")
    rate.plot(epochs, [float(row["lr"]) for row in rows], color="#228833", marker=".")
    rate.set_title("Learning rate at the epoch's end")
    for axes in (loss, top1, rate):
        axes.set_xlabel("Epoch")
        axes.set_xlim(0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
