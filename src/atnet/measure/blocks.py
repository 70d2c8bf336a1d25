"""The latency of each building block at each stride and width, so that a layout is costed before it is trained."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from atnet.deploy.export import write_onnx
from atnet.measure.bench import Columns, take_turns
from atnet.measure.cost import macs_of
from atnet.measure.roof import measure_roof
from atnet.model.blocks import ConvMix, Squeeze, TransMix, make_stem, overlap_widths
from atnet.model.load import create_deployed
from atnet.model.sizes import FAMILY, Size

CONV_STRIDES, TRANS_STRIDES = (8, 16), (16, 32)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block, one picture.

    stride: of its grid to the picture, pixels; of stem and squeeze, the one they come to.
    median: milliseconds.  compute: share of the machine's peak, 0 to 1.
    """

    name: str
    stride: int
    width: int
    macs: int
    median: float
    compute: float


@dataclass(frozen=True, kw_only=True)
class Costed:
    """A size, milliseconds: the sum of its blocks, and the whole network measured in the same rounds."""

    size: str
    blocks: float
    whole: float


def bench_blocks(
    *, size: int = 224, threads: int = 1, rounds: int = 7, seconds: float = 0.1
) -> tuple[list[Block], list[Costed]]:
    """Times each block at the family's widths under ONNX Runtime, and the family, to hold the sums against."""
    modules: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
    for layout in FAMILY.values():
        modules |= _blocks(layout, size)
    with tempfile.TemporaryDirectory() as folder:

        def case_of(key: str) -> dict[str, Any]:
            path = Path(folder) / f"{key}.onnx"
            write_onnx(*(modules.get(key) or (create_deployed(key, size=size), (3, size, size))), path)
            return {"engine": "onnx", "model": key, "onnx": str(path), "threads": threads}

        names = [*modules, *FAMILY]
        timed = take_turns(names, case_of, batch=1, rounds=rounds, seconds=seconds, title="Building blocks")
    medians = {key: 1e3 * statistics.median(map(statistics.median, worker.rounds)) for key, worker in timed.items()}
    roof = measure_roof(threads)
    blocks = []
    for key, (module, shape) in modules.items():
        macs, (name, stride, width) = macs_of(module, shape), key.split("-")
        blocks.append(
            Block(
                name=name,
                stride=int(stride),
                width=int(width),
                macs=macs,
                median=medians[key],
                compute=2 * macs / (medians[key] / 1e3) / roof.flops,
            )
        )
    costed = [
        Costed(
            size=name,
            blocks=sum(count * medians[key] for key, count in _counts(layout).items()),
            whole=medians[name],
        )
        for name, layout in FAMILY.items()
    ]
    return sorted(blocks, key=lambda block: (block.name, block.stride, block.width)), costed


def _blocks(layout: Size, size: int) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """A layout's blocks, called NAME-STRIDE-WIDTH, with the shapes of their inputs."""
    conv_dim, dim, prefix = layout.conv_dim, layout.dim, 1 + layout.registers
    side = -(-size // layout.patch)
    stem = make_stem(layout.stem, 3, conv_dim, layout.patch)
    squeeze = Squeeze(conv_dim, dim, layout.squeeze)
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        f"stem-{layout.patch}-{conv_dim}": (stem, (3, size, size)),
        f"squeeze-{layout.patch * layout.squeeze}-{dim}": (squeeze, (conv_dim, side, side)),
    }
    for stride, width in [*_conv_mix(layout), *((stride, conv_dim) for stride in CONV_STRIDES)]:
        block = ConvMix(width, layout.kernel, 0.0, residual=layout.residual)
        found[f"ConvMix-{stride}-{width}"] = (block, (width, -(-size // stride), -(-size // stride)))
    for stride in TRANS_STRIDES:
        tokens = (prefix + (-(-size // stride)) ** 2, dim)
        for name, first in (("TransMix", 0), ("class attention", prefix)):
            layer = TransMix(dim, layout.heads, layout.mlp_ratio, 0.0, first)
            found[f"{name}-{stride}-{dim}"] = (layer, tokens)
    return {key: (module.eval(), shape) for key, (module, shape) in found.items()}


def _conv_mix(layout: Size) -> dict[tuple[int, int], int]:
    """How many ConvMix blocks a layout has at which stride, of which width."""
    early = overlap_widths(layout.conv_dim, layout.patch)[-2]
    return {
        (layout.patch // 2, early): layout.early_mix,
        (layout.patch, layout.conv_dim): layout.conv_mix,
        (layout.patch * layout.squeeze, layout.dim): layout.late_mix,
    }


def _counts(layout: Size) -> dict[str, int]:
    """How many of each block a layout has."""
    stride, dim = layout.patch * layout.squeeze, layout.dim
    return {
        f"stem-{layout.patch}-{layout.conv_dim}": 1,
        **{f"ConvMix-{place}-{width}": count for (place, width), count in _conv_mix(layout).items()},
        f"squeeze-{stride}-{dim}": 1,
        f"TransMix-{stride}-{dim}": layout.trans_mix - layout.class_attention,
        f"class attention-{stride}-{dim}": layout.class_attention,
    }


def columns_of_blocks(blocks: Sequence[Block]) -> Columns:
    """A row a block."""
    heads = ["Block", "Stride", "Width", "Multiply-adds", "Median, ms", "Of compute"]
    return heads, [
        [b.name, str(b.stride), str(b.width), f"{b.macs / 1e6:.1f}M", f"{b.median:.3f}", f"{b.compute:.0%}"]
        for b in blocks
    ]


def columns_of_costed(costed: Sequence[Costed]) -> Columns:
    """A row a size."""
    heads = ["Size", "Sum of its blocks, ms", "Measured, ms", "Sum / measured"]
    return heads, [[c.size, f"{c.blocks:.2f}", f"{c.whole:.2f}", f"{c.blocks / c.whole:.2f}"] for c in costed]
