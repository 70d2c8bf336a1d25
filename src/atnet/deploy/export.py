"""Weights as one file to hand on, ONNX or safetensors, checked on real pictures before it gets its name."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atnet.deploy.onnx import OnnxNetwork
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.measure.evaluate import open_validation
from atnet.model.heads import fuse
from atnet.model.info import WeightsInfo, find_weights
from atnet.model.load import load, to_safetensors
from atnet.progress import progress_bar

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
OPSET = 20
PICTURES = 64
TOLERANCE, TOLERANCE_HALF = 1e-3, 2e-2
"""Largest difference of a logit, over the largest logit of its picture."""

LEAST_HALVED = 256
"""Numbers in a tensor from which it is worth storing it in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The file, and on how many pictures it was held against the weights, with which largest relative difference."""

    path: Path
    pictures: int
    difference: float


def export(
    weights: str | Path = "runs/last",
    out: str | Path | None = None,
    *,
    to: Literal["onnx", "safetensors"] = "onnx",
    half: bool = False,
    data: str | None = None,
) -> Exported:
    """Writes weights as one file, class names and preprocessing in its metadata.

    weights: a run, a folder or a safetensors file.  out: the file, model.onnx or model.safetensors beside the weights
    if None.
    to: onnx, which takes any batch and needs no torch; or safetensors.
    half: stored in 16 bits, computed in 32: half as large.
    data: a folder of class folders for the check, the run's validation pictures if None.
    The check goes from a picture's bytes to its label: the file alone against the weights in torch.
    Raises WeightsError if they do not agree, ConfigError if out exists or no pictures are known.
    """
    source = find_weights(weights)
    path = Path(out).expanduser() if out else source.with_name(f"model.{to}")
    if path.exists():
        raise ConfigError(f"{path}: exists; choose another --out")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder")
    model, info = load(source)
    pictures = open_validation(source, data)
    some = np.linspace(0, len(pictures) - 1, min(PICTURES, len(pictures))).round().astype(int).tolist()
    partial = path.with_name(f".partial.{to}")
    tolerance = TOLERANCE_HALF if half else TOLERANCE
    try:
        network = _written(model, info, partial, half)
        worst, compared = 0.0, 0
        with progress_bar("Comparing with torch", len(some)) as advance, torch.inference_mode():
            for i in some:
                advance(1)
                try:
                    picture = pictures.read(i)
                except DataError:
                    continue
                [ours] = network(info.preprocess(picture)[None])
                [theirs] = model(torch.from_numpy(info.preprocess(picture))[None]).numpy()
                difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
                if difference > tolerance or ours.argmax() != theirs.argmax():
                    raise WeightsError(
                        f"{pictures.ids[i]}: the file says {info.classes[ours.argmax()]}, torch "
                        f"{info.classes[theirs.argmax()]}, logits apart by {difference:.2%}: nothing was exported"
                    )
                worst = max(worst, difference)
                compared += 1
        if not compared:
            raise DataError(f"{pictures.store.name}: none of {len(some)} pictures to compare with can be read")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path=path, pictures=compared, difference=worst)


def _written(model: nn.Module, info: WeightsInfo, path: Path, half: bool) -> Network:
    """Writes the file, and opens it as a user would. Raises WeightsError if it does not say the same of itself."""
    if path.suffix == ".onnx":
        write_onnx(model, (3, info.preprocess.size, info.preprocess.size), path, info)
        if half:
            _halve(path)
        network = OnnxNetwork(path)
        found: Network = network
        said = network.info
    else:
        state = model.state_dict()
        path.write_bytes(to_safetensors({name: _halved(t) for name, t in state.items()} if half else state, info))
        opened, said = load(path)

        def found(images: NDArray[np.float32]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = opened(torch.from_numpy(images)).numpy()
            return logits

    if said != info:
        raise WeightsError(f"{path}: does not say of itself what the weights do: nothing was exported")
    return found


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() and tensor.numel() >= LEAST_HALVED else tensor


def _halve(path: Path) -> None:
    """Stores the larger tensors of an ONNX file in 16 bits, each with a cast to 32, which is done once, at loading."""
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or values.size < LEAST_HALVED:
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    onnx.save(model, path)


def write_onnx(model: nn.Module, shape: tuple[int, ...], path: Path, info: WeightsInfo | None = None) -> None:
    """The network in evaluation mode as an ONNX file: image (N, *shape) to logits (N, classes), N free.

    Of several decision heads each one's logits follow: heads (N, heads, classes).
    """
    several = getattr(model, "several_heads", False)
    program = torch.onnx.export(
        (_WithHeads(model) if several else model).eval(),
        (torch.zeros(2, *shape),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits", "heads"] if several else ["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    if info:
        program.model.metadata_props.update(info.to_metadata())
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter's stack traces, which name folders of this machine
    program.save(path, external_data=False)


class _WithHeads(nn.Module):
    """A network of several heads, with what each says beside what they say together."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        each = self.model.decide(self.model.forward_features(image))  # type: ignore[operator]
        return fuse(each), each
