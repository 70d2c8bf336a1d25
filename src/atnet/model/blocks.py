"""The parts of the network in the order a picture meets them: stem, ConvMix, squeeze, TransMix.

Shapes: a grid is (batch, channels, height, width); tokens are (batch, count, dim).
"""

import itertools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, SqueezeExcite
from timm.models import checkpoint_seq, register_notrace_function, register_notrace_module
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from atnet.model.ops import DepthwiseConv2d, NormRelu2d, attend, mix


@register_notrace_function
def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """The picture with zeros at the right and the bottom, so that both sides divide by multiple."""
    bottom = (multiple - image.shape[2] % multiple) % multiple
    right = (multiple - image.shape[3] % multiple) % multiple
    if bottom > 0 or right > 0:
        image = F.pad(image, [0, right, 0, bottom])
    return image


class PatchConv(nn.Module):
    """The author's stem: one patch x patch convolution of stride patch, activation, BatchNorm.

    Source: Trockman & Kolter 2022, "Patches Are All You Need?".
    """

    def __init__(self, in_chans: int, dim: int, patch: int, **factory: Any) -> None:
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv2d(in_chans, dim, patch, stride=patch, **factory)
        self.act = nn.GELU()
        self.norm = nn.BatchNorm2d(dim, **factory)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.act(self.conv(pad_to_multiple(image, self.patch))))


class OverlapConv(nn.Module):
    """One step of the overlapping stem: a stride-2 3x3 convolution, BatchNorm, ReLU.

    All three are one operation when deployed; sides are halved, rounded up.
    Source: Xiao et al. 2021, "Early Convolutions Help Transformers See Better".
    """

    def __init__(self, in_dim: int, dim: int, **factory: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, bias=False, **factory)
        self.norm = NormRelu2d(dim, **factory)

    def forward(self, grid: Tensor) -> Tensor:
        return self.norm(self.conv(grid))


def overlap_widths(dim: int, patch: int) -> list[int]:
    """Channels after each step of the overlapping stem: 24 first, or dim / 8 if that is more, doubled, dim last.

    Raises ValueError if patch is no power of two.
    """
    steps = patch.bit_length() - 1
    if patch < 2 or patch != 2**steps:
        raise ValueError(f"patch={patch} is no power of two: use one, or stem='patch'")
    return [*(min(max(24, dim // 8) * 2**step, dim) for step in range(steps - 1)), dim]


def make_stem(kind: str, in_chans: int, dim: int, patch: int, **factory: Any) -> nn.Sequential:
    """The stem of total stride patch; for the overlapping one's channels see `overlap_widths`.

    Raises ValueError if the kind is unknown, or if it is "overlap" and patch no power of two.
    """
    if kind == "patch":
        return nn.Sequential(PatchConv(in_chans, dim, patch, **factory))
    if kind != "overlap":
        raise ValueError(f"stem={kind!r} is unknown: use 'patch' or 'overlap'")
    widths = [in_chans, *overlap_widths(dim, patch)]
    return nn.Sequential(*(OverlapConv(w_in, w_out, **factory) for w_in, w_out in itertools.pairwise(widths)))


@register_notrace_module
class ConvMix(nn.Module):
    """A ConvMixer block: depthwise kernel x kernel with residual, then 1x1.

    norm_first: BatchNorm and ReLU follow each convolution, one operation with it when deployed; if not, as
    in ConvMixer, GELU and BatchNorm.
    Source: Trockman & Kolter 2022, section 2.
    """

    if TYPE_CHECKING:  # TorchScript refuses the annotation at run time
        norm1: nn.Module
        norm2: nn.Module
        act: nn.Module
        gate: nn.Module

    def __init__(
        self,
        dim: int,
        kernel: int,
        drop_path: float,
        norm_first: bool = True,
        residual: str = "depthwise",
        gate: bool = False,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.both = residual in ("both", "linear")
        bias = not norm_first  # BatchNorm would take it away
        self.depthwise = DepthwiseConv2d(dim, kernel, bias=bias, **factory)
        self.norm1 = (
            NormRelu2d(dim, **factory) if norm_first and residual != "linear" else nn.BatchNorm2d(dim, **factory)
        )
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=bias, **factory)
        self.norm2 = NormRelu2d(dim, **factory) if norm_first else nn.BatchNorm2d(dim, **factory)
        self.act = nn.Identity() if norm_first else nn.GELU()
        self.gate = SqueezeExcite(dim, rd_ratio=0.25, rd_divisor=8, **factory) if gate else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.adds_plainly = residual != "linear" and not gate

    def forward(self, grid: Tensor) -> Tensor:
        if self.norm_first:
            if not is_scripting():  # noqa: SIM102  the rest is not TorchScript
                if self.training and self.adds_plainly:
                    grid = mix(grid, self.depthwise, self.norm1, self.drop_path)
                    if self.both:
                        return mix(grid, self.pointwise, self.norm2, self.drop_path)
                    return self.norm2(self.pointwise(grid))
            grid = grid + self.drop_path(self.gate(self.norm1(self.depthwise(grid))))
            mixed = self.norm2(self.pointwise(grid))
            return grid + self.drop_path(mixed) if self.both else mixed
        grid = grid + self.drop_path(self.norm1(self.act(self.depthwise(grid))))
        return self.norm2(self.act(self.pointwise(grid)))


class Squeeze(nn.Module):
    """From the ConvMix grid to the encoder's: stride, width, and where a patch is.

    A depthwise 3x3 convolution of the given stride and a 1x1 one change the resolution and the
    width (nothing where neither changes). Then a depthwise 3x3 convolution with residual tells
    positions by its zero padding, at any input size.
    Source: Chu et al. 2021, "Conditional Positional Encodings for Vision Transformers".
    """

    if TYPE_CHECKING:  # TorchScript refuses the annotation at run time
        reduce: nn.Module

    def __init__(self, in_dim: int, dim: int, stride: int, dense: bool = False, **factory: Any) -> None:
        super().__init__()
        self.reduce = nn.Identity()
        if dense:
            self.reduce = nn.Sequential(
                nn.Conv2d(in_dim, dim, 3, stride, 1, bias=False, **factory),
                nn.BatchNorm2d(dim, **factory),
            )
        elif stride > 1 or in_dim != dim:
            self.reduce = nn.Sequential(
                DepthwiseConv2d(in_dim, 3, stride, bias=False, **factory) if stride > 1 else nn.Identity(),
                nn.Conv2d(in_dim, dim, 1, bias=False, **factory),
                nn.BatchNorm2d(dim, **factory),
            )
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **factory)

    def forward(self, grid: Tensor) -> Tensor:
        grid = self.reduce(grid)
        return grid + self.position(grid)


def require_whole_heads(dim: int, heads: int) -> None:
    """Raises ValueError, with what to use, if dim is not divisible by heads."""
    if dim % heads:
        raise ValueError(
            f"dim={dim} is not divisible by heads={heads}: "
            f"try heads={next(h for h in range(heads, 0, -1) if dim % h == 0)} "
            f"or dim={-(-dim // heads) * heads}"
        )


class Attention(nn.Module):
    """Multi-head self-attention with fused attention.

    Source: Vaswani et al. 2017.
    """

    def __init__(self, dim: int, heads: int, qk_norm: bool = False, **factory: Any) -> None:
        super().__init__()
        require_whole_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, **factory)
        self.q_norm = nn.LayerNorm(dim // heads, eps=1e-6, **factory) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=1e-6, **factory) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, **factory)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.project(tokens)
        return self.proj(attend(query, key, value).transpose(1, 2).reshape(tokens.shape))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, count, dim / heads)."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(query), self.k_norm(key), value


class ClassAttention(nn.Module):
    """Multi-head attention of the first `prefix` tokens to all tokens, fused.

    isolated: whether each of them sees itself and the patch tokens alone, not the others.
    view_drop: share of the patch tokens that each of them does not see in a training step, each its own.
    Source: Touvron et al. 2021, "Going deeper with Image Transformers".
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        prefix: int,
        qk_norm: bool = False,
        isolated: bool = False,
        view_drop: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        require_whole_heads(dim, heads)
        self.heads = heads
        self.prefix = prefix
        self.isolated = isolated
        self.view_drop = view_drop
        self.q_norm = nn.LayerNorm(dim // heads, eps=1e-6, **factory) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=1e-6, **factory) if qk_norm else nn.Identity()
        self.q = nn.Linear(dim, dim, **factory)
        self.kv = nn.Linear(dim, 2 * dim, **factory)
        self.proj = nn.Linear(dim, dim, **factory)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, count, dim) to what the first of them gather (batch, prefix, dim)."""
        query, key, value = self.project(tokens)
        mixed = attend(query, key, value, self.seen(tokens)).transpose(1, 2)
        return self.proj(mixed.reshape(tokens.shape[0], self.prefix, tokens.shape[2]))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (batch, heads, prefix, dim / heads), keys and values (batch, heads, count, dim / heads)."""
        batch, count, dim = tokens.shape
        query = self.q(tokens[:, : self.prefix]).reshape(batch, self.prefix, self.heads, dim // self.heads)
        kv = self.kv(tokens).reshape(batch, count, 2, self.heads, dim // self.heads)
        key, value = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(query.transpose(1, 2)), self.k_norm(key), value

    def seen(self, tokens: Tensor) -> Tensor | None:
        """Which tokens each of the first may attend to, bool (batch or 1, 1, prefix, count); None if all."""
        drops = self.training and self.view_drop > 0
        if not drops and not self.isolated:
            return None
        batch, count, _ = tokens.shape
        among = torch.ones(self.prefix, self.prefix, dtype=torch.bool, device=tokens.device)
        if self.isolated:
            among = torch.eye(self.prefix, dtype=torch.bool, device=tokens.device)
        patches = torch.ones(1, 1, self.prefix, count - self.prefix, dtype=torch.bool, device=tokens.device)
        if drops:
            patches = torch.rand(batch, 1, self.prefix, count - self.prefix, device=tokens.device) >= self.view_drop
        return torch.cat([among.expand(patches.shape[0], 1, -1, -1), patches], dim=3)


class TransMix(nn.Module):
    """A pre-norm encoder layer: attention, then an MLP, each with residual.

    prefix: 0, or how many tokens, the first ones, alone ask and are updated. Such a layer costs little
    more than the keys and values of the others.
    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; for the prefix, see ClassAttention.
    """

    if TYPE_CHECKING:  # TorchScript refuses the annotation at run time
        attention: nn.Module

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        drop_path: float,
        prefix: int = 0,
        qk_norm: bool = False,
        layer_scale: float = 0.0,
        isolated: bool = False,
        view_drop: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **factory)
        self.attention = (
            ClassAttention(dim, heads, prefix, qk_norm, isolated, view_drop, **factory)
            if prefix
            else Attention(dim, heads, qk_norm, **factory)
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **factory)
        self.scale1 = LayerScale(dim, layer_scale, **factory) if layer_scale else nn.Identity()
        self.scale2 = LayerScale(dim, layer_scale, **factory) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        asked = self.drop_path(self.scale1(self.attention(self.norm1(tokens))))
        updated = (tokens[:, : self.prefix] if self.prefix else tokens) + asked
        updated = updated + self.drop_path(self.scale2(self.mlp(self.norm2(updated))))
        return torch.cat([updated, tokens[:, self.prefix :]], dim=1) if self.prefix else updated


class Stage(nn.Sequential):
    """Blocks one after the other, keeping their activations or, to save memory, computing them twice."""

    def __init__(self, *blocks: Any) -> None:
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not is_scripting():
            return checkpoint_seq(self, x)
        for block in self:
            x = block(x)
        return x


def initialise(module: nn.Module) -> None:
    """Sets one module's initial weights, drawn from torch's global generator.

    | what                              | weight                          | bias |
    |-----------------------------------|---------------------------------|------|
    | Linear                            | normal, std 0.02, cut at 2 std  | 0    |
    | Conv2d                            | normal, std sqrt(2 / fan-out)   | 0    |
    | BatchNorm, LayerNorm              | 1                               | 0    |
    | class token, register tokens (*)  | normal, std 0.02                |      |

    (*) by the network itself: they are parameters, not modules.
    Sources: Dosovitskiy et al. 2021 (Linear, tokens), He et al. 2015 (Conv2d).
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0][0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
