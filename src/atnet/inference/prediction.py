"""Named answers for images."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atnet.data.decode import SUFFIXES, decode
from atnet.errors import DataError, WeightsError
from atnet.eval.selective import least_confidence
from atnet.extras import is_installed
from atnet.files import resolve_run
from atnet.progress import progress_bar
from atnet.weights.find import Source, find_weights
from atnet.weights.info import INFINITE, SHIPPED, WEIGHTS, WeightsInfo

Ask = Callable[[Image.Image], NDArray[np.float32]]
"""From an RGB image to the logits of each decision head (heads, classes)."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of an image, likeliest first.

    top: (class, name, probability 0 to 1).  milliseconds: decoding, preprocessing and the network.
    heads: of several decision heads, the class, name and probability that each gives by itself, the class token's
    first.
    needs: the probability that the likeliest class needs for the accuracy asked for, 0 if none was.
    """

    image: str
    top: tuple[tuple[str, str, float], ...]
    milliseconds: float
    heads: tuple[tuple[str, str, float], ...] = ()
    needs: float = 0.0

    @property
    def picture(self) -> str:
        """The image, as version 0.1 called it."""
        return self.image

    @property
    def ask_a_person(self) -> bool:
        """Whether the answer is not sure enough for the accuracy asked for."""
        return self.top[0][2] < self.needs

    @property
    def name(self) -> str:
        """The likeliest class's name."""
        return self.top[0][1]


def predict(
    images: str | Path | Sequence[str | Path],
    weights: str | Path | Source | None = None,
    *,
    top: int = 5,
    device: str = "auto",
    abstain: float | None = None,
    failed: Callable[[DataError], None] | None = None,
    model: str = "",
) -> list[Prediction]:
    """What each image shows.

    images: files; of a folder the images directly in it.
    abstain: the accuracy to hold, 0.5 to 0.999: answers that are not sure enough for it say `ask_a_person`.
    failed: takes the error of an image that cannot be read, which is then left out; it is raised if None.
    weights, model: as for `atnet.load`; or an ONNX file of `atnet export`, which needs no torch; None: see
    `weights_to_ask`.
    Raises DataError naming an image that cannot be read, WeightsError on unusable weights, ConfigError if these cannot
    promise the accuracy.
    """
    ask, info = _open(weights_to_ask(weights, device, model), device)
    needs = least_confidence(info.facts, abstain)[0] if abstain is not None else 0.0
    paths = image_files(images)
    answers = []
    ask(Image.new("RGB", (info.preprocess.size, info.preprocess.size)))  # the first run is slow
    with progress_bar("Predicting", len(paths)) as advance:
        for path in paths:
            advance(1)
            began = time.perf_counter()
            try:
                logits = ask(decode(path))
            except DataError as error:
                if failed is None:
                    raise
                failed(error)
                continue
            answers.append(
                Prediction(
                    image=str(path),
                    top=likeliest(logits, info, top),
                    milliseconds=1000 * (time.perf_counter() - began),
                    heads=tuple(likeliest(one, info, 1)[0] for one in logits) if len(logits) > 1 else (),
                    needs=needs,
                )
            )
    return answers


def likeliest(logits: NDArray[np.float32], info: WeightsInfo, top: int) -> tuple[tuple[str, str, float], ...]:
    """The likeliest classes by logits (classes,), or by the mean probability of heads (heads, classes).

    As a `Prediction` has them, likeliest first.
    """
    each = np.exp(logits - logits.max(-1, keepdims=True))
    shares = (each / each.sum(-1, keepdims=True)).reshape(-1, logits.shape[-1]).mean(0)
    likely = np.argsort(-shares, kind="stable")[:top].tolist()
    return tuple((info.classes[i], info.class_names[i], float(shares[i])) for i in likely)


def as_json(top: tuple[tuple[str, str, float], ...]) -> list[dict[str, Any]]:
    """A prediction's classes for programs."""
    return [{"class": c, "name": name, "probability": round(p, 6)} for c, name, p in top]


def weights_meant(weights: str | Path | Source | None, model: str = "") -> Source:
    """The files; without one the newest run's, or before there is a run, that of the network that comes with AT-Net."""
    if isinstance(weights, Source):
        return weights
    if weights is None:
        last = Path("runs/last")
        newest = resolve_run(last)
        if os.path.lexists(last) and not newest.exists():
            raise WeightsError(f"{last}: the run that it points to is gone; name another by --weights")
        weights = newest if newest.exists() else SHIPPED
    return find_weights(weights, model)


def weights_to_ask(weights: str | Path | Source | None, device: str = "auto", model: str = "") -> Source:
    """As `weights_meant`; of what comes with AT-Net the ONNX file, where that can be run and a CPU suits."""
    source = weights_meant(weights, model)
    by_onnx = source.path.parent == WEIGHTS and device in ("auto", "cpu") and is_installed("onnx", "onnxruntime")
    return replace(source, path=source.path.with_suffix(".onnx")) if by_onnx else source


def image_files(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files; of a folder the images directly in it. Raises DataError naming a folder without any."""
    found: list[Path] = []
    for path in map(Path, [images] if isinstance(images, str | Path) else images):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path}: no images in this folder")
        found += inside
    return found


def _open(source: Source, device: str) -> tuple[Ask, WeightsInfo]:
    """What asks the network, and what the file says of itself."""
    path = source.path
    if path.suffix == ".onnx":
        from atnet.exported.onnx import OnnxNetwork, require_cpu

        require_cpu(device)
        network = OnnxNetwork(path)
        return network.ask, network.info

    import torch

    from atnet.device import pick_device
    from atnet.models.heads import answer
    from atnet.models.load import load

    chosen = pick_device(device)
    model, info = load(source, str(chosen))

    def ask(image: Image.Image) -> NDArray[np.float32]:
        with torch.inference_mode():
            together, each = answer(model, torch.from_numpy(info.preprocess(image))[None].to(chosen))
        logits: NDArray[np.float32] = (together if each is None else each[0]).float().cpu().numpy()
        if not np.isfinite(logits).all():
            raise WeightsError(f"{path}: {INFINITE}")
        return logits

    return ask, info
