"""AT-Net: stem, three stages of ConvMix blocks, prefix tokens, encoder, one decision head or several.

Shapes: B images, C channels, H x W pixels; D is the width of the last stage and of the encoder; h x w is the grid of
the last stage, H/16 x W/16 in the sizes of the family; there are R register tokens and N = h * w patch tokens.
"""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, get_device_dtype
from timm.models import checkpoint_seq, register_notrace_function, register_notrace_module
from torch import Tensor, nn

from atnet.models.heads import Adapters, fuse
from atnet.models.layout import require_whole_heads, stem_widths
from atnet.models.ops import DepthwiseConv2d, NormRelu2d, attend, mix
from atnet.models.timm_contract import TimmContract

POOLS = ("token", "avg", "both", "")


class ATNet(TimmContract, nn.Module):
    """The network, with timm's model contract. The layout's arguments are the fields of `Size` (models/layout.py).

    global_pool: what the head reads: "token" (the class token), "both" (mean of the class token and of the patch
    tokens' mean), "avg" (mean of the patch tokens; of all tokens if the encoder ends with class attention, for that
    updates the prefix tokens only, and would get no gradient), "" (all tokens, unpooled).
    drop_rate: dropout before the head.  drop_path_rate: stochastic depth of the last layer.
    Raises ValueError on a layout that cannot be built.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "both",
        *,
        depths: Sequence[int],
        dims: Sequence[int],
        strides: Sequence[int],
        attention_depths: Sequence[int],
        kernel: int,
        heads: int,
        registers: int = 4,
        decision_heads: int = 0,
        convmixer: bool = False,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not len(depths) == len(dims) == len(strides) == 3 or len(attention_depths) != 2:
            raise ValueError("depths, dims and strides have three numbers each, attention_depths has two")
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} is even: use an odd one, {kernel + 1} for example")
        if decision_heads > registers:
            raise ValueError(f"decision_heads={decision_heads} on registers={registers}: use more of these")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        dim = dims[-1]
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.drop_rate = drop_rate
        self.decision_heads = decision_heads
        self.separate_heads = False
        self.class_attention = attention_depths[1]
        self.has_tokens = True  # False once the third stage and what follows it are pruned
        self.num_reg_tokens = registers
        self.num_prefix_tokens = 1 + registers
        rates = iter(
            [0.0] * depths[0]  # no stochastic depth in the first stage
            + calculate_drop_path_rates(drop_path_rate, depths[1] + depths[2] + sum(attention_depths))
        )

        self.stem = make_stem(in_chans, dims[0], strides[0], convmixer, **factory)
        block = ConvMixerBlock if convmixer else ConvMix
        stages, in_dim = [], dims[0]
        for number, (depth, width) in enumerate(zip(depths, dims, strict=True)):
            blocks = [block(width, kernel, next(rates), **factory) for _ in range(depth)]
            stride = strides[number] if number else 1  # strides[0] is the stem's
            stages.append(Stage(in_dim, width, stride, blocks, last=number == 2, **factory))
            in_dim = width
        self.stages = nn.Sequential(*stages)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **factory))
        self.reg_token = nn.Parameter(torch.empty(1, registers, dim, **factory)) if registers else None
        prefixes = [0] * attention_depths[0] + [self.num_prefix_tokens] * attention_depths[1]
        self.encoder = Blocks(*(TransMix(dim, heads, mlp_ratio, next(rates), prefix, **factory) for prefix in prefixes))
        self.norm = nn.LayerNorm(dim, eps=1e-6, **factory)
        self.head = nn.Identity()
        reductions = itertools.accumulate(strides, operator.mul)
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": module}
            for width, reduction, module in zip(dims, reductions, ("stages.0", "stages.1", "encoder"), strict=True)
        ]
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to normalised tokens (B, 1 + R + N, D), or to a stage's grid if the others are pruned."""
        grid = self.stages(self.stem(x))  # (B, D, h, w)
        if not self.has_tokens:
            return grid
        return self.norm(self.encoder(self.add_prefix_tokens(grid)))

    def add_prefix_tokens(self, grid: Tensor) -> Tensor:
        """Grid (B, D, h, w) to tokens (B, 1 + R + N, D): class token, register tokens, patch tokens by rows."""
        parts = [grid.flatten(2).transpose(1, 2)]
        if self.reg_token is not None:
            parts.insert(0, self.reg_token.expand(grid.shape[0], -1, -1))
        if self.cls_token is not None:
            parts.insert(0, self.cls_token.expand(grid.shape[0], -1, -1))
        return torch.cat(parts, dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, 1 + R + N, D) to logits (B, classes), or to the pooled features (B, D) if pre_logits.

        With several decision heads: the logits of their mean probability, or in training, after `set_separate_heads`,
        the logits of each (B, 1 + decision_heads, classes).
        """
        if pre_logits or not self.several_heads:
            x = self.head_drop(self.pool(x))
            return x if pre_logits else self.head(x)
        logits = self.decide(x)
        return logits if self.training and self.separate_heads else fuse(logits)

    def decide(self, x: Tensor) -> Tensor:
        """Tokens to each head's logits (B, 1 + decision_heads, classes): of what `pool` gives, then of registers."""
        registers = self.adapters(x[:, 1 : 1 + self.decision_heads])
        return self.head(self.head_drop(torch.cat([self.pool(x)[:, None], registers], dim=1)))

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + R + N, D), or a grid (B, D, h, w) without an encoder, to what the head reads (B, D)."""
        if self.global_pool == "":
            return x
        if not self.has_tokens:
            return x.mean((2, 3))
        if self.global_pool == "token":
            return x[:, 0]
        if self.global_pool == "avg" and self.class_attention:
            return x.mean(1)
        patches = x[:, self.num_prefix_tokens :].mean(1)
        return patches if self.global_pool == "avg" else (x[:, 0] + patches) / 2

    def set_separate_heads(self, enable: bool = True) -> None:
        """Whether the forward pass in training returns the logits of each decision head; evaluation does not change."""
        self.separate_heads = enable

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head of num_classes logits (none if 0); global_pool stays unless given."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool={global_pool!r} is unknown: use one of {POOLS}")
            if self.cls_token is None and global_pool in ("token", "both"):
                raise ValueError(f"global_pool={global_pool!r} needs the class token, which was pruned: use 'avg'")
            if global_pool == "token" and not len(self.encoder):
                raise ValueError("global_pool='token' reads no pixel without an encoder: use 'avg' or 'both'")
            self.global_pool = global_pool
        self.num_classes = num_classes
        factory = get_device_dtype(self)
        self.head_drop = nn.Dropout(self.drop_rate)
        self.head = nn.Linear(self.num_features, num_classes, **factory) if num_classes else nn.Identity()
        self.head_drop.train(self.training)
        self.several_heads = bool(self.decision_heads and num_classes and self.global_pool)
        self.adapters = (
            Adapters(self.num_features, self.decision_heads, **factory) if self.several_heads else nn.Identity()
        )
        for part in (self.head, self.adapters):
            part.train(self.training).apply(initialise)

    def init_weights(self) -> None:
        """Draws all initial weights anew; see `initialise` for the table."""
        self.apply(initialise)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)


def make_stem(in_chans: int, dim: int, stride: int, convmixer: bool, **factory: Any) -> nn.Sequential:
    """Images (B, C, H, W) to (B, dim, H / stride, W / stride), sides rounded up.

    convmixer: one patch convolution, any stride; if not, stride-2 convolutions, stride a power of two.
    Raises ValueError if the stride is not supported.
    """
    if convmixer:
        return nn.Sequential(PatchConv(in_chans, dim, stride, **factory))
    widths = [in_chans, *stem_widths(dim, stride)]
    return nn.Sequential(*(ConvNormRelu(w_in, w_out, 2, **factory) for w_in, w_out in itertools.pairwise(widths)))


class PatchConv(nn.Module):
    """One patch x patch convolution of stride patch, GELU, BatchNorm.

    Source: Trockman & Kolter 2022, "Patches Are All You Need?".
    """

    def __init__(self, in_chans: int, dim: int, patch: int, **factory: Any) -> None:
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv2d(in_chans, dim, patch, stride=patch, **factory)
        self.act = nn.GELU()
        self.norm = nn.BatchNorm2d(dim, **factory)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, dim, H / patch, W / patch)
        return self.norm(self.act(self.conv(pad_to_multiple(images, self.patch))))


@register_notrace_function
def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Images with zeros at the right and the bottom, so that multiple divides both sides."""
    bottom, right = (-images.shape[2] % multiple, -images.shape[3] % multiple)
    return F.pad(images, [0, right, 0, bottom]) if bottom > 0 or right > 0 else images


class ConvNormRelu(nn.Module):
    """A 3x3 convolution, BatchNorm, ReLU: one operation when deployed; sides are divided by stride, rounded up.

    Source: Xiao et al. 2021, "Early Convolutions Help Transformers See Better".
    """

    def __init__(self, in_dim: int, dim: int, stride: int, **factory: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1, bias=False, **factory)
        self.norm = NormRelu2d(dim, **factory)

    def forward(self, grid: Tensor) -> Tensor:
        return self.norm(self.conv(grid))


class Stage(nn.Module):
    """(B, in_dim, H, W) to (B, dim, H / stride, W / stride): downsampling, then ConvMix blocks.

    The last stage downsamples by a depthwise and a 1x1 convolution, the others by a full 3x3 one; a stage that changes
    neither width nor stride does not downsample. The last stage encodes positions by a depthwise 3x3 convolution with
    residual, whose zero padding shows where the borders are, at any input size.
    Source: Chu et al. 2021, "Conditional Positional Encodings for Vision Transformers".
    """

    def __init__(
        self, in_dim: int, dim: int, stride: int, blocks: Sequence[nn.Module], *, last: bool, **factory: Any
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_dim != dim:
            kind = SeparableConv if last else ConvNormRelu
            self.downsample = kind(in_dim, dim, stride, **factory)
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **factory) if last else None
        self.blocks = Blocks(*blocks)

    def forward(self, grid: Tensor) -> Tensor:
        grid = self.downsample(grid)
        if self.position is not None:
            grid = grid + self.position(grid)
        return self.blocks(grid)


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution of the given stride (left out if that is 1), a 1x1 convolution, BatchNorm."""

    def __init__(self, in_dim: int, dim: int, stride: int, **factory: Any) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv2d(in_dim, 3, stride, bias=False, **factory) if stride > 1 else nn.Identity()
        self.pointwise = nn.Conv2d(in_dim, dim, 1, bias=False, **factory)
        self.norm = nn.BatchNorm2d(dim, **factory)

    def forward(self, grid: Tensor) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(grid)))


@register_notrace_module
class ConvMix(nn.Module):
    """A depthwise kernel x kernel convolution, then a 1x1, each with BatchNorm, ReLU and a residual; (B, dim, H, W).

    Source: the block of ConvMixer (Trockman & Kolter 2022, section 2), with two changes: a second residual, and
    BatchNorm then ReLU in place of GELU then BatchNorm, so that BatchNorm folds into the convolution when deployed.
    """

    def __init__(self, dim: int, kernel: int, drop_path: float, **factory: Any) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv2d(dim, kernel, bias=False, **factory)
        self.norm1 = NormRelu2d(dim, **factory)
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=False, **factory)
        self.norm2 = NormRelu2d(dim, **factory)
        self.drop_path = DropPath(drop_path)

    def forward(self, grid: Tensor) -> Tensor:
        grid = mix(grid, self.depthwise, self.norm1, self.drop_path)  # grid + drop_path(norm1(depthwise(grid)))
        return mix(grid, self.pointwise, self.norm2, self.drop_path)


class ConvMixerBlock(nn.Module):
    """A depthwise kernel x kernel convolution with residual, then a 1x1, each with GELU and BatchNorm; (B, dim, H, W).

    Source: Trockman & Kolter 2022, section 2.
    """

    def __init__(self, dim: int, kernel: int, drop_path: float, **factory: Any) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv2d(dim, kernel, **factory)
        self.norm1 = nn.BatchNorm2d(dim, **factory)
        self.pointwise = nn.Conv2d(dim, dim, 1, **factory)
        self.norm2 = nn.BatchNorm2d(dim, **factory)
        self.act = nn.GELU()
        self.drop_path = DropPath(drop_path)

    def forward(self, grid: Tensor) -> Tensor:
        grid = grid + self.drop_path(self.norm1(self.act(self.depthwise(grid))))
        return self.norm2(self.act(self.pointwise(grid)))


class TransMix(nn.Module):
    """A pre-norm encoder layer: attention, then an MLP, each with residual; tokens (B, L, D).

    prefix: 0 for self-attention. Else class attention: the first `prefix` tokens are the queries, and the only tokens
    that are updated, which costs little more than the keys and values of the others.
    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; for the prefix, see ClassAttention.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, drop_path: float, prefix: int = 0, **factory: Any
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **factory)
        self.attention = ClassAttention(dim, heads, prefix, **factory) if prefix else Attention(dim, heads, **factory)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **factory)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        updated = tokens[:, : self.prefix] if self.prefix else tokens  # (B, prefix or L, D)
        updated = updated + self.drop_path(self.attention(self.norm1(tokens)))
        updated = updated + self.drop_path(self.mlp(self.norm2(updated)))
        return torch.cat([updated, tokens[:, self.prefix :]], dim=1) if self.prefix else updated


class Attention(nn.Module):
    """Multi-head self-attention. Source: Vaswani et al. 2017."""

    def __init__(self, dim: int, heads: int, **factory: Any) -> None:
        super().__init__()
        require_whole_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, **factory)
        self.proj = nn.Linear(dim, dim, **factory)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        return self.proj(attend(*self.project(tokens)).transpose(1, 2).reshape(tokens.shape))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, L, D / heads)."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


class ClassAttention(nn.Module):
    """Multi-head attention whose queries are the first `prefix` tokens, and whose keys and values are all tokens.

    Source: Touvron et al. 2021, "Going deeper with Image Transformers".
    """

    def __init__(self, dim: int, heads: int, prefix: int, **factory: Any) -> None:
        super().__init__()
        require_whole_heads(dim, heads)
        self.heads = heads
        self.prefix = prefix
        self.q = nn.Linear(dim, dim, **factory)
        self.kv = nn.Linear(dim, 2 * dim, **factory)
        self.proj = nn.Linear(dim, dim, **factory)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, D) -> (B, prefix, D)
        mixed = attend(*self.project(tokens)).transpose(1, 2)
        return self.proj(mixed.reshape(tokens.shape[0], self.prefix, tokens.shape[2]))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, prefix, D / heads), keys and values (B, heads, L, D / heads)."""
        batch, count, dim = tokens.shape
        query = self.q(tokens[:, : self.prefix]).reshape(batch, self.prefix, self.heads, dim // self.heads)
        kv = self.kv(tokens).reshape(batch, count, 2, self.heads, dim // self.heads)
        key, value = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return query.transpose(1, 2), key, value


class Blocks(nn.Sequential):
    """Blocks in sequence; with grad_checkpointing, activations are computed again in the backward pass."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
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

    (*) by `ATNet.init_weights`: they are parameters, not modules.
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
