"""What an ONNX file would do, told before it runs: whoever made it, it gets so much memory and time, and no other file.

It may hold nothing but operations of ONNX's own, of one opset, without graphs inside, whose sizes are all known from
that of the input; then memory and time can be counted. And of what the image says it may make no whole numbers, which
can divide by zero or point somewhere: then runs differ by the batch's size alone, and can be tried.
"""

import math
from pathlib import Path

import onnx
import onnx.defs
import onnx.shape_inference
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

from atnet.errors import WeightsError
from atnet.exported.contract import ANSWERS, OPSET
from atnet.exported.preprocessing import remove_preprocessing
from atnet.weights.info import WeightsInfo

MAX_NODES = 20_000
MAX_OUTPUTS = 3
"""The answers, and what a page shows of the network."""

MAX_MEGABYTES = 400
"""Of what a run holds beside the weights, an image of the batch."""

MAX_OPERATIONS = 300e9
"""Multiply-adds of a run, an image of the batch: as many as L's at 1,280 px. A number that is only moved or mapped
counts as COSTLY of them."""

COSTLY = 100
SMALL = 1024
"""Numbers in a tensor up to which it may be a shape, so that they matter for sizes."""

MAX_TOLD = 200_000
"""Of axes of all tensors, and of whole numbers that sizes are made of: telling the sizes holds them all."""

UNTOLD = 1e18
"""More than this is called this much."""

_TYPES = frozenset(onnx.helper.get_all_tensor_dtypes()) - {TensorProto.STRING}
_WHOLE = (TensorProto.INT64, TensorProto.INT32)
_PLAIN = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR, AttributeProto.FLOATS,
    AttributeProto.INTS, AttributeProto.STRINGS,
}  # fmt: skip
_KNOWN = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant
    ConstantOfShape Conv Cos CumSum DepthToSpace DequantizeLinear Div Elu Equal Erf Exp Expand Flatten Floor
    Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pad Pow QuantizeLinear
    Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
_OPERATIONS = frozenset(_KNOWN.split())
_INEXACT = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.BOOL}
"""What may be made of an image: but for bytes of QuantizeLinear, which go to DequantizeLinear again."""

_FOLLOWED = {"Add", "Cast", "Concat", "Gather", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze"}
"""Of their whole numbers ONNX tells those that they make, as of Shape and Size."""

_LONG = 8 * SMALL
"""Numbers in a tensor of one axis, of each of which ONNX holds a place where it may be a shape; but for a classifier's
bias, none of ours is as long."""


def require_harmless(content: bytes, path: Path, batch: int = 1) -> None:
    """Raises WeightsError unless an ONNX file's content is a network of images that runs within the limits.

    batch: images at a time, at most.  path: the file, for the error.
    """
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise WeightsError(f"{path}: not an ONNX file, or a damaged one ({error})") from error
    strange = _strange(model)
    if strange:
        raise WeightsError(f"{path}: {strange}, which a file of `atnet export` has not: it is not run")
    info = WeightsInfo.from_metadata({one.key: one.value for one in model.metadata_props}, path)
    _require_modest(model, info, path, batch)


def _require_modest(model: onnx.ModelProto, info: WeightsInfo, path: Path, batch: int) -> None:
    """Raises WeightsError unless the network has the input and the classes that info tells, and is within the limits.

    The model's larger tensors are taken from it: their numbers do not matter here.
    """
    size, classes = info.preprocess.size, len(info.classes)
    if remove_preprocessing(model, info.preprocess):
        batch = 1
    wanted = [batch, 3, size, size]
    graph = model.graph
    entry = graph.input[0]
    claimed = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    if entry.type.tensor_type.elem_type != TensorProto.FLOAT or claimed[1:] != wanted[1:]:
        raise WeightsError(f"{path}: its input is not what its metadata say, images of {size} x {size} pixels")
    entry.CopyFrom(onnx.helper.make_tensor_value_info(entry.name, TensorProto.FLOAT, wanted))
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    constants = {tensor.name for tensor in graph.initializer}
    _drop_numbers(graph)
    if _told(graph) > MAX_TOLD:
        raise WeightsError(f"{path}: more than {MAX_TOLD:,} numbers may come together in its shapes: it is not run")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except Exception as error:  # of several kinds, that have no base of their own
        said = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: its graph does not fit together ({said}): it is not run") from error
    shapes, types = _sizes(inferred)
    unknown = next((name for node in graph.node for name in node.output if name and name not in shapes), None)
    if unknown is not None:
        raise WeightsError(f"{path}: how large {unknown!r} gets is not known before it runs: it is not run")
    whole = _whole_of_image(graph, types)
    if whole is not None:
        raise WeightsError(f"{path}: {whole} makes whole numbers of what the image says: it is not run")
    outputs = {output.name for output in graph.output}
    for name, axes in ANSWERS.items():
        shape = shapes[name] if name in outputs else [batch, *[1] * (axes - 2), classes]
        if len(shape) != axes or (shape[0], shape[-1]) != (batch, classes):
            raise WeightsError(f"{path}: its output, {shape}, is not a number for each of {classes:,} classes")
    widths = {kind: onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize for kind in set(types.values())}
    held = _most_held(
        graph, constants | outputs, {name: math.prod(shape) * widths[types[name]] for name, shape in shapes.items()}
    )
    if held > MAX_MEGABYTES * 1e6 * batch:
        megabytes = min(held, UNTOLD) / 1e6
        raise WeightsError(f"{path}: needs {megabytes:,.0f} MB beside its weights, more than {MAX_MEGABYTES} MB")
    operations = sum(_operations(node, shapes) for node in graph.node)
    if operations > MAX_OPERATIONS * batch:
        raise WeightsError(
            f"{path}: needs {min(operations, UNTOLD) / 1e9:,.0f} billion operations a run, "
            f"more than {MAX_OPERATIONS / 1e9:,.0f}"
        )


def _strange(model: onnx.ModelProto) -> str:
    """What in the file a network of ours has not; "" if nothing."""
    graph = model.graph
    versions = {one.domain or "ai.onnx": one.version for one in model.opset_import}
    if versions.get("ai.onnx") != OPSET:
        return f"opset {versions.get('ai.onnx', 'none')} instead of {OPSET}"
    if model.functions or model.training_info:
        return "functions or training steps of its own"
    if len(graph.node) > MAX_NODES:
        return f"{len(graph.node):,} operations"
    outputs = [one.name for one in graph.output]
    if graph.sparse_initializer or len(graph.input) != 1 or len(outputs) > MAX_OUTPUTS or "logits" not in outputs:
        return "sparse tensors, or other inputs or outputs"
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATIONS:
            return f"the operation {'.'.join(map(str, filter(None, (node.domain, node.op_type))))!r}"
        schema = onnx.defs.get_schema(node.op_type, OPSET)
        if not schema.min_input <= len(node.input) <= schema.max_input:
            return f"an operation {node.op_type} on {len(node.input)} tensors"
        for attribute in node.attribute:
            if attribute.type not in _PLAIN or attribute.ref_attr_name:
                return f"a graph or the like inside the operation {node.op_type}"
            if attribute.type == AttributeProto.TENSOR:
                tensors.append(attribute.t)
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        return "tensors that lie in other files"
    if any(tensor.data_type not in _TYPES or min(tensor.dims, default=1) < 0 for tensor in tensors):
        return "tensors of text, of an unknown type or of no size"
    names = [graph.input[0].name, *(one.name for one in graph.initializer)]
    made = set(names)
    for node in graph.node:
        missing = [name for name in node.input if name and name not in made]
        if missing:
            return f"an operation {node.op_type} on {missing[0]!r}, which nothing before it makes"
        names += filter(None, node.output)
        made.update(node.output)
    missing = [name for name in outputs if name not in made]
    if missing:
        return f"an output {missing[0]!r} that nothing makes"
    return "a name twice" if len(made - {""}) != len(names) else ""


def _drop_numbers(graph: onnx.GraphProto) -> None:
    """Makes inputs, which have a size and no numbers, of all tensors but the small whole ones."""
    kept = [
        one for one in graph.initializer
        if one.data_type in _WHOLE and math.prod(one.dims) <= SMALL
    ]  # fmt: skip
    known = {one.name for one in kept}
    for tensor in graph.initializer:
        if tensor.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _told(graph: onnx.GraphProto) -> int:
    """At most so much is held while sizes are told, as MAX_TOLD counts it."""
    axes = {one.name: len(one.type.tensor_type.shape.dim) for one in graph.input}
    axes |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    numbers = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    sizes = {one.name: math.prod(dim.dim_value for dim in one.type.tensor_type.shape.dim) for one in graph.input}
    numbers |= {one.name: sizes[one.name] for one in graph.input if one.type.tensor_type.elem_type in _WHOLE}
    told = 0
    for node in graph.node:
        given = [axes[name] for name in node.input if name]
        known = [numbers[name] for name in node.input if name in numbers]
        last = numbers.get(node.input[-1], sizes.get(node.input[-1], SMALL)) if node.input else 0
        most, count = max([2, *given]), 0
        if node.op_type == "Constant":
            most, count = _of_constant(node)
        elif node.op_type in ("Gather", "GatherND"):
            most = max(2, sum(given))
        elif node.op_type == "Unsqueeze":
            most += last
        elif node.op_type in ("ConstantOfShape", "Reshape"):
            most = last
        elif node.op_type == "Expand":
            most = max(most, last)
        elif node.op_type in ("Shape", "Size"):
            count = most
        if node.op_type != "Gemm":
            told += sum(sizes[name] for name in node.input if sizes.get(name, 0) > _LONG and axes[name] == 1)
        if node.op_type in _FOLLOWED and node.input[0] in numbers:
            count = sum(known) if node.op_type == "Concat" else max(known)
        for name in filter(None, node.output):
            axes[name] = most
            if count:
                numbers[name] = count
            told += most + count
    return told


def _of_constant(node: onnx.NodeProto) -> tuple[int, int]:
    """Axes of a constant, and how many whole numbers it has, at most."""
    axes, numbers = 1, 0
    for one in node.attribute:
        if one.type == AttributeProto.TENSOR:
            axes = max(axes, len(one.t.dims))
            numbers += math.prod(one.t.dims) * (one.t.data_type in _WHOLE)
        else:
            numbers += len(one.ints) + (one.type == AttributeProto.INT)
    return axes, numbers


def _sizes(graph: onnx.GraphProto) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Shape and type of each tensor whose shape is known."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        known = kind.elem_type in _TYPES and kind.HasField("shape")
        if known and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = [dim.dim_value for dim in kind.shape.dim]
            types[value.name] = kind.elem_type
    return shapes, types


def _whole_of_image(graph: onnx.GraphProto, types: dict[str, int]) -> str | None:
    """The first operation that makes whole numbers of the image's, if any; not of its shape."""
    varying, quantized = {graph.input[0].name}, set()
    for node in graph.node:
        made = {name for name in node.output if name}
        if node.op_type in ("Shape", "Size") or varying.isdisjoint(node.input):
            continue
        if node.op_type == "QuantizeLinear":
            quantized |= made
        elif any(types[name] not in _INEXACT for name in made) or (
            node.op_type != "DequantizeLinear" and not quantized.isdisjoint(node.input)
        ):
            return str(node.op_type)
        varying |= made
    return None


def _most_held(graph: onnx.GraphProto, constants: set[str], sizes: dict[str, int]) -> int:
    """Bytes held at once, at most, one operation after the other; what the input does not change is held throughout."""
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    held = most = 0
    for i, node in enumerate(graph.node):
        made = [name for name in node.output if name]
        held += sum(sizes[name] for name in made)
        most = max(most, held)
        if all(name in constants for name in node.input if name) or node.op_type in ("Shape", "Size"):
            constants.update(made)
        done = {name for name in (*node.input, *made) if name and last.get(name, -1) <= i}
        held -= sum(sizes[name] for name in done - constants - {graph.input[0].name})
    return most


def _operations(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> float:
    """An upper bound, as MAX_OPERATIONS counts them."""
    made = sum(math.prod(shapes[name]) for name in node.output if name)
    read = [shapes[name] for name in node.input if name in shapes]
    inside = 0
    if node.op_type == "Conv":
        inside = math.prod(read[1][1:])
    elif node.op_type in ("MatMul", "Gemm"):
        inside = max(read[0][-2:])
    elif node.op_type in ("MaxPool", "AveragePool"):
        inside = COSTLY * math.prod(next(one.ints for one in node.attribute if one.name == "kernel_shape"))
    return made * inside + COSTLY * (made + sum(map(math.prod, read)))
