"""The size table of the family. Free of torch, so that a command can print it at once."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Size:
    """One layout of AT-Net.

    conv_mix: ConvMix blocks.  trans_mix: TransMix layers.
    patch: total stride of the stem, in pixels.
    kernel: side of the depthwise convolution of a ConvMix block.
    conv_dim: ConvMix width.  dim: TransMix width, a multiple of heads.
    registers: register tokens beside the class token.
    squeeze: stride between the two stages, 1 (tokens straight into the encoder) or 2.
    stem: "patch", the author's single patch x patch convolution, any patch; or "overlap",
    stride-2 3x3 convolutions, patch a power of two.
    mlp_ratio: width of an encoder layer's MLP over dim.
    """

    conv_mix: int
    trans_mix: int
    patch: int
    kernel: int
    conv_dim: int
    dim: int
    heads: int
    registers: int = 4
    squeeze: Literal[1, 2] = 2
    stem: Literal["patch", "overlap"] = "overlap"
    mlp_ratio: float = 4.0


SIZES: dict[str, Size] = {
    "xxxs": Size(conv_mix=6, trans_mix=3, patch=8, kernel=7, conv_dim=96, dim=192, heads=6),
}
