"""How far a run is in its schedule, and when it ends: as planned, with a time budget, or early."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from atnet.config import Config
from atnet.training.optim import lr_at

DECAY, LEAST_DECAY = 0.1, 10
"""An early end: the learning rate falls for so large a share of the steps so far, and so many steps at least."""

FRESH = 0.1
"""Weight of the last step in the mean time of a step, which the end of a time budget is reckoned with."""

AFTERWARDS = 4.0
"""Seconds for the record and the pictures of a run, where the start of its process did not take longer."""


@dataclass
class Pace:
    """How far a run is in its schedule.

    budget: seconds from its start to its end, 0: none.  spent: of them before this process.  progress: the share of the
    schedule that is done, where a budget stretches it.  ending: the step at which an early end began, -1: none did.
    step, evaluation: seconds that one takes.  afterwards: seconds of the budget for what follows.
    """

    budget: float = 0.0
    spent: float = 0.0
    progress: float = 0.0
    ending: int = -1
    step: float = 0.0
    evaluation: float = 0.0
    afterwards: float = AFTERWARDS
    began: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        """Seconds of the budget."""
        return self.spent + time.monotonic() - self.began

    def lr(self, step: int, steps_per_epoch: int, config: Config) -> float:
        """The learning rate of a step, the first being 0."""
        planned, at = steps_per_epoch * config.epochs, float(step)
        if self.budget:
            at = min(self.progress * planned, planned - 1e-6)  # at the end itself a cycle would begin
        rate = lr_at(at, steps_per_epoch, config)
        if self.ending < 0:
            return rate
        low = config.schedule.min_lr * config.optim.lr
        return low + max(rate - low, 0.0) * max(0.0, 1 - (step - self.ending) / self._decay)

    def steps_left(self, steps_per_epoch: int, config: Config) -> float:
        """Of a budget, by how long the steps took lately, evaluations between them."""
        seconds = self.budget - self.used - self.evaluation - self.afterwards
        one = self.step + self.evaluation / (steps_per_epoch * config.eval_every)
        return max(seconds / max(one, 1e-6), 0.0)

    def seconds_left(self, step: int, steps_per_epoch: int, config: Config) -> float:
        """Until the end of the run, by how long the steps and evaluations took lately."""
        if self.budget:
            return max(self.budget - self.used, 0.0)
        if self.ending >= 0:
            return (self.ending + self._decay - step) * self.step + self.evaluation
        epoch = min(step // steps_per_epoch, config.epochs - 1)
        steps = float((epoch + 1) * steps_per_epoch - step)
        steps += config.area(epoch + 1, config.epochs) / config.area(epoch, epoch + 1) * steps_per_epoch
        return steps * self.step + sum(map(config.evaluated, range(epoch, config.epochs))) * self.evaluation

    def advance(self, seconds: float, steps_per_epoch: int, config: Config) -> None:
        """After a step that took so long."""
        self.step = (1 - FRESH) * self.step + FRESH * seconds if self.step else seconds
        if self.budget:
            left = self.steps_left(steps_per_epoch, config)
            self.progress = 1.0 if left < 1 else self.progress + (1 - self.progress) / (left + 1)

    def end_early(self, step: int) -> None:
        """From this step on the learning rate falls to its least."""
        self.ending = step

    @property
    def _decay(self) -> int:
        return max(LEAST_DECAY, round(DECAY * self.ending))

    def over(self, step: int, steps_per_epoch: int, config: Config) -> bool:
        """Whether this is not a step of the run any more, the first being 0."""
        if not config.epochs:  # a probe
            return True
        if self.ending >= 0 and step >= self.ending + self._decay:
            return True
        return self.progress >= 1 if self.budget else step >= steps_per_epoch * config.epochs

    def checkpoint(self) -> dict[str, Any]:
        saved = asdict(self)
        del saved["began"]
        return saved | {"spent": self.used}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "Pace":
        """What `checkpoint` gave. Raises KeyError, TypeError or ValueError if it is none."""
        numbers = {
            name: float(saved[name]) for name in ("budget", "spent", "progress", "step", "evaluation", "afterwards")
        }
        return cls(**numbers, ending=int(saved["ending"]), began=time.monotonic())
