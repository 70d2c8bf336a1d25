"""Batch statistics of a batch that is computed in parts, by one process or several."""

from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """The running mean and variance of each BatchNorm, moved once a step by the parts in their order.

    Each part is normalised by its own statistics, so a part is what BatchNorm sees of a batch, whatever computes it.
    Layers without a momentum (cumulative averages) are left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._running: list[Tensor] = []
        self._norms: list[_BatchNorm] = []
        momenta: list[Tensor] = []
        for norm in model.modules():
            if not isinstance(norm, _BatchNorm) or norm.momentum is None:
                continue
            for running in (norm.running_mean, norm.running_var):
                if running is not None:
                    self._running.append(running)
                    momenta.append(torch.full_like(running, norm.momentum))
            if norm.num_batches_tracked is not None:
                self._norms.append(norm)
            norm.momentum = 1.0  # so that after a part the buffers hold its statistics alone
        self._momentum = torch.cat(momenta) if momenta else torch.zeros(0)
        self._places = list(pairwise(accumulate(map(len, self._running), initial=0)))
        self.begin()

    def begin(self) -> None:
        """Before a step: keeps what there is."""
        self._before = self.read()
        self._counts = [norm.num_batches_tracked.clone() for norm in self._norms]  # type: ignore[union-attr]

    def read(self) -> Tensor:
        """All of them in one row; after a part, that part's."""
        return torch.cat(self._running) if self._running else torch.zeros(0)

    def finish(self, parts: list[Tensor]) -> None:
        """After a step: what there was, moved by each part's statistics; without parts, as it was."""
        running = self._before
        for part in parts:
            running = running.lerp(part, self._momentum)
        for tensor, (start, end) in zip(self._running, self._places, strict=True):
            tensor.copy_(running[start:end])
        for norm, count in zip(self._norms, self._counts, strict=True):
            if norm.training:  # else it is frozen
                norm.num_batches_tracked.copy_(count + len(parts))  # type: ignore[union-attr]
