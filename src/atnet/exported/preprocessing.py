"""Resizing, cropping and normalising inside an exported network: what `Preprocess` does, as ONNX nodes.

ONNX Runtime resizes bytes as Pillow does: across and then down, antialiased, 8 bits between the two and after.
"""

import numpy as np
import onnx
import onnx.compose
import onnx.parser
from onnx import ModelProto

from atnet.data.preprocess import CROP, LETTERBOX, SQUASH, Preprocess

PREFIX = "preprocess."
_MODES = {"bicubic": "cubic", "bilinear": "linear"}
_STEPS = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
preprocess (uint8[height, width, 3] picture) => (float[1, 3, {size}, {size}] image)
<int64 side = {{{side}}}, int64 size = {{{size}}}, int64[2] axes = {{2, 3}}, int64[1] front = {{0}}, float two = {{2}},
 float white = {{255}}, float[3, 1, 1] mean = {{{mean}}}, float[3, 1, 1] std = {{{std}}}>
{{
{target}
    planes = Transpose <perm = [2, 0, 1]> (picture)
    batch = Unsqueeze (planes, front)
    resized = Resize <mode = "{mode}", antialias = 1, coordinate_transformation_mode = "half_pixel",
                      cubic_coeff_a = -0.5, exclude_outside = 1, axes = [2, 3]> (batch, , , target)
{square}
    shares = Div (colours, white)
    centred = Sub (shares, mean)
    image = Div (centred, std)
}}
"""

_TARGETS = {
    CROP: """
    sides = Shape <end = 2> (picture)
    shorter = ReduceMin (sides)
    enlarged = Mul (sides, side)
    target = Div (enlarged, shorter)""",
    LETTERBOX: """
    sides = Shape <end = 2> (picture)
    longer = ReduceMax (sides)
    enlarged = Mul (sides, side)
    enlarged_double = Cast <to = 11> (enlarged)
    longer_double = Cast <to = 11> (longer)
    exact = Div (enlarged_double, longer_double)
    whole = Round (exact)
    rounded = Cast <to = 7> (whole)
    least = Constant <value_int = 1> ()
    target = Max (rounded, least)""",
    SQUASH: """
    target = Constant <value_ints = [{side}, {side}]> ()""",
}
_CENTRE = """
    left_over_float = Cast <to = 1> (left_over)
    margin = Div (left_over_float, two)
    margin_even = Round (margin)
    begin = Cast <to = 7> (margin_even)
    end = Add (begin, size)
    cropped = Slice (resized, begin, end, axes)"""
_WHOLE = f"""
    left_over = Sub (target, size){_CENTRE}
    colours = Cast <to = 1> (cropped)"""
_PADDED = f"""
    none = Constant <value_int = 0> ()
    half = Constant <value_int = 2> ()
    difference = Sub (target, size)
    left_over = Max (difference, none){_CENTRE}
    too_few = Sub (size, target)
    missing = Max (too_few, none)
    before = Div (missing, half)
    after = Sub (missing, before)
    pads = Concat <axis = 0> (before, after)
    fill = Constant <value = float[3, 1, 1] {{{{{{fill}}}}}}> ()
    levels = Cast <to = 1> (cropped)
    from_fill = Sub (levels, fill)
    padded = Pad (from_fill, pads, , axes)
    colours = Add (padded, fill)"""


def with_preprocessing(model: ModelProto, preprocess: Preprocess) -> ModelProto:
    """The network of images (N, 3, size, size) as one of an image, RGB, uint8 (height, width, 3), of any size.

    Its batch is 1, for the images of a batch would have to be of one size. Its metadata are the network's.
    """
    [entry] = model.graph.input
    steps = _steps(preprocess, model.ir_version, model.opset_import[0].version)
    return onnx.compose.merge_models(steps, model, [(steps.graph.output[0].name, entry.name)])


def remove_preprocessing(model: ModelProto, preprocess: Preprocess) -> bool:
    """Takes what `with_preprocessing` put into the model out again; False if that is not there, whole and unchanged,
    and its image alone used."""
    graph = model.graph
    steps = _steps(preprocess, model.ir_version, model.opset_import[0].version).graph
    count = len(steps.node)
    numbers = [tensor for tensor in graph.initializer if tensor.name.startswith(PREFIX)]
    if (list(graph.input), list(graph.node[:count]), numbers) != (
        list(steps.input), list(steps.node), list(steps.initializer),
    ):  # fmt: skip
        return False
    gone = {steps.input[0].name, *(name for node in steps.node for name in node.output)} - {steps.output[0].name}
    used = {name for node in graph.node[count:] for name in node.input} | {one.name for one in graph.output}
    if gone & used:
        return False
    graph.input[0].CopyFrom(steps.output[0])
    del graph.node[:count]
    return True


def _steps(preprocess: Preprocess, ir: int, opset: int) -> ModelProto:
    """The steps alone, from an image to an image (1, 3, size, size)."""
    mean, std = (", ".join(str(np.float32(one)) for one in values) for values in (preprocess.mean, preprocess.std))
    fill = ", ".join(map(str, preprocess.fill))
    steps = onnx.parser.parse_model(
        _STEPS.format(
            ir=ir, opset=opset, size=preprocess.size, side=preprocess.side,
            target=_TARGETS[preprocess.resize].format(side=preprocess.side),
            square=_PADDED.format(fill=fill) if preprocess.resize == LETTERBOX else _WHOLE,
            mode=_MODES[preprocess.interpolation], mean=mean, std=std,
        )
    )  # fmt: skip
    return onnx.compose.add_prefix(steps, PREFIX, rename_inputs=False)
