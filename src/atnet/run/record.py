"""The run folder: configuration, environment, a line of metrics an epoch, and the record of the result."""

import contextlib
import csv
import datetime
import errno
import io
import itertools
import json
import logging
import math
import os
import platform
import re
import secrets
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from atnet.config import Config, make_config, read_yaml, to_yaml
from atnet.data.classes import spreadsheet_names, spreadsheet_safe
from atnet.data.pack import BAD_FILES
from atnet.data.samples import Samples
from atnet.errors import AtnetError, ConfigError
from atnet.eval.metrics import Scores, interval
from atnet.files import (
    UNFINISHED,
    csv_table,
    did_you_mean,
    quoted,
    read_regular,
    read_text,
    renamed,
    resolve_run,
    write_whole,
)
from atnet.system import process_peak_mb, processor
from atnet.weights.find import find_weights
from atnet.weights.info import BEST, CONFIG, EMA, HASHES, LAST, MAX_WEIGHTS_BYTES, sha256_of

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

ENVIRONMENT, METRICS, RECORD = "environment.yaml", "metrics.csv", "record.json"
PREDICTIONS, CHECKPOINTS, LOCK, WRITTEN = "predictions.csv", "checkpoints", ".lock", "written.txt"
BEGINNING = {CONFIG, ENVIRONMENT, CHECKPOINTS, BAD_FILES, "samples.png"}  # the last before version 0.2
"""What a run has before its first epoch ends."""

FIRST_EPOCH = {METRICS, HASHES, LAST, EMA, BEST}
"""What it has beside before its first checkpoint is whole."""

CHECKPOINT = re.compile(r"step-\d{10}-epoch-\d{6}-[0-9a-f]{16}\.pt")
"""How the checkpoints of a run are called."""

MAX_METRICS_BYTES = 200_000_000
_ANEW = "bring it back from a copy, or train the run again"
log = logging.getLogger("atnet")

LAST_RUN = Path("runs") / "last"
PACKAGES = ("atnet", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


_held: dict[Path, BinaryIO] = {}
"""The locks of the runs that this process has, by the runs' real paths. To open and close such a file once more would
let the run go."""


def new_run(config: Config, out: str | Path | None) -> Path:
    """Makes a run's folder, with its configuration and environment, and takes it for this process: see `holding`.

    out: the folder; runs/DATE-TIME-MODEL if None, with a number if there is one of this name.
    Raises ConfigError if there is something in it, or if runs/last is no pointer: nothing is overwritten.
    """
    if out is not None and Path(out).name == LAST_RUN.name:
        raise ConfigError(f"{out}: {LAST_RUN} points to the newest run, so no run is called so; use another --out")
    pointer = LAST_RUN.is_symlink() or (LAST_RUN.is_file() and resolve_run(LAST_RUN).is_dir())
    if LAST_RUN.exists() and not pointer:
        raise ConfigError(f"{LAST_RUN}: not a pointer to a run; move it away")
    if out is None:
        base = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{config.model}"
        run = next(run for number in itertools.count(1) if _make(run := LAST_RUN.parent / _numbered(base, number)))
    else:
        run = Path(out).expanduser()
        _require_unused(run)
    with _naming_refusal(run):
        run.mkdir(parents=True, exist_ok=True)
    lock = _take(run)
    try:
        discard_unsaved(run, keep_lock=True)
        _require_unused(run, but={CHECKPOINTS})
        with _naming_refusal(run):
            write_whole(run / CHECKPOINTS / WRITTEN, b"")
            write_whole(run / CONFIG, to_yaml(config).encode())
            found = environment() | _of_weights(config)
            write_whole(run / ENVIRONMENT, yaml.safe_dump(found, sort_keys=False).encode())
    except BaseException:
        discard_unsaved(run)
        lock.close()
        raise
    _held[run.resolve()] = lock
    return run


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _make(run: Path) -> bool:
    """Whether the folder is new: of several processes that make it at once, one has it."""
    with _naming_refusal(run):
        run.parent.mkdir(parents=True, exist_ok=True)
        try:
            run.mkdir()
        except FileExistsError:
            return False
    return True


@contextmanager
def _naming_refusal(run: Path) -> Iterator[None]:
    """Makes an error of the disk a ConfigError that names the run."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"{run}: cannot be written ({why}); choose another --out, or make room") from error


def _require_unused(run: Path, but: Collection[str] = ()) -> None:
    """Raises ConfigError if there is something in the folder beside what a run leaves that was never saved."""
    if not os.path.lexists(run) or (run.is_dir() and (_is_unsaved(run) or set(os.listdir(run)) <= set(but))):
        return
    unfinished = checkpoints(run) and not (run / RECORD).exists()
    remedy = f"go on with --resume {quoted(run)}" if unfinished else "choose another --out"
    raise ConfigError(f"{run}: exists and is not empty; {remedy}")


def _is_unsaved(run: Path) -> bool:
    """Whether all in the folder is what a run leaves that ended before anything was saved to go on with."""
    names = set(os.listdir(run))
    written = run / CHECKPOINTS / WRITTEN
    if written.is_file() and not written.stat().st_size:  # damaged, it would not tell that nothing was saved
        ours = BEGINNING | FIRST_EPOCH
    elif names >= {CONFIG, ENVIRONMENT} or names == {CHECKPOINTS}:  # of an earlier version; of a disk that was full
        ours = BEGINNING
    else:
        return False
    return {_unfinished_of(name) or name for name in names} <= ours and not checkpoints(run)


def _unfinished_of(name: str) -> str:
    """The file that a killed process was writing, by the name of what it left; "" if it is another file."""
    found = UNFINISHED.fullmatch(name)
    return found["name"] if found else ""


def discard_unsaved(run: Path, keep_lock: bool = False) -> None:
    """Removes a run's folder if it ended before anything of it was saved, so that the same command can be repeated.

    keep_lock: all but what holds the run.
    """
    if not run.is_dir() or not _is_unsaved(run):
        return
    folder = run / CHECKPOINTS
    for path in run.iterdir():
        if path != folder:
            path.unlink()
    if not folder.is_symlink() and folder.is_dir():
        discard_unfinished(folder)
        discard(folder / WRITTEN)
        if keep_lock:
            return
        discard(folder / LOCK)
    with contextlib.suppress(OSError):  # there is a file in it that is not ours
        folder.rmdir()
        run.rmdir()


def discard_unfinished(folder: Path) -> None:
    """Removes what a killed process left of the files that a run writes into the folder. To be held meanwhile."""
    for name in os.listdir(folder):
        inside = _unfinished_of(name)
        if inside in BEGINNING | FIRST_EPOCH | {RECORD, PREDICTIONS, WRITTEN} or CHECKPOINT.fullmatch(inside):
            discard(folder / name)


def discard(path: Path) -> None:
    """Removes a file of the run; what cannot be removed only takes room, and is named."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: cannot be removed (%s)", path, error.strerror)


def own_folder(run: Path, name: str) -> Path:
    """The folder of that name in the run's, made if it is absent.

    Raises ConfigError if it is a link, which may lead to files of someone else, or is no folder, or cannot be made.
    """
    folder = run / name
    if folder.is_symlink():
        raise ConfigError(f"{folder}: a link, and what is in it may not be the run's; put the folder itself there")
    with _naming_refusal(run):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def holding(run: Path) -> Iterator[None]:
    """Keeps the run for this process, so that no other one goes on with it meanwhile; however it ends, it is let go.

    Raises ConfigError if another process has it.  Where files cannot be locked (Windows, some disks of a network), it
    is not kept.
    """
    key = run.resolve()
    lock = _held.get(key) or _take(run)
    _held[key] = lock
    try:
        yield
    finally:
        del _held[key]
        lock.close()


def _take(run: Path) -> BinaryIO:
    """The run's lock, which is held until it is closed."""
    place = own_folder(run, CHECKPOINTS) / LOCK
    while True:
        with _naming_refusal(run):
            lock = _open_lock(place, os.O_CREAT)
        if not _lock(lock):
            lock.close()
            raise ConfigError(f"{run}: another process trains it now; wait for it, or begin a run with another --out")
        try:
            if os.path.samestat(os.fstat(lock.fileno()), os.lstat(place)):
                return lock
        except FileNotFoundError:  # its run was never saved, and was removed between opening and locking it
            own_folder(run, CHECKPOINTS)
        lock.close()


def _open_lock(place: Path, more: int = 0) -> BinaryIO:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | more
    handle = os.open(place, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "its lock is no file", str(place))
    return open(handle, "r+b")


def in_use(run: Path) -> bool:
    """Whether another process holds the run."""
    if run.resolve() in _held:
        return False
    try:
        with _open_lock(run / CHECKPOINTS / LOCK) as file:
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
    """What is called as the run's checkpoints are, the newest first; none in a linked folder."""
    folder = run / CHECKPOINTS
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted((folder / name for name in os.listdir(folder) if CHECKPOINT.fullmatch(name)), reverse=True)


def written_checkpoints(run: Path) -> set[str]:
    """The names of the checkpoints that this run wrote and that may be removed; none if that is not known."""
    try:
        lines = read_text(run / CHECKPOINTS / WRITTEN).splitlines()
    except (FileNotFoundError, ConfigError):
        return set()
    return {line for line in lines if CHECKPOINT.fullmatch(line)}


def point_last(run: Path) -> None:
    """runs/last becomes a link to the run, or where links cannot be made, a file with its path.

    Of several processes that do it at once, one wins.
    """
    target = os.path.relpath(run.resolve(), LAST_RUN.parent.resolve())
    try:
        LAST_RUN.parent.mkdir(exist_ok=True)
        beside = LAST_RUN.with_name(f".{LAST_RUN.name}.{secrets.token_hex(8)}.tmp")
        try:
            beside.symlink_to(target, target_is_directory=True)
        except OSError:
            write_whole(LAST_RUN, target.encode())
        else:
            os.replace(beside, LAST_RUN)
    except OSError as error:
        log.warning("%s does not point to this run: %s", LAST_RUN, error.strerror)


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


def _of_weights(config: Config) -> dict[str, str]:
    """Which weights a run begins with, whose name is in its configuration; nothing if they are random."""
    if not config.weights:
        return {}
    source = find_weights(config.weights)
    return {"weights_sha256": source.sha256 or sha256_of(read_regular(source.path, MAX_WEIGHTS_BYTES))}


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
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e6
    return process_peak_mb()


_NUMBERS = (
    "epoch", "train_loss", "train_top1", "val_loss", "val_top1", "ema_val_loss", "ema_val_top1", "images_per_s",
    "seconds",
)  # fmt: skip
"""Columns of the metrics that are read again."""


def read_metrics(run: Path) -> list[dict[str, str]]:
    """The rows of the run's metrics, one an epoch. Raises ConfigError if they are damaged."""
    rows = read_rows(run / METRICS, *_NUMBERS)
    for row in rows:
        wrong = [name for name in _NUMBERS if not _is_figure(row[name])]
        if wrong:
            raise ConfigError(f"{run / METRICS}: damaged ({wrong[0]} {row[wrong[0]]!r} is no number); {_ANEW}")
    return rows


def _is_figure(text: str) -> bool:
    """Whether it is a number, or empty, as of an epoch without an evaluation."""
    try:
        return not text or math.isfinite(float(text))
    except ValueError:
        return False


@contextmanager
def reading(run: Path) -> Iterator[None]:
    """Makes the errors that a damaged file of a run leads to a ConfigError that names the run."""
    try:
        yield
    except AtnetError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{run}: damaged, for its files do not fit each other ({error!r}); {_ANEW}") from error


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """A CSV file's rows; none if there is no such file. Raises ConfigError if it is damaged, or lacks a column."""
    try:
        rows = [*map(renamed, csv.DictReader(io.StringIO(read_text(path, MAX_METRICS_BYTES)), strict=True))]
    except FileNotFoundError:
        return []
    except csv.Error as error:
        raise ConfigError(f"{path}: damaged ({error}); {_ANEW}") from error
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values() or not row.keys() >= set(columns):
            raise ConfigError(f"{path}: damaged (line {number} has other columns than expected); {_ANEW}")
    return rows


def write_metrics(run: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces the run's metrics."""
    write_whole(run / METRICS, csv_table(rows).encode())


def read_predictions(run: Path) -> list[dict[str, str]]:
    """What the run's network said of each validation image, one row an image."""
    rows = read_rows(run / PREDICTIONS, "image", "class", "called", "confidence")
    if not rows:
        raise ConfigError(f"{run / PREDICTIONS}: absent or empty; a run has one when it is finished, so {_ANEW}")
    return rows


def write_predictions(run: Path, samples: Samples, scores: Scores) -> None:
    """A row for each validation image: its file, class, the class called, and with which probability."""
    classes = spreadsheet_names(samples.classes)
    answers = zip(samples.ids, scores.labels, scores.predicted, scores.confidence, strict=True)
    rows = [
        {"image": spreadsheet_safe(name), "class": classes[i], "called": classes[k], "confidence": f"{sure:.6f}"}
        for name, i, k, sure in answers
    ]
    write_whole(run / PREDICTIONS, csv_table(rows).encode())


def write_record(path: Path, record: dict[str, Any]) -> None:
    """What a table of results needs of a finished run."""
    write_whole(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def publish_record(path: Path, record: dict[str, Any]) -> None:
    """The record for others to read, its command without folders."""
    command = without_folders(record["environment"]["command"])
    write_record(path, record | {"environment": record["environment"] | {"command": command}})


def without_folders(command: str) -> str:
    """A command line for others to read: absolute paths become relative to the current folder, or their last part."""
    words = []
    try:
        given = shlex.split(command)
    except ValueError:  # a quote that is not closed
        given = command.split()
    for word in given:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        place = Path(value)
        if place.is_absolute():
            value = str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else place.name
        words.append(f"{option}{equals}{value}")
    return shlex.join(words)


def kept_weights(record: dict[str, Any]) -> str:
    """Whose figures stand for the run, those of the weights that `load` takes: "ema", or "last" without an average."""
    return "ema" if "ema" in record["top1"] else "last"


def accuracy(record: dict[str, Any]) -> tuple[float, float, float, int]:
    """Top-1 of `kept_weights`, percent; its 95% interval's ends; and of how many images."""
    top1, count = record["top1"][kept_weights(record)], record["val_images"] - record["bad_images"]["val"]
    return top1, *interval(top1, count), count


def read_record(where: str | Path) -> tuple[Path, dict[str, Any]]:
    """A finished run's folder and record. Raises ConfigError if it is no run, or not finished."""
    run = resolve_run(where)
    _require_folder(run)
    if not (run / RECORD).is_file():
        if checkpoints(run):
            raise ConfigError(f"{run}: not finished; go on with: atnet train --resume {quoted(run)}")
        raise ConfigError(f"{run}: no {RECORD} in it, so it is no finished run; give a folder below runs/")
    return run, read_json(run / RECORD)


_FIGURES = "a mapping of numbers, one of them last"
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("model", "data", "device"), ("a text", lambda value: isinstance(value, str))),
    **dict.fromkeys(
        ("parameters", "train_images", "val_images", "classes", "size", "epochs", "batch", "seed"),
        ("a whole number", lambda value: type(value) is int and abs(value) < 2**63),
    ),
    **dict.fromkeys(("seconds", "images_per_s"), ("a number", lambda value: _is_number(value))),
    **dict.fromkeys(
        ("top1", "top5", "loss"),
        (_FIGURES, lambda value: isinstance(value, dict) and "last" in value and all(map(_is_number, value.values()))),
    ),
    "class_names": (
        "a list of texts",
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    ),
    "environment": (
        "a mapping with a command",
        lambda value: isinstance(value, dict) and isinstance(value.get("command"), str),
    ),
    "config": ("a mapping", lambda value: isinstance(value, dict)),
}
"""What every record has."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is not


def read_json(path: Path) -> dict[str, Any]:
    """A record. Raises ConfigError if it is damaged."""
    try:
        record = json.loads(read_text(path))
        if not isinstance(record, dict):
            raise ValueError("no mapping")
        record = renamed(record)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        said = str(error).removeprefix(f"{path}: ")
        raise ConfigError(f"{path}: damaged ({said}); delete it, and have it made again") from error
    for name, (kind, fits) in _FIELDS.items():
        if not fits(record.get(name)):
            raise ConfigError(f"{path}: damaged ({name} is not {kind}); delete it, and have it made again")
    return record
