"""What a network looks at: what its tokens gather, and which places speak for an answer, as arrays and as an image."""

import difflib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from atnet.data.classes import printable
from atnet.data.decode import decode
from atnet.data.preprocess import Preprocess, resize_shorter
from atnet.device import naming_shortage, pick_device
from atnet.errors import ConfigError, DataError
from atnet.files import write_whole
from atnet.inference.prediction import image_files, likeliest, weights_meant
from atnet.models.atnet import ATNet
from atnet.models.load import asked_size, has_fixed_input, load
from atnet.progress import progress_bar
from atnet.viz.plots import BLUE, drawable
from atnet.weights.info import WeightsInfo

TOP = 5
QUERIES = 1024
"""Tokens whose attention to all others is held at once."""

Asked = tuple[Tensor, Tensor]
"""A layer's queries and keys, each (heads, count, width)."""

TILE, LEAST_COLUMNS, MOST_TOKENS = 2.2, 5, 9
"""Inches of a map's side; maps in a row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """Where a network looks in one image, on a grid of h x w places.

    logits: float32 (classes,).
    stride: pixels of the input along a place's side.
    gradient: float32 (h, w): how much of what speaks for a class is at a place; below 0, against it. Activations of the
    grid that enters the encoder, or of a network of timm's the last one, weighed by the mean gradient of the logit.
    attention: float32 (layers, tokens, heads, h, w): of what the class token and each register token gather in a
    TransMix layer, the share that comes from each place.
    among: float32 (layers, tokens, heads, tokens): the shares that come from these tokens; attention's and these sum
    to 1.
    rollout: float32 (tokens, h, w): the shares through all layers, with what a layer passes on as it is counted as
    half; the rest comes from the tokens as they were at first.
    A network of timm's has none of these tokens: layers, tokens and heads are 0.
    Sources: Selvaraju et al. 2017, "Grad-CAM", without its ReLU (gradient), Abnar & Zuidema 2020 (rollout).
    """

    logits: NDArray[np.float32]
    stride: float
    gradient: NDArray[np.float32]
    attention: NDArray[np.float32]
    among: NDArray[np.float32]
    rollout: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What a network says of an image, and where it looked.

    image: the file.  drawn: the PNG written, or None.
    pixels: uint8 (H, W, 3), what the network was shown.
    top: (class, name, probability 0 to 1), likeliest first.
    target: the name of the class that the gradient map is of.
    """

    image: str
    drawn: Path | None
    pixels: NDArray[np.uint8]
    top: tuple[tuple[str, str, float], ...]
    target: str
    maps: Maps


def explain(
    images: str | Path | Sequence[str | Path],
    weights: str | Path | None = None,
    *,
    out: str | Path | None = None,
    size: int | None = None,
    whole: bool = False,
    target: str | None = None,
    device: str = "auto",
    failed: Callable[[DataError], None] | None = None,
    model: str = "",
) -> list[Explanation]:
    """Where the network looked in each image.

    images: files; of a folder the images directly in it.
    weights, model: as for `atnet.load`; None: see `weights_meant`.
    out: a folder for a PNG of each image, written as soon as it is known; none is drawn if None.
    size: side of the input in pixels, that of the training if None.
    whole: the image in its own shape, its shorter side of that size, instead of the square in its middle.
    target: a class, or its name, that the gradient map is of; each image's likeliest class if None.
    failed: takes the error of an image that cannot be read, which is then left out; it is raised if None.
    Raises DataError naming an image that cannot be read, WeightsError on unusable weights, ConfigError if the network
    has no map, an option does not suit it, or there is a file of that name in out.
    """
    chosen = pick_device(device)
    network, info = load(weights_meant(weights, model), str(chosen), size=asked_size(size))
    if whole and has_fixed_input(info.model):
        raise ConfigError(f"{info.model} works at {info.preprocess.size} px only: leave --whole out")
    label = None if target is None else _label_of(target, info)
    paths = image_files(images)
    drawn: list[Path | None] = [None] * len(paths)
    if out is not None:
        drawn = [*_new_files(Path(out).expanduser(), paths)]
    explained = []
    with progress_bar("Explaining", len(paths)) as advance:
        for path, png in zip(paths, drawn, strict=True):
            advance(1)
            try:
                pixels = _shown(path, info.preprocess, whole)
            except DataError as error:
                if failed is None:
                    raise
                failed(error)
                continue
            image = torch.from_numpy(info.preprocess.normalise(pixels))[None].to(chosen)
            with naming_shortage(f"{path} at {pixels.shape[1]} x {pixels.shape[0]} px", "use a smaller --size"):
                maps = maps_of(network, image, label)
            found = Explanation(
                image=str(path),
                drawn=png,
                pixels=pixels,
                top=likeliest(maps.logits, info, TOP),
                target=info.class_names[int(maps.logits.argmax()) if label is None else label],
                maps=maps,
            )
            if png is not None:
                draw_explanation(found, png)
            explained.append(found)
    return explained


def maps_of(model: nn.Module, image: Tensor, label: int | None = None) -> Maps:
    """Where the model, in evaluation mode, looks in a normalised image (1, 3, H, W).

    label: the class, by its position, that the gradient is of; the likeliest one if None.
    Raises ConfigError if the network's last features are no grid of places.
    """
    if not isinstance(model, ATNet):
        return _maps_of_peer(model, image, label)
    asked: list[Asked] = []
    with torch.no_grad():  # what comes before the grid needs no gradient, nor the memory for one
        grid = model.stages(model.stem(image))
    with torch.enable_grad():
        tokens = model.add_prefix_tokens(grid.requires_grad_())
        for layer in model.encoder:
            query, key, _ = layer.attention.project(layer.norm1(tokens))  # type: ignore[operator,union-attr]
            asked.append((query[0].detach(), key[0].detach()))
            tokens = layer(tokens)
        logits = model.forward_head(model.norm(tokens))
    prefix, sides = model.num_prefix_tokens, grid.shape[2:]
    shares = torch.stack([attention_weights(query[:, :prefix], key).transpose(0, 1) for query, key in asked])
    return Maps(
        logits=_array(logits[0]),
        stride=float(model.feature_info[-1]["reduction"]),
        gradient=_array(_grad_cam(grid, logits, label)),
        attention=_array(shares[..., prefix:].reshape(*shares.shape[:3], *sides)),
        among=_array(shares[..., :prefix]),
        rollout=_array(_rollout(asked, prefix)[:, prefix:].reshape(prefix, *sides)),
    )


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """What fused attention weighs values with: (heads, queries, keys), each row with the sum 1.

    query: (heads, queries, width).  key: (heads, keys, width).
    """
    weights: Tensor = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    return weights


def draw_explanation(found: Explanation, path: Path) -> None:
    """Draws the image as the network saw it, its answers, the gradient map, and the attention of each token.

    Attention is that of the last layer, its heads averaged, and the rollout. Each map is as bright as its brightest
    place.  Raises ConfigError if the file cannot be written.
    """
    maps, pixels = found.maps, found.pixels
    tokens = min(len(maps.rollout), MOST_TOKENS)
    columns = max(tokens, LEAST_COLUMNS)
    rows = [("the last layer", maps.attention[-1].mean(1)), ("all layers", maps.rollout)] if tokens else []
    tall = min(max(pixels.shape[0] / pixels.shape[1], 0.4), 2.5)
    figure = Figure(figsize=(TILE * columns, (TILE * tall + 0.4) * (1 + len(rows))), layout="constrained")
    grid = figure.add_gridspec(1 + len(rows), columns)
    _tile(figure.add_subplot(grid[0, 0]), pixels, "what the network saw")
    speaks = lit(pixels, maps.gradient, maps.stride)
    _tile(figure.add_subplot(grid[0, 1]), speaks, f"speaks for {drawable(found.target, 18)}")
    _bars(figure.add_subplot(grid[0, 2:]), found)
    for row, (what, shown) in enumerate(rows, 1):
        for k in range(tokens):
            axes = figure.add_subplot(grid[row, k])
            name = f"register {k}" if k else "class token"
            _tile(axes, lit(pixels, shown[k], maps.stride), name if row == 1 else "")
            axes.set_xlabel(f"{shown[k].sum():.0%} from the image", fontsize="small")
            if k == 0:
                axes.set_ylabel(what)
    written = io.BytesIO()
    figure.savefig(written, dpi=110)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, written.getvalue())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def _maps_of_peer(model: nn.Module, image: Tensor, label: int | None) -> Maps:
    """The gradient map of a network of timm's."""
    with torch.no_grad():
        grid = model.forward_features(image)  # type: ignore[operator]
    if grid.ndim != 4:
        raise ConfigError(
            f"{type(model).__name__}: its last features are no grid of places, so there is no map of them; use one of "
            "AT-Net's sizes, or a network of timm's that has a grid until its end, as resnet18"
        )
    with torch.enable_grad():
        logits = model.forward_head(grid.requires_grad_())  # type: ignore[operator]
    gradient = _array(_grad_cam(grid, logits, label, getattr(model, "output_fmt", "NCHW")))
    return Maps(
        logits=_array(logits[0]),
        stride=image.shape[-1] / gradient.shape[-1],
        gradient=gradient,
        attention=np.zeros((0, 0, 0, *gradient.shape), np.float32),
        among=np.zeros((0, 0, 0, 0), np.float32),
        rollout=np.zeros((0, *gradient.shape), np.float32),
    )


def _grad_cam(grid: Tensor, logits: Tensor, label: int | None, layout: str = "NCHW") -> Tensor:
    """Each place's activations, weighed by the mean over the places of the gradient of the class's logit: (h, w)."""
    [slope] = torch.autograd.grad(logits[0, logits[0].argmax() if label is None else label], grid)
    places = (1, 2) if layout == "NHWC" else (2, 3)
    return (slope.mean(places, keepdim=True) * grid.detach())[0].sum(-1 if layout == "NHWC" else 0)


def _rollout(asked: list[Asked], prefix: int) -> Tensor:
    """Of the first tokens' last values, the shares that go back to each token at first: (prefix, count).

    A token that asks keeps one half and gathers the other; one that does not ask, as in class attention, stays.
    """
    _, key = asked[-1]
    shares = torch.eye(prefix, key.shape[1], device=key.device)
    for query, key in reversed(asked):
        asking = query.shape[1]
        before = shares.clone()
        before[:, :asking] /= 2
        for first in range(0, asking, QUERIES):
            some = slice(first, min(first + QUERIES, asking))
            before += shares[:, some] / 2 @ attention_weights(query[:, some], key).mean(0)
        shares = before
    return shares


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array


def _shown(path: Path, preprocess: Preprocess, whole: bool) -> NDArray[np.uint8]:
    image = decode(path)
    if not whole:
        return preprocess.resize_and_crop(image)
    return np.asarray(resize_shorter(image, preprocess.size, preprocess.interpolation))


def _label_of(target: str, info: WeightsInfo) -> int:
    """The class's position, by its own name or by what a person calls it."""
    for names in (info.classes, info.class_names):
        if target in names:
            return names.index(target)
    near = difflib.get_close_matches(target, [*info.class_names, *info.classes], 1)
    known = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(info.class_names[:10])}"
    raise ConfigError(f"{printable(target)!r} is no class of these weights; {printable(known)}")


def _new_files(folder: Path, images: list[Path]) -> list[Path]:
    """A PNG in the folder for each image, numbered where names come twice. Raises ConfigError if one is there."""
    files: dict[Path, None] = {}
    for image in images:
        file, number = folder / f"{image.stem}.png", 1
        while file in files:
            number += 1
            file = folder / f"{image.stem}-{number}.png"
        files[file] = None
    there = next((file for file in files if file.exists()), None)
    if there:
        raise ConfigError(f"{there}: exists; choose another --out")
    return list(files)


def lit(pixels: NDArray[np.uint8], values: NDArray[np.float32], stride: float) -> NDArray[np.float32]:
    """The image (H, W, 3) in grey, and over it the map (h, w) in colours where it is above 0: (H, W, 3), 0 to 1.

    stride: pixels along a place's side. The map's brightest place has the brightest colour.
    """
    height, width, _ = pixels.shape
    h, w = values.shape
    sides = (max(round(h * stride), height), max(round(w * stride), width))
    smooth = F.interpolate(torch.from_numpy(values)[None, None], sides, mode="bicubic")[0, 0, :height, :width].numpy()
    strength = np.clip(smooth / max(float(values.max()), 1e-12), 0, 1)[..., None]
    grey = 0.8 * pixels.mean(-1, keepdims=True) / 255
    heat = colormaps["inferno"](0.4 + 0.6 * strength[..., 0])[..., :3]
    mixed: NDArray[np.float32] = grey + 0.85 * strength**1.5 * (heat - grey)
    return mixed


def _tile(axes: Axes, image: NDArray[np.uint8] | NDArray[np.float32], title: str) -> None:
    axes.imshow(image)
    axes.set_title(title, fontsize="medium", parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _bars(axes: Axes, found: Explanation) -> None:
    """The likeliest classes and their probabilities, the likeliest above; their names are within the axes."""
    bars = axes.barh(range(len(found.top)), [100 * share for _, _, share in found.top], color=BLUE)
    axes.bar_label(bars, fmt="%.1f%%", padding=4)
    for place, (_, name, _) in enumerate(found.top):
        axes.text(-3, place, drawable(name, 24), ha="right", va="center", parse_math=False)
    axes.set_xlim(-70, 115)
    axes.set_ylim(TOP - 0.5, -0.5)
    axes.set_axis_off()
    axes.set_title("what the network says", fontsize="medium")
