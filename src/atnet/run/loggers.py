"""A run's figures and pictures for TensorBoard, MLflow, Weights & Biases and Trackio, as each epoch ends."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from atnet.errors import ConfigError
from atnet.extras import require
from atnet.files import write_whole

KNOWN = ("tensorboard", "mlflow", "wandb", "trackio")
"""Loggers, by the names that their modules and extras have too."""

IDS = "loggers.json"
"""In a run folder: the name by which each logger knows the run, so that a resumed run goes on there."""

PROJECT = "atnet"

log = logging.getLogger("atnet")


class Logger(Protocol):
    """What is told of a run."""

    id: str

    def figures(self, values: Mapping[str, float], epoch: int) -> None:
        """Of an epoch, the first being 1."""

    def picture(self, path: Path) -> None:
        """A PNG of the finished run."""

    def close(self) -> None: ...


def check(names: Sequence[str]) -> None:
    """Raises ConfigError for a logger that is not known, MissingExtraError for one that is not installed."""
    for name in names:
        if name not in KNOWN:
            raise ConfigError(f"--log {name}: not one of {', '.join(KNOWN)}")
        require(name)


@contextmanager
def logging_to(names: Sequence[str], run: Path, options: Mapping[str, Any]) -> Iterator[list[Logger]]:
    """Loggers of a run folder, a new one's or those that it had; options: of the run, nested, for their tables."""
    ids = read_ids(run)
    with ExitStack() as opened:
        loggers: list[Logger] = []
        for name in names:
            with _going_on(name):
                logger = _OPEN[name](run, ids.get(name, ""), flat(options))
                opened.callback(_close, name, logger)
                loggers.append(logger)
                ids[name] = logger.id
        if loggers:
            write_whole(run / IDS, json.dumps(ids).encode())
        yield loggers


def tell(loggers: list[Logger], row: Mapping[str, Any]) -> None:
    """An epoch's row of metrics to each of the loggers; one that fails is told nothing more."""
    numbers = {name: float(value) for name, value in row.items() if name not in ("epoch", "step") and value != ""}
    for logger in list(loggers):
        with _going_on(type(logger).__name__, partial(loggers.remove, logger)):
            logger.figures(numbers, int(row["epoch"]))


def send_pictures(run: Path, pictures: Sequence[Path]) -> None:
    """Pictures of a finished run to the loggers that it had."""
    with logging_to(list(read_ids(run)), run, {}) as loggers:
        for logger in loggers:
            with _going_on(type(logger).__name__):
                for path in pictures:
                    logger.picture(path)


def _close(name: str, logger: Logger) -> None:
    with _going_on(name):
        logger.close()


@contextmanager
def _going_on(name: str, then: Callable[[], object] = lambda: None) -> Iterator[None]:
    """What a logger raises is said, and does not end the training."""
    try:
        yield
    except Exception as error:  # of another's library, its server or the network
        log.warning("--log %s: %s: %s", name.strip("_").lower(), type(error).__name__, error)
        then()


def read_ids(run: Path) -> dict[str, str]:
    """The loggers that a run folder has, and the name by which each knows it; none if there are none."""
    try:
        return {name: str(one) for name, one in json.loads((run / IDS).read_text()).items() if name in KNOWN}
    except (OSError, ValueError, AttributeError):
        return {}


def flat(options: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested options in one table: {"optim.lr": 0.1}."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


class _TensorBoard:
    def __init__(self, run: Path, known: str, options: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = known or "tensorboard"
        self.writer: Any = SummaryWriter(str(run / "tensorboard"))
        if not known:
            rows = "\n".join(f"| {name} | {value} |" for name, value in options.items())
            self.writer.add_text("options", f"| option | value |\n|---|---|\n{rows}")

    def figures(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def picture(self, path: Path) -> None:
        import numpy as np
        from PIL import Image

        self.writer.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _Mlflow:
    def __init__(self, run: Path, known: str, options: dict[str, Any]) -> None:
        import mlflow

        self.client: Any = mlflow.MlflowClient()
        self.id = known
        if not known:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            self.id = self.client.create_run(experiment, run_name=run.name).info.run_id
            for name, value in options.items():
                self.client.log_param(self.id, name, value)
        else:
            self.client.update_run(known, status="RUNNING")

    def figures(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=epoch)

    def picture(self, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def close(self) -> None:
        self.client.set_terminated(self.id)


class _Wandb:
    def __init__(self, run: Path, known: str, options: dict[str, Any]) -> None:
        import wandb

        self.wandb: Any = wandb
        self.run: Any = wandb.init(
            project=PROJECT, name=run.name, dir=str(run), config=options, id=known or None, resume="allow"
        )
        self.id = str(self.run.id)

    def figures(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(values), step=epoch)

    def picture(self, path: Path) -> None:
        self.run.log({path.stem: self.wandb.Image(str(path))})

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    def __init__(self, run: Path, known: str, options: dict[str, Any]) -> None:
        import trackio

        self.trackio: Any = trackio
        self.id = known or run.name
        self.run: Any = trackio.init(project=PROJECT, name=self.id, config=options, resume="allow")

    def figures(self, values: Mapping[str, float], epoch: int) -> None:
        self.trackio.log(dict(values), step=epoch)

    def picture(self, path: Path) -> None:
        self.trackio.log({path.stem: self.trackio.Image(str(path))})

    def close(self) -> None:
        self.trackio.finish()


_OPEN: dict[str, Any] = {"tensorboard": _TensorBoard, "mlflow": _Mlflow, "wandb": _Wandb, "trackio": _Trackio}
