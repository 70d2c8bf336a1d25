"""The run folder: configuration, environment, a line of metrics an epoch, and the record of the result."""

import csv
import datetime
import errno
import io
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from atnet.config import Config, make_config, read_yaml, to_yaml
from atnet.data.classes import spreadsheet_names, spreadsheet_safe
from atnet.data.pack import BAD_FILES
from atnet.data.pictures import Pictures
from atnet.errors import ConfigError
from atnet.files import csv_table, did_you_mean, resolve_run, write_whole
from atnet.measure.metrics import Scores
from atnet.system import process_peak_mb, processor

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

CONFIG, ENVIRONMENT, METRICS, RECORD = "config.yaml", "environment.yaml", "metrics.csv", "record.json"
PREDICTIONS, CHECKPOINTS, LOCK = "predictions.csv", "checkpoints", ".lock"
BEGINNING = {CONFIG, ENVIRONMENT, CHECKPOINTS, BAD_FILES, "samples.png"}
"""What a run has before its first checkpoint."""
log = logging.getLogger("atnet")

LAST_RUN = Path("runs") / "last"
PACKAGES = ("atnet", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


def new_run(config: Config, out: str | Path | None) -> Path:
    """Makes a run's folder, with its configuration and environment.

    out: the folder; runs/DATE-TIME-MODEL if None.
    Raises ConfigError if there is something in it, or if runs/last is no pointer: nothing is overwritten.
    """
    now = datetime.datetime.now()
    run = Path(out).expanduser() if out else Path("runs") / f"{now:%Y%m%d-%H%M%S}-{config.model}"
    if run.name == LAST_RUN.name:
        raise ConfigError(f"{run}: {LAST_RUN} points to the newest run, so no run is called so; choose another --out")
    if run.is_dir() and not in_use(run):
        discard_unsaved(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        unfinished = checkpoints(run) and not (run / RECORD).exists()
        remedy = f"go on with --resume {run}" if unfinished else "choose another --out"
        raise ConfigError(f"{run}: exists and is not empty; {remedy}")
    pointer = LAST_RUN.is_symlink() or (LAST_RUN.is_file() and resolve_run(LAST_RUN).is_dir())
    if LAST_RUN.exists() and not pointer:
        raise ConfigError(f"{LAST_RUN}: not a pointer to a run; move it away")
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_whole(run / CONFIG, to_yaml(config).encode())
        write_whole(run / ENVIRONMENT, yaml.safe_dump(environment(), sort_keys=False).encode())
    except OSError as error:
        raise ConfigError(f"{run}: cannot be written ({error.strerror}); choose another --out") from error
    return run


def discard_unsaved(run: Path) -> None:
    """Removes a run's folder if it ended before anything of it was saved, so that the same command can be repeated."""
    names = {path.name for path in run.iterdir()} if run.is_dir() else set()
    if {CONFIG, ENVIRONMENT} <= names <= BEGINNING and not checkpoints(run):
        shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
        for path in run.iterdir():
            path.unlink()
        run.rmdir()


@contextmanager
def holding(run: Path) -> Iterator[None]:
    """Keeps the run for this process, so that no other one goes on with it meanwhile; however it ends, it is let go.

    Raises ConfigError if another process has it.  Where files cannot be locked (Windows, some disks of a network), it
    is not kept.
    """
    place = run / CHECKPOINTS / LOCK
    try:
        place.parent.mkdir(exist_ok=True)
        file = place.open("ab")
    except OSError as error:
        raise ConfigError(
            f"{run}: cannot be written ({error.strerror}); free its disk, or choose another --out"
        ) from error
    with file:
        if not _lock(file):
            raise ConfigError(f"{run}: another process trains it now; wait for it, or begin a run with another --out")
        yield


def in_use(run: Path) -> bool:
    """Whether another process holds the run."""
    try:
        with (run / CHECKPOINTS / LOCK).open("r+b") as file:
            return not _lock(file)
    except OSError:
        return False


def _lock(file: BinaryIO) -> bool:
    """Whether the file is this process's now. A record lock: unlike flock's, loader processes do not inherit it."""
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, the newest first."""
    return sorted((run / CHECKPOINTS).glob("step-*.pt"), reverse=True)


def point_last(run: Path) -> None:
    """runs/last becomes a link to the run, or where links cannot be made, a file with its path."""
    target = os.path.relpath(run.resolve(), LAST_RUN.parent.resolve())
    try:
        LAST_RUN.parent.mkdir(exist_ok=True)
        LAST_RUN.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s does not point to this run: %s", LAST_RUN, error.strerror)
        return
    try:
        LAST_RUN.symlink_to(target, target_is_directory=True)
    except OSError:
        LAST_RUN.write_text(target, encoding="utf-8")


def open_run(run: Path) -> Config:
    """The configuration of an existing run. Raises ConfigError if the folder is no run."""
    _require_folder(run)
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run}: no {CONFIG} in it, so it is no run; give a folder below runs/")
    return make_config(run / CONFIG)


def _require_folder(run: Path) -> None:
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run{did_you_mean(run, 'runs', among=Path.is_dir)}")


def environment() -> dict[str, Any]:
    """What a result depends on beside its configuration."""
    return {
        "command": _command(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def note_resumption(run: Path) -> None:
    """Adds today's environment to that of the run's beginning."""
    known = read_yaml(run / ENVIRONMENT)
    known["resumed"] = [*known.get("resumed", []), environment()]
    write_whole(run / ENVIRONMENT, yaml.safe_dump(known, sort_keys=False).encode())


def _command() -> str:
    """The process's command line; ours by its short name."""
    program = Path(sys.argv[0]).name
    ours = program in ("atnet", "atnet.exe", "__main__.py")
    return shlex.join(["atnet", *sys.argv[1:]] if ours else ["python", program, *sys.argv[1:]])


def commit() -> str:
    """The commit of the checkout that runs, with + if files differ from it; "" if installed from a package."""
    here = Path(__file__)

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, MB: of the GPU if the run is on one, else of the process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return process_peak_mb()


def read_metrics(run: Path) -> list[dict[str, str]]:
    """The rows of the run's metrics, one an epoch."""
    return read_rows(run / METRICS)


def read_rows(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows; none if there is no such file."""
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.is_file() else []


def write_metrics(run: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces the run's metrics."""
    write_whole(run / METRICS, csv_table(rows).encode())


def read_predictions(run: Path) -> list[dict[str, str]]:
    """What the run's network said of each validation picture, one row a picture."""
    if not (run / PREDICTIONS).is_file():
        raise ConfigError(f"{run}: no {PREDICTIONS} in it: a run has one when it is finished")
    return read_rows(run / PREDICTIONS)


def write_predictions(run: Path, pictures: Pictures, scores: Scores) -> None:
    """A row for each validation picture: its file, class, the class called, and with which probability."""
    classes = spreadsheet_names(pictures.classes)
    answers = zip(pictures.ids, scores.labels, scores.predicted, scores.confidence, strict=True)
    rows = [
        {"picture": spreadsheet_safe(name), "class": classes[i], "called": classes[k], "confidence": f"{sure:.6f}"}
        for name, i, k, sure in answers
    ]
    write_whole(run / PREDICTIONS, csv_table(rows).encode())


def write_record(path: Path, record: dict[str, Any]) -> None:
    """What a table of results needs of a finished run."""
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())


def publish_record(path: Path, record: dict[str, Any]) -> None:
    """The record for others to read, its command without folders."""
    command = without_folders(record["environment"]["command"])
    write_record(path, record | {"environment": record["environment"] | {"command": command}})


def without_folders(command: str) -> str:
    """A command line for others to read: absolute paths become relative to the current folder, or their last part."""
    words = []
    for word in shlex.split(command):
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        place = Path(value)
        if place.is_absolute():
            value = str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else place.name
        words.append(f"{option}{equals}{value}")
    return shlex.join(words)


def kept_weights(record: dict[str, Any]) -> str:
    """Whose figures stand for the run, those of the weights that `load` takes: "ema", or "last" without an average."""
    return "ema" if "ema" in record["top1"] else "last"


def read_record(where: str | Path) -> tuple[Path, dict[str, Any]]:
    """A finished run's folder and record. Raises ConfigError if it is no run, or not finished."""
    run = resolve_run(where)
    _require_folder(run)
    if not (run / RECORD).is_file():
        if checkpoints(run):
            raise ConfigError(f"{run}: not finished; go on with: atnet train --resume {run}")
        raise ConfigError(f"{run}: no {RECORD} in it, so it is no finished run; give a folder below runs/")
    return run, read_json(run / RECORD)


def read_json(path: Path) -> dict[str, Any]:
    """A record. Raises ConfigError if it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return dict(record)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: damaged ({error}); delete it, and have it made again") from error
