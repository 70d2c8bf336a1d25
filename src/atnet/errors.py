"""What can be wrong with what a user gives; each message names the thing and the remedy."""

import shlex
from pathlib import Path


class AtnetError(ValueError):
    """Base of the errors that a command prints in one line, with exit code 2."""


class ConfigError(AtnetError):
    """An option, a recipe or a run folder that cannot be used."""


class DataError(AtnetError):
    """An image or a dataset that cannot be used."""


class WeightsError(AtnetError):
    """A weights file that cannot be used."""


class MissingExtraError(AtnetError):
    """A part of the package whose requirements are not installed."""


class HubError(AtnetError):
    """What the Hugging Face hub does not give or take."""


class TrainingError(AtnetError):
    """A training that cannot go on."""


class Stopped(KeyboardInterrupt):
    """A signal in a training, Ctrl-C for one, after its checkpoint was written.

    exit_code: 128 and the signal's number.
    """

    def __init__(self, run: Path, step: int, steps: int, signal: int) -> None:
        command = f"atnet train --resume {shlex.quote(str(run))}"
        super().__init__(f"stopped after step {step:,} of {steps:,}, saved; go on with: {command}")
        self.exit_code = 128 + signal
