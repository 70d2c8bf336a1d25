"""`make proof-explain`: the answer hangs on what the maps of `atnet explain` mark, and the maps hang on the weights.

python explain.py PHOTOS PNG [COUNT]. On COUNT validation photos, 200 unless said, of the network that comes with the
package, at its own size.

Deletion and insertion (Petsiuk et al. 2018, "RISE"). The grid's places, squares of 16 pixels, are put in the order of a
map, the strongest first. Sixteenth by sixteenth they are painted over with the mean colour; or they are laid bare in
the photo blurred by a Gaussian of 10 pixels, which leaves of the answer what chance would. Counted is the probability
of the class that the whole photo is called; the figure is its mean over the share of the places, by trapezoids, and
over the photos. Beside the maps: three random orders of each photo, a Gaussian around its middle, and two gradient maps
that were not chosen: activations times their own gradient (HiResCAM, Draelos & Carin 2020), and attention times its
gradient (Chefer et al. 2021).

Randomisation (Adebayo et al. 2018). From the head down to the stem parts get freshly drawn weights, each in addition
to those before, drawn anew for every fourth photo: the mean of Spearman's rank correlation of a map with the trained
network's, and the mean of its size. The gradient map stays that of the class which the trained network calls.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor

import atnet
from atnet.data.sources import open_labelled
from atnet.progress import progress_bar
from atnet.viz.explain import Maps, attention_weights, maps_of

TEN = "xxxs.imagenette"

COUNT, STEPS, BLUR, ORDERS, EVERY = 200, 16, 10.0, 3, 4
LEAST_GAIN, MOST_ALIKE = 0.1, 0.3
"""Insertion of the gradient map above that of random order; rank correlation where all weights are drawn anew."""

COLOURS = {
    "gradient map": "#cc3311", "class token, last layer": "#0077bb", "class token, all layers": "#33bbee",
    "activation x gradient": "#ee7733", "attention x gradient": "#009988", "centre": "#555555",
    "random order": "#aaaaaa",
}  # fmt: skip
PARTS = {
    "head": ("head",), "encoder": ("norm", "encoder", "cls_token", "reg_token"), "stage 3": ("stages.2",),
    "stage 2": ("stages.1",), "stage 1": ("stages.0",), "stem": ("stem",),
}  # fmt: skip
Grid = NDArray[np.float32]
Curve = NDArray[np.float64]


def ours(maps: Maps) -> dict[str, Grid]:
    return {
        "gradient map": maps.gradient,
        "class token, last layer": maps.attention[-1, 0].mean(0),
        "class token, all layers": maps.rollout[0],
    }


def rivals(model: Any, image: Tensor, label: int) -> dict[str, Grid]:
    """Of a network whose layers are all of class attention."""
    grid = model.stages(model.stem(image)).detach().requires_grad_()
    prefix, weights = model.num_prefix_tokens, []
    tokens = model.add_prefix_tokens(grid)
    for layer in model.encoder:
        query, key, value = layer.attention.project(layer.norm1(tokens))
        weights.append(attention_weights(query[0], key[0]))
        gathered = layer.attention.proj((weights[-1] @ value[0]).transpose(0, 1).reshape(1, prefix, -1))
        updated = tokens[:, :prefix] + gathered
        tokens = torch.cat([updated + layer.mlp(layer.norm2(updated)), tokens[:, prefix:]], 1)
    logit = model.forward_head(model.norm(tokens))[0, label]
    slope, *slopes = torch.autograd.grad(logit, [grid, *weights])
    shares = torch.eye(tokens.shape[1])
    for weight, steep in zip(weights, slopes, strict=True):
        shares[:prefix] += (weight * steep).clamp(min=0).mean(0).detach() @ shares
    return {
        "activation x gradient": (slope * grid.detach())[0].sum(0).numpy(),
        "attention x gradient": shares[0, prefix:].reshape(grid.shape[2:]).numpy(),
    }


def baselines(side: int, number: int) -> dict[str, list[Grid]]:
    draws = np.random.default_rng(number)
    off = (np.arange(side) - (side - 1) / 2) ** 2
    return {
        "centre": [np.exp(-(off[:, None] + off) / (2 * (side / 4) ** 2)).astype(np.float32)],
        "random order": [draws.random((side, side), np.float32) for _ in range(ORDERS)],
    }


def curve(model: Any, grid: Grid, before: Tensor, after: Tensor, label: int) -> Curve:
    """The label's probability while the places turn, the strongest first, from one image's into the other's."""
    rank = np.empty(grid.size, np.int64)
    rank[np.argsort(-grid, axis=None, kind="stable")] = np.arange(grid.size)
    cell = before.shape[-1] // grid.shape[1]
    turns = torch.from_numpy(np.kron(rank.reshape(grid.shape), np.ones((cell, cell), np.int64)))
    steps = [torch.where(turns < round(step / STEPS * grid.size), after, before) for step in range(STEPS + 1)]
    with torch.inference_mode():
        images = torch.stack(steps).contiguous(memory_format=torch.channels_last)
        shares: Curve = model(images).softmax(1)[:, label].double().numpy()
    return shares


def drawn_anew(model: Any, name: str, seed: int) -> dict[str, Any]:
    """By the part down to which the weights are fresh."""
    torch.manual_seed(seed)
    fresh: Any = atnet.create_model(name, num_classes=model.num_classes).eval()
    now, found = model, {}
    for last, parts in PARTS.items():
        now = copy.deepcopy(now)
        for part in parts:
            if part in ("cls_token", "reg_token"):
                setattr(now, part, getattr(fresh, part))
            else:
                now.set_submodule(part, fresh.get_submodule(part))
        found[last] = now
    return found


def area(points: Curve) -> float:
    return float(np.trapezoid(points, dx=1 / STEPS))


def main(photos: Path, png: Path, count: int) -> None:
    model, info = atnet.load(TEN)
    model = model.to(memory_format=torch.channels_last)
    samples = open_labelled(str(photos))
    deleted: dict[str, list[Curve]] = {name: [] for name in COLOURS}
    inserted: dict[str, list[Curve]] = {name: [] for name in COLOURS}
    alike: dict[str, dict[str, list[float]]] = {part: {} for part in PARTS}
    with progress_bar("Explaining", count) as advance:
        for number, i in enumerate(np.linspace(0, len(samples) - 1, count).round().astype(int).tolist()):
            image = torch.from_numpy(info.preprocess(samples.read(i)))
            trained = maps_of(model, image[None])
            label = int(trained.logits.argmax())
            blurred = torch.from_numpy(gaussian_filter(image.numpy(), (0, BLUR, BLUR)))
            orders = {name: [grid] for name, grid in (ours(trained) | rivals(model, image[None], label)).items()}
            for name, grids in (orders | baselines(trained.gradient.shape[0], number)).items():
                for known, before, after in ((deleted, image, torch.zeros_like(image)), (inserted, blurred, image)):
                    curves = [curve(model, grid, before, after, label) for grid in grids]
                    known[name].append(np.mean(curves, axis=0))
            if number % EVERY == 0:
                for part, other in drawn_anew(model, info.model, number).items():
                    for name, grid in ours(maps_of(other, image[None], label)).items():
                        rank = spearmanr(grid.ravel(), ours(trained)[name].ravel()).statistic
                        alike[part].setdefault(name, []).append(float(rank))
            advance(1)
    failures = report(deleted, inserted, alike)
    draw(deleted, inserted, alike, png)
    print(f"Written: {png}")
    if failures:
        sys.exit("\n".join(failures))


def report(
    deleted: dict[str, list[Curve]], inserted: dict[str, list[Curve]], alike: dict[str, dict[str, list[float]]]
) -> list[str]:
    """Prints the figures, and says what falls short."""
    count = len(deleted["centre"])
    chance = np.array([area(one) for one in inserted["random order"]])
    first = float(np.mean([one[0] for one in inserted["centre"]]))
    last = float(np.mean([one[-1] for one in inserted["centre"]]))
    print(f"{count} photos; probability of the answer: whole {last:.3f}, blurred {first:.3f}\n")
    print(f"{'order':24} {'deletion':>9} {'insertion':>10} {'above random':>18}")
    failures = []
    for name in COLOURS:
        down = np.mean([area(one) for one in deleted[name]])
        up = np.array([area(one) for one in inserted[name]])
        gain, error = float((up - chance).mean()), float((up - chance).std() / count**0.5)
        print(f"{name:24} {down:9.3f} {up.mean():10.3f} {gain:+10.3f} ± {error:.3f}")
        if name == "gradient map" and gain < LEAST_GAIN:
            failures.append(f"insertion by the {name} is {gain:.3f} above random order, not {LEAST_GAIN}")
    print("\nrank correlation with the trained network's map, where these parts have fresh weights: mean (mean size)")
    for part, found in alike.items():
        shown = "  ".join(
            f"{name} {np.mean(ranks):+.2f} ({np.mean(np.abs(ranks)):.2f})" for name, ranks in found.items()
        )
        print(f"down to {part:10} {shown}")
    for name, ranks in alike["stem"].items():
        if abs(np.mean(ranks)) > MOST_ALIKE:
            failures.append(f"{name}: {np.mean(ranks):.2f} alike though no weight is the same")
    return failures


def draw(
    deleted: dict[str, list[Curve]],
    inserted: dict[str, list[Curve]],
    alike: dict[str, dict[str, list[float]]],
    png: Path,
) -> None:
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    share = np.linspace(0, 100, STEPS + 1)
    for axes, curves, title in (
        (left, deleted, "Deletion: lower is better"),
        (middle, inserted, "Insertion: higher is better"),
    ):
        for name, colour in COLOURS.items():
            mean = np.mean(curves[name], axis=0)
            axes.plot(share, mean, color=colour, label=f"{name}, {area(mean):.3f}", linewidth=1.8)
        axes.set_xlabel("places, %, the strongest first")
        axes.set_ylabel("probability of the answer")
        axes.set_ylim(0, 1)
        axes.set_title(title)
        axes.legend(frameon=False, fontsize="small", loc="lower left" if curves is deleted else "lower right")
    for name in alike["head"]:
        right.plot(
            list(PARTS), [np.mean(alike[part][name]) for part in PARTS], color=COLOURS[name], marker="o", label=name
        )
    right.axhline(0, color="0.7", linewidth=1)
    right.set_ylim(-0.3, 1.05)
    right.set_title("Likeness to the trained network's map")
    right.set_xlabel("fresh weights, from the head down to")
    right.set_ylabel("rank correlation")
    right.legend(frameon=False, fontsize="small")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else COUNT)
