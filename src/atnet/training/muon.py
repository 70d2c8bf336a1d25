"""Muon: momentum whose update is made orthogonal, for the matrices of layers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, its update replaced by the nearest orthogonal matrix, and decoupled decay.

    Takes parameters of two dimensions or more, each as a matrix (first dimension, all others). An update
    has the root mean square 0.2, about that of AdamW's; a higher rate than AdamW's suits it, 12e-3 in LOG.md.
    dtype: of the iteration, bf16 in torch's and timm's; fp32 is 20 times faster on a processor without bf16 arithmetic.
    Raises ValueError on a parameter of one dimension.
    Sources: Jordan et al. 2024, "Muon" (the iteration and its coefficients); Liu et al. 2025, "Muon is
    Scalable for LLM Training" (scale and decay).
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(f"Muon takes matrices, not a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[len(parameter), parameter[0].numel()].append(parameter)
            for (rows, columns), parameters in alike.items():
                looked = self._nesterov(parameters, group["momentum"])
                moved = torch.stack([one.reshape(rows, columns) for one in looked]).to(self.dtype)
                scale = 0.2 * max(rows, columns) ** 0.5
                updates = orthogonal(moved).to(parameters[0].dtype)
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                shaped = [update.reshape(one.shape) for update, one in zip(updates, parameters, strict=True)]
                torch._foreach_add_(parameters, shaped, alpha=-group["lr"] * scale)
        return loss

    def _nesterov(self, parameters: list[Tensor], momentum: float) -> Sequence[Tensor]:
        """The gradients after a look ahead along their running means, which they enter."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["mean"] = torch.zeros_like(parameter)
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        means = [self.state[parameter]["mean"] for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, means, momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (N, rows, columns) with their singular values brought to about 1 (0.7 to 1.2), zero ones kept.

    Five steps of a Newton-Schulz iteration, products only, in the precision of the matrices, none of them transposed
    in memory. Source: Jordan et al. 2024.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    # Not Tensor.norm, which takes no dtype on MPS.
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x: Tensor = matrices / norms.clamp(min=1e-7).to(matrices.dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(STEPS):
        square = x.mT @ x if tall else x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, *((x, polynomial) if tall else (polynomial, x)), beta=a)
    return x
