"""What timm and the tools built on it ask of a model besides its forward passes and its classifier."""

from collections.abc import Mapping
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from atnet.models.legacy import current_state


def _blocks(model: nn.Module, stage: int) -> Any:
    stages: Any = model.stages
    if len(stages) <= stage:
        raise AttributeError(f"stage {stage} was pruned")
    return stages[stage].blocks


class TimmContract(nn.Module):
    """Features by level, parameter groups, checkpointing and pruning of a network of a stem, stages and an encoder."""

    stem: nn.Sequential
    stages: nn.Sequential
    encoder: nn.Sequential
    norm: nn.Module
    head: nn.Module
    adapters: nn.Module
    feature_info: list[dict[str, Any]]
    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    class_attention: int

    # Names of parts before version 0.2.
    conv_mix = property(lambda self: _blocks(self, 1))
    late_mix = property(lambda self: _blocks(self, 2))
    trans_mix = property(lambda self: self.encoder)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's, of tensors by their names of before version 0.2 too."""
        return super().load_state_dict(current_state(state_dict), strict, assign)

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The head; with several decision heads, the classifier that they share, and their adapters."""
        return (self.head, self.adapters) if self.decision_heads else self.head

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "reg_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from input to output, for layer-wise decay."""
        before_blocks = (r"^stages\.(\d+)\.(?:downsample|position)", (-1,))
        return {
            "stem": r"^stem",
            "stages": r"^stages\.(\d+)" if coarse else [before_blocks, (r"^stages\.(\d+)\.blocks\.(\d+)", None)],
            "tokens": r"^cls_token|^reg_token",
            "encoder": r"^encoder" if coarse else r"^encoder\.(\d+)",
            "norm": r"^norm",
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing in the stages and the encoder: less memory, one more forward pass."""
        for blocks in (*(stage.blocks for stage in self.stages), self.encoder):
            blocks.grad_checkpointing = enable  # type: ignore[union-attr]

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
        """Features of three levels: after the first stage, after the second, after the encoder.

        The third level is the grid of patch tokens, which class attention does not update: where all encoder layers are
        class attention, it is what they read, and they get no gradient from it.

        indices: which levels: all if None, the last n if an int.
        return_prefix_tokens: the last level is (grid, prefix tokens).
        norm: apply the final norm to the last level.
        stop_early: do not compute the levels after the last one asked for.
        output_fmt: "NCHW", or "NLC" for the levels flattened to tokens.
        Returns (features, levels), or the levels only if intermediates_only.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown: use 'NCHW' or 'NLC'")
        take, last = feature_take_indices(len(self.feature_info), indices)
        found: list[Any] = []

        def keep(level: int, grid: Tensor, prefix: Tensor | None = None) -> None:
            if level in take:
                out = grid if output_fmt == "NCHW" else grid.flatten(2).transpose(1, 2)
                found.append((out, prefix) if return_prefix_tokens and prefix is not None else out)

        x = self.stem(x)
        for level, stage in enumerate(self.stages):
            x = stage(x)
            if level < 2:
                keep(level, x)
                if stop_early and last == level:
                    break
        else:
            if self.has_tokens:
                grid, x = x, self.encoder(self.add_prefix_tokens(x))  # type: ignore[operator]
                normed = self.norm(x)
                level_tokens = normed if norm else x
                prefix, patches = level_tokens.split([self.num_prefix_tokens, grid.shape[2] * grid.shape[3]], dim=1)
                keep(2, patches.transpose(1, 2).reshape(grid.shape), prefix)
                x = normed
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the levels asked for do not depend on; returns the levels as a list.

        Without a head, that includes class attention, and the prefix tokens if no encoder layer is left.
        """
        take, last = feature_take_indices(len(self.feature_info), indices)
        if last < 2:
            self.stages = self.stages[: last + 1]
            self.encoder = self.encoder[:0]
            self.has_tokens = False
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        elif prune_head:
            del self.encoder[len(self.encoder) - self.class_attention :]
            self.class_attention = 0
        if not len(self.encoder):
            self.cls_token = self.reg_token = None
            self.num_reg_tokens = self.num_prefix_tokens = self.decision_heads = self.class_attention = 0
        if prune_norm or last < 2:
            self.norm = nn.Identity()
        self.feature_info = self.feature_info[: last + 1]
        if prune_head or last < 2:
            self.reset_classifier(0, "")  # type: ignore[operator]
        return take
