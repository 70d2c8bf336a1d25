"""The size table of the family. Free of torch, so that a command can print it at once."""

import difflib
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from atnet.errors import ConfigError

LARGEST, DEEPEST = 4096, 256
"""Of a whole number in a layout, and of blocks or layers of a kind: a name out of an untrusted file can't ask for a
network without end."""

LARGEST_IMAGE = 2048
"""Pixels of a side."""

_REPEATED = ("conv_mix", "trans_mix", "early_mix", "late_mix", "decision_heads")
_AT_LEAST_ONE = ("patch", "conv_dim", "dim", "heads")


@dataclass(frozen=True, kw_only=True)
class Size:
    """One layout of AT-Net.

    conv_mix: ConvMix blocks.  trans_mix: TransMix layers.
    class_attention: how many of the last TransMix layers update the class and register tokens alone.
    patch: total stride of the stem, in pixels.
    kernel: side of the depthwise convolution of a ConvMix block.
    conv_dim: ConvMix width.  dim: TransMix width, a multiple of heads.
    registers: register tokens beside the class token.
    decision_heads: how many of them have a decision head, beside the class token's.
    isolated: whether class and register tokens do not see each other in class attention.
    norm_first: whether BatchNorm and ReLU follow ConvMix's convolutions, or GELU and BatchNorm.
    squeeze: stride between the two stages, 1 (tokens straight into the encoder) or 2.
    dense_squeeze: whether its 3x3 convolution mixes channels, or is depthwise.
    early_mix: ConvMix blocks before the overlapping stem's last step, at its width and half its stride.
    late_mix: ConvMix blocks after the squeeze, at the encoder's width and stride.
    residual: around ConvMix's "depthwise" convolution alone, around "both" convolutions, or around both without an
    activation after the depthwise one: "linear".
    gate: squeeze-and-excitation in each ConvMix block.
    qk_norm: LayerNorm of queries and keys.
    layer_scale: initial scale of what an encoder layer adds; 0 is none.
    stem: "patch", the author's single patch x patch convolution, any patch; or "overlap",
    stride-2 3x3 convolutions, patch a power of two.
    mlp_ratio: width of an encoder layer's MLP over dim.
    global_pool: what the head reads: "token", the class token; "avg", the mean of the patch tokens, or of all tokens
    where class attention ends the encoder; "both", the mean of the class token and of the patch tokens' mean.
    """

    conv_mix: int
    trans_mix: int
    patch: int
    kernel: int
    conv_dim: int
    dim: int
    heads: int
    class_attention: int = 2
    registers: int = 4
    decision_heads: int = 0
    isolated: bool = False
    norm_first: bool = True
    squeeze: Literal[1, 2] = 2
    dense_squeeze: bool = False
    early_mix: int = 0
    late_mix: int = 0
    residual: Literal["depthwise", "both", "linear"] = "depthwise"
    gate: bool = False
    qk_norm: bool = False
    layer_scale: float = 0.0
    stem: Literal["patch", "overlap"] = "overlap"
    mlp_ratio: float = 4.0
    global_pool: Literal["token", "avg", "both"] = "both"

    @property
    def columns(self) -> tuple[str, str, str, str, str]:
        """ConvMix, TransMix, Patch_size, Conv_Size and Embed_Dim, as the published table has them."""
        patch = f"{self.patch} x {self.squeeze}" if self.squeeze > 1 else str(self.patch)
        ordinary = self.trans_mix - self.class_attention
        layers = f"{ordinary} + {self.class_attention}" if self.class_attention else str(ordinary)
        blocks = " + ".join(str(count) for count in (self.early_mix, self.conv_mix, self.late_mix) if count)
        return blocks, layers, patch, str(self.kernel), f"{self.conv_dim}/{self.dim}"


def _seed(*, conv_mix: int, trans_mix: int, patch: int, dim: int, heads: int) -> Size:
    """A layout of the author's: one patch convolution, one width, tokens straight into the encoder."""
    return Size(
        conv_mix=conv_mix, trans_mix=trans_mix, patch=patch, kernel=7, conv_dim=dim, dim=dim, heads=heads,
        class_attention=0, norm_first=False, squeeze=1, stem="patch", global_pool="token",
    )  # fmt: skip


def _ours(*, dim: int, conv_mix: int, late_mix: int, trans_mix: int, class_attention: int) -> Size:
    """A layout of ours: an overlapping stem, ConvMix at strides 4, 8 and 16, the encoder at 16 in heads of 32."""
    return Size(
        early_mix=2, conv_mix=conv_mix, late_mix=late_mix, trans_mix=trans_mix, class_attention=class_attention,
        patch=8, kernel=5, conv_dim=dim // 2, dim=dim, heads=dim // 32, residual="both",
    )  # fmt: skip


FAMILY = {
    "xxxs": _ours(dim=192, conv_mix=6, late_mix=11, trans_mix=2, class_attention=2),
    "xxs": _ours(dim=256, conv_mix=6, late_mix=13, trans_mix=2, class_attention=2),
    "xs": _ours(dim=288, conv_mix=8, late_mix=15, trans_mix=2, class_attention=2),
    "s": _ours(dim=512, conv_mix=8, late_mix=16, trans_mix=6, class_attention=3),
    "l": _ours(dim=640, conv_mix=10, late_mix=20, trans_mix=9, class_attention=4),
}
"""The sizes of one decision head, from the smallest on."""

STAR = "_star"
"""Behind a size's name: with a decision head on each register token, beside the class token's."""

SIZES: dict[str, Size] = {
    **{
        name + star: replace(size, decision_heads=size.registers if star else 0)
        for name, size in FAMILY.items()
        for star in ("", STAR)
    },
    # The author's, as published: ConvMix blocks, TransMix layers, patch. Widths meet the parameters.
    "seed_xxxs": _seed(conv_mix=5, trans_mix=7, patch=8, dim=130, heads=5),
    "seed_xxs": _seed(conv_mix=6, trans_mix=4, patch=9, dim=220, heads=5),
    "seed_s": _seed(conv_mix=10, trans_mix=11, patch=12, dim=416, heads=13),
    "author_2023": _seed(conv_mix=5, trans_mix=5, patch=8, dim=512, heads=8),
}


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """A size with changes, "xxxs+kernel=5+registers=8", as the size and the changes of its layout.

    A star behind a size, "s*", is short for "s_star".
    Raises ConfigError naming what cannot be changed so.
    """
    base, *changes = name.split("+")
    base = re.sub(r"\*$", STAR, base)
    if not changes:
        return base, {}
    size = SIZES.get(base.removeprefix("atnet_"))
    if size is None:
        raise ConfigError(f"{name}: only AT-Net's own sizes take changes, and {base} is none: {', '.join(SIZES)}")
    fields = asdict(size)
    found: dict[str, Any] = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals or field not in fields:
            near = difflib.get_close_matches(field, fields, 1) or [", ".join(fields)]
            raise ConfigError(f"{name}: {change!r} changes nothing of a layout; as {base}+kernel=5: {near[0]}")
        try:
            found[field] = _converted(value, field, fields[field])
        except ValueError as error:
            raise ConfigError(f"{name}: {change!r}: {error}; {base} has {field}={fields[field]}") from error
    return base, found


def layout_of(name: str) -> Size | None:
    """The layout that a model's name means, changes made; None of an architecture of timm's."""
    base, changes = split_name(name)
    size = SIZES.get(base.removeprefix("atnet_"))
    return replace(size, **changes) if size else None


def _converted(value: str, field: str, like: Any) -> Any:
    """The value in the type of the field's, which it replaces. Raises ValueError if the field cannot have it."""
    choices = {str(choice): choice for choice in get_args(get_type_hints(Size)[field])}
    least, most = int(field in _AT_LEAST_ONE), DEEPEST if field in _REPEATED else LARGEST
    if choices:
        if value not in choices:
            raise ValueError(f"none of {', '.join(choices)}")
        return choices[value]
    if isinstance(like, bool):
        if value not in ("true", "false"):
            raise ValueError("neither true nor false")
        return value == "true"
    if isinstance(like, int):
        if not value.isdecimal() or not least <= int(value) <= most:
            raise ValueError(f"no whole number from {least} to {most:,}")
        return int(value)
    number = float(value)
    if not 0 < number <= most:
        raise ValueError(f"no number above 0, up to {most:,}")
    return number
