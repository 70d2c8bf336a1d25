"""Where a network's parameters and multiply-adds lie."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from atnet.models.cost import parts_of
from atnet.viz.plots import save_figure

LEAST = 0.05
"""Share from which a part has its figure written into it."""


def draw_parts(models: Sequence[str], size: int, path: Path) -> None:
    """For each network two bars of shares, parameters and multiply-adds at size x size, as a PNG.

    Raises ConfigError if a network cannot be built.
    """
    found = {model: parts_of(model, size) for model in models}
    names = [name for name in next(iter(found.values())) if any(sum(parts[name]) for parts in found.values())]
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    figure = Figure(figsize=(11, 1.1 + 0.36 * len(models)), layout="constrained")
    for axes, kind, title in zip(
        figure.subplots(1, 2, sharey=True), (0, 1), ("Parameters", f"Multiply-adds at {size} px"), strict=True
    ):
        totals = [sum(part[kind] for part in parts.values()) for parts in found.values()]
        begin = [0.0] * len(models)
        for name, colour in zip(names, colours, strict=False):
            share = [parts[name][kind] / total for parts, total in zip(found.values(), totals, strict=True)]
            bars = axes.barh(range(len(models)), share, left=begin, color=colour, label=name)
            axes.bar_label(
                bars, [f"{100 * x:.0f}" if x >= LEAST else "" for x in share], label_type="center", color="white"
            )
            begin = [a + b for a, b in zip(begin, share, strict=True)]
        for row, total in enumerate(totals):
            axes.text(1.01, row, f"{total / 1e6:,.{1 if total < 1e7 else 0}f}M", va="center")
        axes.set_title(f"{title}, %")
        axes.set_yticks(range(len(models)), models)
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False)
    save_figure(figure, path, dpi=100)
