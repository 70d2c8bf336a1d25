"""Several decision heads: those on register tokens besides the first one's, and their fused answer."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models import register_notrace_function
from torch import Tensor, nn


class Adapters(nn.Module):
    """What makes each register token ready for the classifier that all heads share: an MLP of its own, with residual.

    An adapter's hidden layer has an eighth of the token's width.
    """

    def __init__(self, dim: int, count: int, **factory: Any) -> None:
        super().__init__()
        self.each: Any = nn.ModuleList(Mlp(dim, max(dim // 8, 1), **factory) for _ in range(count))

    def forward(self, tokens: Tensor) -> Tensor:
        """Register tokens (batch, count, dim) to features of the same shape; all adapters in two products."""
        first = torch.stack([a.fc1.weight for a in self.each]).mT
        first_bias = torch.stack([a.fc1.bias for a in self.each])[:, None]
        second = torch.stack([a.fc2.weight for a in self.each]).mT
        second_bias = torch.stack([a.fc2.bias for a in self.each])[:, None]
        x = F.gelu(tokens.transpose(0, 1) @ first + first_bias) @ second + second_bias
        return tokens + x.transpose(0, 1)


@register_notrace_function
def fuse(logits: Tensor) -> Tensor:
    """Logits of several heads (..., heads, classes) to those of their mean probability (..., classes).

    A mean below 1e-37 counts as that: logsumexp has no such floor, but takes ONNX Runtime 2.5 times as long.
    """
    return logits.softmax(-1, dtype=torch.float32).mean(-2).clamp_min(1e-37).log().to(logits.dtype)


def answer_together(model: nn.Module, images: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """As `answer`, by the mean probability for several views (batch, 3, height, width) of the same images."""
    seen, each = zip(*(answer(model, view) for view in images), strict=True)
    if len(images) == 1:
        return seen[0], each[0]
    heads = [one for one in each if one is not None]
    return fuse(torch.stack(seen, dim=-2)), fuse(torch.stack(heads, dim=-2)) if heads else None


def answer(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits (batch, classes) of a network in evaluation, and of one with several heads each head's too.

    The latter are (batch, heads, classes), the head of the pooled tokens first.
    """
    if not getattr(model, "several_heads", False):
        return model(images).float(), None
    each: Tensor = model.decide(model.forward_features(images)).float()  # type: ignore[operator]
    return fuse(each), each
