"""Weights as one ONNX file that says what it is, checked on real pictures before it gets its name."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from atnet.deploy.onnx import OnnxNetwork
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.measure.evaluate import open_validation
from atnet.model.info import WeightsInfo, find_weights
from atnet.model.load import load
from atnet.progress import progress_bar

OPSET = 20
PICTURES = 64
TOLERANCE = 1e-3
"""Largest difference of a logit, over the largest logit of its picture."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The file, and the pictures on which it was held against torch: how many, the largest relative difference."""

    path: Path
    pictures: int
    difference: float


def export(weights: str | Path = "runs/last", out: str | Path | None = None, *, data: str | None = None) -> Exported:
    """Writes weights as ONNX: fp32, any batch, class names and preprocessing in its metadata.

    weights: a run, a folder or a safetensors file.  out: the file, model.onnx beside the weights if None.
    data: a folder of class folders for the check, the run's validation pictures if None.
    The check goes from a picture's bytes to its label: the file alone against torch.
    Raises WeightsError if they do not agree, ConfigError if out exists or no pictures are known.
    """
    source = find_weights(weights)
    path = Path(out).expanduser() if out else source.with_name("model.onnx")
    if path.exists():
        raise ConfigError(f"{path}: exists; choose another --out")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder")
    model, info = load(source)
    pictures = open_validation(source, data)
    some = np.linspace(0, len(pictures) - 1, min(PICTURES, len(pictures))).round().astype(int).tolist()
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_onnx(model, (3, info.preprocess.size, info.preprocess.size), partial, info)
        network = OnnxNetwork(partial)
        worst, compared = 0.0, 0
        with progress_bar("Comparing with torch", len(some)) as advance, torch.inference_mode():
            for i in some:
                advance(1)
                try:
                    picture = pictures.read(i)
                except DataError:
                    continue
                [ours] = network(network.info.preprocess(picture)[None])
                [theirs] = model(torch.from_numpy(info.preprocess(picture))[None]).numpy()
                difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
                if difference > TOLERANCE or network.info.classes[ours.argmax()] != info.classes[theirs.argmax()]:
                    raise WeightsError(
                        f"{pictures.ids[i]}: ONNX Runtime says {network.info.classes[ours.argmax()]}, torch "
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


def write_onnx(model: nn.Module, shape: tuple[int, ...], path: Path, info: WeightsInfo | None = None) -> None:
    """The network in evaluation mode as an ONNX file: image (N, *shape) to logits, N free."""
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, *shape),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    if info:
        program.model.metadata_props.update(info.to_metadata())
    program.save(path, external_data=False)
