"""AT-Net: stem, ConvMix, prefix tokens, TransMix, one decision head or several."""

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import calculate_drop_path_rates, get_device_dtype
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from atnet.model.blocks import ConvMix, Squeeze, Stage, TransMix, initialise, make_stem
from atnet.model.heads import Adapters, fuse

POOLS = ("token", "avg", "both", "")


class ATNet(nn.Module):
    """The network, with timm's model contract. The layout's arguments are those of `Size`.

    global_pool: what the head reads: "token" (the class token), "avg" (mean of the patch tokens, or where class
    attention ends the encoder, of all tokens: it changes the others alone), "both" (mean of the class token and of the
    patch tokens' mean), "" (all tokens, unpooled).
    drop_rate: dropout before the head.  drop_path_rate: stochastic depth of the last layer.
    view_drop_rate: share of the patch tokens that a prefix token does not see in a training step, each its own.
    Raises ValueError on a layout that cannot be built.
    """

    if TYPE_CHECKING:  # TorchScript refuses these annotations at run time
        cls_token: nn.Parameter | None
        reg_token: nn.Parameter | None
        squeeze: nn.Module
        norm: nn.Module
        head: nn.Module
        adapters: nn.Module
        feature_info: list[dict[str, Any]]

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "both",
        *,
        conv_mix: int,
        trans_mix: int,
        patch: int,
        kernel: int,
        conv_dim: int,
        dim: int,
        heads: int,
        class_attention: int = 2,
        registers: int = 4,
        decision_heads: int = 0,
        isolated: bool = False,
        norm_first: bool = True,
        squeeze: int = 2,
        dense_squeeze: bool = False,
        early_mix: int = 0,
        late_mix: int = 0,
        residual: str = "depthwise",
        gate: bool = False,
        qk_norm: bool = False,
        layer_scale: float = 0.0,
        stem: str = "overlap",
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        view_drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} is even: use an odd one, {kernel + 1} for example")
        if class_attention > trans_mix:
            raise ValueError(f"class_attention={class_attention} of trans_mix={trans_mix} layers: use fewer")
        if decision_heads > registers:
            raise ValueError(f"decision_heads={decision_heads} on registers={registers}: use more of these")
        if early_mix and stem != "overlap":
            raise ValueError(f"early_mix={early_mix} in a stem of one step: use stem='overlap'")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.drop_rate = drop_rate
        self.decision_heads = decision_heads
        self.separate_heads = False
        self.class_attention = class_attention
        self.has_tokens = True  # until pruned before the encoder
        rates = calculate_drop_path_rates(drop_path_rate, conv_mix + late_mix + trans_mix)

        self.stem = make_stem(stem, in_chans, conv_dim, patch, **factory)
        self.conv_mix = Stage(
            *(ConvMix(conv_dim, kernel, rate, norm_first, residual, gate, **factory) for rate in rates[:conv_mix])
        )
        self.squeeze = Squeeze(conv_dim, dim, squeeze, dense_squeeze, **factory)
        self.late_mix = Stage(
            *(
                ConvMix(dim, kernel, rate, norm_first, residual, gate, **factory)
                for rate in rates[conv_mix : conv_mix + late_mix]
            )
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **factory))
        self.reg_token = nn.Parameter(torch.empty(1, registers, dim, **factory)) if registers else None
        self.num_reg_tokens = registers
        self.num_prefix_tokens = 1 + registers
        prefixes = [0] * (trans_mix - class_attention) + [self.num_prefix_tokens] * class_attention
        layers = zip(rates[conv_mix + late_mix :], prefixes, strict=True)
        options = (qk_norm, layer_scale, isolated, view_drop_rate)
        self.trans_mix = Stage(*(TransMix(dim, heads, mlp_ratio, *layer, *options, **factory) for layer in layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6, **factory)
        self.head = nn.Identity()

        early = len(self.stem) - 2 if len(self.stem) > 1 else 0
        width = int(self.stem[early].conv.out_channels)  # type: ignore[union-attr,arg-type]
        for _ in range(early_mix):
            early += 1
            self.stem.insert(early, ConvMix(width, kernel, 0.0, norm_first, residual, gate, **factory))
        stride = patch // 2 if len(self.stem) > 1 else patch
        self.feature_info = [
            {"num_chs": width, "reduction": stride, "module": f"stem.{early}"},
            {"num_chs": conv_dim, "reduction": patch, "module": "conv_mix"},
            {"num_chs": dim, "reduction": patch * squeeze, "module": "trans_mix"},
        ]
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draws all initial weights anew; see `initialise` for the table."""
        self.apply(initialise)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    # A picture's way.

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Picture (B, C, H, W) to tokens (B, 1 + registers + patches, dim), normalised."""
        grid = self.conv_mix(self.stem(x))
        if not self.has_tokens:
            return grid
        return self.norm(self.trans_mix(self.with_prefix(self.late_mix(self.squeeze(grid)))))

    def with_prefix(self, grid: Tensor) -> Tensor:
        """Grid (B, D, h, w) to tokens: class token, register tokens, then the patches by rows."""
        parts = [grid.flatten(2).transpose(1, 2)]
        if self.reg_token is not None:
            parts.insert(0, self.reg_token.expand(grid.shape[0], -1, -1))
        if self.cls_token is not None:
            parts.insert(0, self.cls_token.expand(grid.shape[0], -1, -1))
        return torch.cat(parts, dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits (B, classes), or to what the class token's head reads (B, dim) if pre_logits.

        Of several heads: the logits of their mean probability, or in training, if `set_separate_heads`, each head's
        (B, 1 + decision_heads, classes).
        """
        if pre_logits or not self.several_heads:
            x = self.head_drop(self.pool(x))
            return x if pre_logits else self.head(x)
        logits = self.decide(x)
        return logits if self.training and self.separate_heads else fuse(logits)

    def decide(self, x: Tensor) -> Tensor:
        """Tokens to each head's logits (B, 1 + decision_heads, classes): the class token's, then the registers'."""
        registers = self.adapters(x[:, 1 : 1 + self.decision_heads])
        return self.head(self.head_drop(torch.cat([self.pool(x)[:, None], registers], dim=1)))

    def pool(self, x: Tensor) -> Tensor:
        """What the head reads, by `global_pool`."""
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

    # What timm and the tools built on it ask for.

    @torch.jit.ignore
    def set_separate_heads(self, enable: bool = True) -> None:
        """Whether the forward pass in training gives each decision head's logits; nothing changes in evaluation."""
        self.separate_heads = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The head; of several, the classifier that they share, and the adapters."""
        return (self.head, self.adapters) if self.decision_heads else self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head of num_classes logits (none if 0); global_pool stays unless given."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool={global_pool!r} is unknown: use one of {POOLS}")
            if self.cls_token is None and global_pool in ("token", "both"):
                raise ValueError(f"global_pool={global_pool!r} needs the class token, which was pruned: use 'avg'")
            if global_pool == "token" and not len(self.trans_mix):
                raise ValueError("global_pool='token' reads no pixel without trans_mix layers: use 'avg' or 'both'")
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

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "reg_token"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from input to output, for layer-wise decay."""
        return {
            "stem": r"^stem",
            "conv_mix": r"^conv_mix" if coarse else r"^conv_mix\.(\d+)",
            "squeeze": r"^squeeze",
            "late_mix": r"^late_mix" if coarse else r"^late_mix\.(\d+)",
            "tokens": r"^cls_token|^reg_token",
            "trans_mix": r"^trans_mix" if coarse else r"^trans_mix\.(\d+)",
            "norm": r"^norm",
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing in both stages: less memory, one more forward pass."""
        self.conv_mix.grad_checkpointing = self.late_mix.grad_checkpointing = self.trans_mix.grad_checkpointing = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features of three levels: in the stem, after ConvMix, after TransMix.

        The third level's grid is of patch tokens, which class attention does not change: where all TransMix layers are
        of class attention, it is what these read, and gives them no gradient.

        indices: which levels: all if None, the last n if an int.
        return_prefix_tokens: the last level comes as (grid, prefix tokens).
        norm: the final norm is applied to the last level.
        stop_early: levels after the last one asked for are not computed.
        output_fmt: "NCHW", or "NLC" for the levels flattened to tokens.
        Returns (features, levels), or the levels only if intermediates_only.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown: use 'NCHW' or 'NLC'")
        levels = len(self.feature_info)
        take, last = feature_take_indices(levels, indices)
        found: list[Any] = []

        def keep(level: int, grid: Tensor, prefix: Tensor | None = None) -> None:
            if level in take:
                out = grid if output_fmt == "NCHW" else grid.flatten(2).transpose(1, 2)
                found.append((out, prefix) if return_prefix_tokens and prefix is not None else out)

        early = max(len(self.stem) - 1, 1) if levels > 1 else len(self.stem)
        x = self.stem[:early](x)
        keep(0, x)
        if levels > 1 and not (stop_early and last == 0):
            x = self.conv_mix(self.stem[early:](x))
            keep(1, x)
        if levels > 2 and not (stop_early and last <= 1):
            grid = self.late_mix(self.squeeze(x))
            x = self.trans_mix(self.with_prefix(grid))
            normed = self.norm(x)
            level = normed if norm else x
            prefix, patches = level[:, : self.num_prefix_tokens], level[:, self.num_prefix_tokens :]
            keep(2, patches.transpose(1, 2).reshape(grid.shape), prefix)
            x = normed
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the levels asked for do not depend on; returns the levels as a list.

        Without a head that is class attention too, and the class and register tokens where nothing else reads them.
        """
        take, last = feature_take_indices(len(self.feature_info), indices)
        if last == 0:
            self.stem = self.stem[: max(len(self.stem) - 1, 1)]
            self.conv_mix = Stage()
        if last < 2:
            self.has_tokens = False
            self.squeeze = nn.Identity()
            self.late_mix = Stage()
            self.trans_mix = Stage()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        elif prune_head:
            del self.trans_mix[len(self.trans_mix) - self.class_attention :]
            self.class_attention = 0
        if not len(self.trans_mix):
            self.cls_token = self.reg_token = None
            self.num_reg_tokens = self.num_prefix_tokens = self.decision_heads = self.class_attention = 0
        if prune_norm or last < 2:
            self.norm = nn.Identity()
        self.feature_info = self.feature_info[: last + 1]
        if prune_head or last < 2:
            self.reset_classifier(0, "")
        return take
