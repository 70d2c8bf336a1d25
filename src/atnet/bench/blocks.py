"""The latency of each building block at each stride and width, so that a layout is costed before it is trained."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from atnet.bench.bench import Columns, take_turns
from atnet.bench.roof import measure_roof
from atnet.exported.graph import write_onnx
from atnet.models.atnet import ConvMix, Stage, TransMix, make_stem
from atnet.models.cost import macs_of
from atnet.models.layout import Size
from atnet.models.load import create_deployed
from atnet.models.sizes import FAMILY

TRANS_STRIDES = (16, 32)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block, one image.

    stride: of its grid to the image, in pixels; of the stem and of downsampling, of the grid they make.
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
    strides = layout.reductions
    grids = [-(-size // stride) for stride in strides]
    (first, middle, dim), prefix = layout.dims, 1 + layout.registers
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        f"stem-{strides[0]}-{first}": (make_stem(3, first, strides[0], layout.convmixer), (3, size, size))
    }
    for number in (1, 2):
        before, width = layout.dims[number - 1 : number + 1]
        stage = Stage(before, width, layout.strides[number], [], last=number == 2)
        found[f"downsampling-{strides[number]}-{width}"] = (stage, (before, grids[number - 1], grids[number - 1]))
    for stride, width in {**dict.fromkeys(zip(strides, layout.dims, strict=True)), (strides[2], middle): None}:
        block = ConvMix(width, layout.kernel, 0.0)
        found[f"ConvMix-{stride}-{width}"] = (block, (width, -(-size // stride), -(-size // stride)))
    for stride in TRANS_STRIDES:
        tokens = (prefix + (-(-size // stride)) ** 2, dim)
        for name, queries in (("TransMix", 0), ("class attention", prefix)):
            found[f"{name}-{stride}-{dim}"] = (TransMix(dim, layout.heads, layout.mlp_ratio, 0.0, queries), tokens)
    return {key: (module.eval(), shape) for key, (module, shape) in found.items()}


def _counts(layout: Size) -> dict[str, int]:
    """How many of each block a layout has."""
    strides = layout.reductions
    places = list(zip(strides, layout.dims, strict=True))
    (stem, *later), (stride, dim) = places, places[-1]
    return {
        "stem-{}-{}".format(*stem): 1,
        **{"downsampling-{}-{}".format(*place): 1 for place in later},
        **{"ConvMix-{}-{}".format(*place): depth for place, depth in zip(places, layout.depths, strict=True)},
        f"TransMix-{stride}-{dim}": layout.attention_depths[0],
        f"class attention-{stride}-{dim}": layout.attention_depths[1],
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
