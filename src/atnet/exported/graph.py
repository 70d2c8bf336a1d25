"""A network as an ONNX graph."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from atnet.exported.contract import OPSET
from atnet.extras import require
from atnet.models.heads import fuse
from atnet.progress import working
from atnet.weights.info import WeightsInfo

_SCOPES = "pkg.torch.onnx.name_scopes"


def write_onnx(model: nn.Module, shape: tuple[int, ...], path: Path, info: WeightsInfo | None = None) -> None:
    """The network in evaluation mode as an ONNX file: image (N, *shape) to logits (N, classes), N free.

    Of several decision heads each one's logits follow: heads (N, heads, classes).
    Its nodes are called by the part of the network they are of: stages.1.blocks.0.depthwise/Conv.12.
    """
    require("export")
    several = getattr(model, "several_heads", False)
    with working("Writing the graph"):
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
    made = program.model_proto
    _name_nodes(made.graph)
    _drop_traces(made)
    if info:
        onnx.helper.set_model_props(made, info.to_metadata())
    onnx.save(made, path)


class _WithHeads(nn.Module):
    """A network of several heads, with what each says beside what they say together."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        each = self.model.decide(self.model.forward_features(image))  # type: ignore[operator]
        return fuse(each), each


def _name_nodes(graph: onnx.GraphProto) -> None:
    part = ""
    for number, node in enumerate(graph.node):
        scopes = next((one.value for one in node.metadata_props if one.key == _SCOPES), "[]")
        part = [part, *ast.literal_eval(scopes)[:-1]][-1]
        node.name = f"{part.removeprefix('model.')}/{node.op_type}.{number}"


def _drop_traces(model: onnx.ModelProto) -> None:
    """Takes away what the exporter tells of itself: with it, where on this machine which line of code lies."""
    graph = model.graph
    parts: Sequence[Any] = (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    )
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
