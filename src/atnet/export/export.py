"""Weights as one file to hand on, ONNX or safetensors, checked on real images before it gets its name."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from torch import Tensor, nn

from atnet.data.classes import display_names
from atnet.data.samples import Samples
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.eval.evaluate import open_validation
from atnet.exported.contract import OPSET
from atnet.exported.graph import write_onnx
from atnet.exported.onnx import OnnxNetwork
from atnet.exported.preprocessing import with_preprocessing
from atnet.files import placing_whole, read_text, require_new
from atnet.models.heads import answer
from atnet.models.load import load, to_safetensors
from atnet.progress import progress_bar
from atnet.weights.find import Source, find_weights
from atnet.weights.info import WEIGHTS, WeightsInfo

IMAGES = 64
TOLERANCE, TOLERANCE_HALF = 1e-3, 2e-2
"""Largest difference of a logit, over the largest logit of its image."""

TOLERANCE_PREPROCESSED = 1e-2
"""Largest difference of a probability where the file prepares the image: Pillow rounds otherwise in one colour of a
thousand, by one of 255 levels. On 3,925 photos the shipped network's probabilities differed by 0.0013 at most."""

LEAST_HALVED = 256
"""Numbers in a tensor from which it is worth storing it in 16 bits."""

Logits = NDArray[np.float32]
Answer = Callable[[Image.Image], Logits]
"""From an RGB image to the logits (1, classes) of the network; of several heads each one's too, below."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The file, and on how many images it was held against the weights.

    difference: the largest, of a logit over the largest of its image; of a probability if the file prepares images.
    """

    path: Path
    images: int
    difference: float


def export(
    weights: str | Path | Source = "runs/last",
    out: str | Path | None = None,
    *,
    to: Literal["onnx", "safetensors"] = "onnx",
    half: bool = False,
    preprocessing: bool = False,
    licence: str = "",
    data: str | None = None,
    model: str = "",
    classes: str | Path | None = None,
) -> Exported:
    """Writes weights as one file, class names and preprocessing in its metadata.

    weights, model: as for `atnet.load`.  out: the file; see `place_for` if None.
    to: onnx, which takes any batch and needs no torch; or safetensors.
    half: stored in 16 bits, computed in 32: half as large.
    preprocessing: of ONNX, the input is one image of any size, uint8 (height, width, 3), RGB.
    licence: of the weights, to be told by the file; what they tell already if "".
    data: a folder of class folders for the check, the run's validation images if None.
    classes: a text file with the name of a class on each line, in the order of the outputs; what the weights say if
    None.
    The check goes from an image's bytes to its label: the file alone against the weights in torch.
    Raises WeightsError if they do not agree, ConfigError if out exists or no images are known.
    """
    source = weights if isinstance(weights, Source) else find_weights(weights, model)
    path = place_for(source, out, to)
    if preprocessing and to != "onnx":
        raise ConfigError("--with-preprocessing makes steps of an ONNX graph: leave it out, or use --to onnx")
    network, info = load(source)
    if classes is not None:
        info = named_by(info, classes)
    told = describe(network, info, source.path, licence, "float16" if half else "float32")
    info = of_onnx(told, preprocessing) if to == "onnx" else told
    samples = open_validation(source.path, data)
    with placing_whole(path) as partial:
        ask = _written(network, info, partial, to, half, preprocessing)
        apart, tolerance = logits_apart, TOLERANCE_HALF if half else TOLERANCE
        if preprocessing:
            apart, tolerance = probabilities_apart, TOLERANCE_PREPROCESSED + (TOLERANCE_HALF if half else 0)
        compared, worst = compare(ask, answer_of(network, info), samples, info, apart, tolerance)
    return Exported(path=path, images=compared, difference=worst)


def named_by(info: WeightsInfo, listed: str | Path) -> WeightsInfo:
    """The same with its classes named by a text file's lines. Raises ConfigError if there are more or fewer."""
    names = tuple(line.strip() for line in read_text(listed).splitlines() if line.strip())
    if len(names) != len(info.classes) or len(set(names)) != len(names):
        raise ConfigError(
            f"{listed}: {len(set(names)):,} different names on {len(names):,} lines, and the network has "
            f"{len(info.classes):,} outputs: use a line for each"
        )
    return dataclasses.replace(info, classes=names, class_names=display_names(names))


def place_for(source: Source, out: str | Path | None, to: str) -> Path:
    """The file to write; if out is None, model.onnx or the like beside the weights.

    Of weights that come with AT-Net or from the hub it has their name, and lies in the current folder.
    Raises ConfigError if the file to write exists, or its folder does not.
    """
    if out:
        path = Path(out).expanduser()
    elif source.is_fetched or source.path.parent.samefile(WEIGHTS):
        path = Path(f"{source.title}.{to}")
    else:
        path = source.path.with_name(f"model.{to}")
    require_new(path)
    return path


def describe(model: nn.Module, info: WeightsInfo, source: Path, licence: str, numbers: str) -> WeightsInfo:
    """What a file made of weights says of itself: what they say, and which they are.

    numbers: how they are stored.  Of a file that was itself made of weights, which were the first.
    """
    facts = {
        "weights_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        **info.facts,
        "heads": 1 + getattr(model, "decision_heads", 0),
        "numbers": numbers,
    }
    return dataclasses.replace(info, facts=facts | {"licence": licence} if licence else facts)


def of_onnx(info: WeightsInfo, preprocessing: bool) -> WeightsInfo:
    """What an ONNX file says of itself beside: what it takes."""
    size = info.preprocess.size
    images = f"images: float32 (N, 3, {size}, {size}), RGB, resized, cropped and normalised"
    image = "picture: uint8 (height, width, 3), RGB, of any size, one at a time"
    return dataclasses.replace(info, facts={**info.facts, "opset": OPSET, "input": image if preprocessing else images})


def answer_of(model: nn.Module, info: WeightsInfo) -> Answer:
    """The network in torch, asked with an image prepared by Pillow."""

    def ask(image: Image.Image) -> Logits:
        with torch.inference_mode():
            together, each = answer(model, torch.from_numpy(info.preprocess(image))[None])
            return (together if each is None else torch.cat([together, each[0]])).numpy()

    return ask


def logits_apart(ours: Logits, theirs: Logits) -> float:
    """The largest difference of two logits (..., classes), over the largest of its row."""
    return float((np.abs(ours - theirs).max(-1) / np.abs(theirs).max(-1)).max())


def probabilities_apart(ours: Logits, theirs: Logits) -> float:
    """The largest difference of two probabilities, of logits (..., classes)."""
    return float(np.abs(softmax(ours, -1) - softmax(theirs, -1)).max())


def compare(
    ours: Answer,
    theirs: Answer,
    samples: Samples,
    info: WeightsInfo,
    apart: Callable[[Logits, Logits], float],
    most: float,
) -> tuple[int, float]:
    """On how many images two networks were asked, and how far apart they were at most.

    Raises WeightsError on an image of which they say another class, or are apart by more than the most allowed.
    """
    worst, compared = 0.0, 0
    some = spread(len(samples), IMAGES)
    with progress_bar("Comparing with torch", len(some)) as advance:
        for i in some:
            advance(1)
            try:
                image = samples.read(i)
            except DataError:
                continue
            logits, expected = ours(image), theirs(image)
            difference = apart(logits, expected)
            said, right = (info.classes[one[0].argmax()] for one in (logits, expected))
            if not difference <= most or said != right:
                raise WeightsError(
                    f"{samples.ids[i]}: the file says {said}, torch {right}, apart by {difference:.2%}: "
                    "nothing was exported"
                )
            worst = max(worst, difference)
            compared += 1
    if not compared:
        raise DataError(f"{samples.store.name}: none of {len(some)} images to compare with can be read")
    return compared, worst


def spread(count: int, most: int) -> list[int]:
    """So many positions of count, or all of them, evenly apart."""
    found: list[int] = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
    return found


def _written(model: nn.Module, info: WeightsInfo, path: Path, to: str, half: bool, preprocessing: bool) -> Answer:
    """Writes the file, and opens it as a user would. Raises WeightsError if it does not say the same of itself."""
    if to == "onnx":
        write_onnx(model, (3, info.preprocess.size, info.preprocess.size), path)
        return finish_onnx(path, info, half, preprocessing).answer
    state = model.state_dict()
    path.write_bytes(to_safetensors({name: _halved(t) for name, t in state.items()} if half else state, info))
    opened, said = load(path)
    _require_same(said, info, path)
    return answer_of(opened, info)


def finish_onnx(path: Path, info: WeightsInfo, half: bool, preprocessing: bool, trusted: bool = False) -> OnnxNetwork:
    """The ONNX file with what it says of itself, in 16 bits if half, the image's steps before; opened as by users.

    trusted: opened without the trial that a user's has.
    """
    model = onnx.load(path)
    onnx.helper.set_model_props(model, info.to_metadata())
    if half:
        halve(model)
    onnx.save(with_preprocessing(model, info.preprocess) if preprocessing else model, path)
    network = OnnxNetwork(path, trusted=trusted)
    _require_same(network.info, info, path)
    return network


def _require_same(said: WeightsInfo, info: WeightsInfo, path: Path) -> None:
    if said != info:
        raise WeightsError(f"{path}: does not say of itself what the weights do: nothing was exported")


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() and tensor.numel() >= LEAST_HALVED else tensor


def halve(model: onnx.ModelProto) -> None:
    """Stores a network's larger tensors in 16 bits, each with a cast to 32, which is done once, at loading.

    Not the scales of tensors in 8 bits.
    """
    graph = model.graph
    scales = {
        name for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear") for name in node.input
    }
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or values.size < LEAST_HALVED or tensor.name in scales:
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
