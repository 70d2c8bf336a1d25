"""Batch statistics of a batch that is computed in parts, by one process or several."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """The running mean and variance of each BatchNorm, moved once a step by the parts in their order.

    Each part is normalised by its own statistics, so a part is what BatchNorm sees of a batch, whatever computes it.
    Layers without a momentum (cumulative averages) are left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._single: dict[torch.Size, list[_BatchNorm]] = {}
        self._running: list[Tensor] = []
        self._norms: list[_BatchNorm] = []
        self._none = torch.zeros(0, device=next(model.parameters()).device)
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
        self._momentum = torch.cat(momenta) if momenta else self._none
        self._widths = list(map(len, self._running))
        self.begin()

    def begin(self) -> None:
        """Before a step: keeps what there is."""
        self._before = self.read()
        self._trained = [norm.num_batches_tracked for norm in self._norms if norm.training]  # others are frozen
        self._counted = torch.stack(self._trained) if self._trained else self._none  # type: ignore[arg-type]

    def read(self) -> Tensor:
        """All of them in one row; after a part, that part's."""
        return torch.cat(self._running) if self._running else self._none

    @contextmanager
    def part(self, images: Tensor) -> Iterator[None]:
        """Around the forward and backward pass of a part, of these images.

        A layer that sees one number a channel has no statistics of it, as in a small grid of a part that is one image:
        it normalises by what there was before the step, as in evaluation.
        """
        single = [norm for norm in self._seeing_one(images) if norm.training] if len(images) == 1 else []
        if single:
            self._write(self._before)
        for norm in single:
            norm.training = False
        try:
            yield
        finally:
            for norm in single:
                norm.training = True

    @torch.no_grad()
    def _seeing_one(self, image: Tensor) -> list[_BatchNorm]:
        """The layers to which one image of this shape gives one number a channel."""
        if image.shape not in self._single:
            found = self._single[image.shape] = []

            def look(norm: Any, given: tuple[Tensor]) -> None:
                if given[0].numel() == given[0].shape[1] and norm.running_mean is not None:
                    found.append(norm)

            norms = [part for part in self._model.modules() if isinstance(part, _BatchNorm)]
            hooks = [norm.register_forward_pre_hook(look) for norm in norms]
            trained = [part for part in self._model.modules() if part.training]
            try:
                self._model.eval()(image)
            finally:
                for hook in hooks:
                    hook.remove()
                for part in trained:
                    part.training = True
        return self._single[image.shape]

    def finish(self, parts: list[Tensor]) -> None:
        """After a step: what there was, moved by each part's statistics; without parts, as it was."""
        running = self._before
        for part in parts:
            running = running.lerp(part, self._momentum)
        self._write(running)
        if self._trained:
            torch._foreach_copy_(self._trained, list((self._counted + len(parts)).unbind()))  # type: ignore[arg-type]

    def _write(self, running: Tensor) -> None:
        if self._running:
            with torch.no_grad():
                torch._foreach_copy_(self._running, list(torch.split(running, self._widths)))
