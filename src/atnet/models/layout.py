"""What a layout of AT-Net consists of, and its limits. Free of torch."""

import itertools
import operator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

LARGEST, DEEPEST = 4096, 256
"""Of a whole number in a layout, and of blocks or layers of a kind: a name in an untrusted file can't ask for a network
without end."""

_DEPTHS = ("depths", "attention_depths", "decision_heads")
_FROM_ONE = ("dims", "strides", "heads")


@dataclass(frozen=True, kw_only=True)
class Size:
    """One layout of AT-Net.

    depths: ConvMix blocks of each stage.
    dims: width of each stage; the last one is the encoder's, a multiple of heads.
    strides: of the stem, and of each later stage to the one before; 1 is none.
    attention_depths: encoder layers of self-attention, then of class attention, which update the class and register
    tokens only.
    kernel: side of the depthwise convolution of a ConvMix block, odd.
    heads: attention heads.
    registers: register tokens besides the class token.
    decision_heads: how many of them have a decision head, besides the class token's.
    convmixer: the design published in 2023: a patch convolution of any stride as stem, and ConvMixer's blocks; if not,
    stride-2 convolutions and ConvMix blocks with two residuals.
    mlp_ratio: width of an encoder layer's MLP over that of the encoder.
    global_pool: what the head reads: "token", the class token; "avg", the mean of the patch tokens, or of all tokens
    if class attention ends the encoder; "both", the mean of the class token and of the patch tokens' mean.
    """

    depths: tuple[int, int, int]
    dims: tuple[int, int, int]
    attention_depths: tuple[int, int]
    heads: int
    strides: tuple[int, int, int] = (4, 2, 2)
    kernel: int = 5
    registers: int = 4
    decision_heads: int = 0
    convmixer: bool = False
    mlp_ratio: float = 4.0
    global_pool: Literal["token", "avg", "both"] = "both"

    @property
    def columns(self) -> tuple[str, str, str, str, str]:
        """ConvMix, TransMix, Patch_size, Conv_Size and Embed_Dim, as the published table has them."""
        blocks = " + ".join(str(depth) for depth in self.depths if depth)
        layers = " + ".join(map(str, self.attention_depths)).removesuffix(" + 0")
        patch = " x ".join(str(stride) for stride in self.strides if stride > 1)
        widths = "/".join(map(str, dict.fromkeys(self.dims)))
        return blocks, layers, patch, str(self.kernel), widths

    @property
    def reductions(self) -> tuple[int, ...]:
        """Stride of each stage's grid to the image, in pixels."""
        return tuple(itertools.accumulate(self.strides, operator.mul))

    def grid(self, side: int) -> int:
        """Side of the encoder's grid of patch tokens, for images of side pixels."""
        for stride in self.strides:
            side = -(-side // stride)
        return side


def stem_widths(dim: int, stride: int) -> list[int]:
    """Channels after each stride-2 convolution of a stem of this total stride: they double, up to dim.

    Raises ValueError if stride is no power of two, or if it has more steps than dim can be halved.
    """
    steps = stride.bit_length() - 1
    if stride < 2 or stride != 2**steps:
        raise ValueError(f"strides: a stem of stride {stride}, no power of two: use one, or convmixer=True")
    if dim % 2 ** (steps - 1):
        raise ValueError(f"dims: a stem of stride {stride} halves {dim} {steps - 1} times: use a multiple")
    return [dim >> step for step in reversed(range(steps))]


def require_whole_heads(dim: int, heads: int) -> None:
    """Raises ValueError, with what to use, if dim is not divisible by heads."""
    if dim % heads:
        raise ValueError(
            f"dim={dim} is not divisible by heads={heads}: "
            f"try heads={next(h for h in range(heads, 0, -1) if dim % h == 0)} "
            f"or dim={-(-dim // heads) * heads}"
        )


def parse_field(field: str, word: str) -> Any:
    """The value of a layout's field from text: 7 for kernel, "2,6,11" for depths, true or false for convmixer.

    Raises ValueError if the field cannot have it.
    """
    kind = get_type_hints(Size)[field]
    if get_origin(kind) is Literal:
        if word not in get_args(kind):
            raise ValueError(f"{field}={word}: none of {', '.join(get_args(kind))}")
        return word
    if get_origin(kind) is tuple:
        words = word.split(",")
        if len(words) != len(get_args(kind)):
            raise ValueError(f"{field}={word}: no {len(get_args(kind))} numbers with commas between them")
        return tuple(_whole(field, word) for word in words)
    if kind is bool:
        if word not in ("true", "false"):
            raise ValueError(f"{field}={word}: neither true nor false")
        return word == "true"
    if kind is int:
        return _whole(field, word)
    number = float(word)
    if not 0 < number <= LARGEST:
        raise ValueError(f"{field}={word}: no number above 0, up to {LARGEST:,}")
    return number


def _whole(field: str, word: str) -> int:
    return whole_number(field, word, int(field in _FROM_ONE), DEEPEST if field in _DEPTHS else LARGEST)


def whole_number(field: str, word: str, least: int, most: int) -> int:
    """A whole number from text. Raises ValueError naming the field if it is none from least to most."""
    if not word.isdecimal() or not least <= int(word) <= most:
        raise ValueError(f"{field}={word}: no whole number from {least} to {most:,}")
    return int(word)
