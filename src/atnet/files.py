"""Files that are whole or absent, tables in them, names that were nearly right, and the pointer to the newest run."""

import csv
import difflib
import io
import os
import re
import secrets
import shlex
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from atnet.errors import AtnetError, ConfigError

MAX_TEXT_BYTES = 50_000_000
"""Of a text file that a command reads whole: a table, a record, a page's part."""

UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)
"""What a process that was killed while it wrote the file `name` leaves beside it."""


@contextmanager
def open_regular(path: str | Path, most: int, error: type[AtnetError] = ConfigError) -> Iterator[BinaryIO]:
    """A file to read that is a regular one of at most `most` bytes: no folder, pipe or device, which could wait, or
    give bytes for ever.

    Raises FileNotFoundError if it is absent; `error`, naming it, if it is another kind of file, larger, or cannot be
    opened or read.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for someone to write.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path}: {kind_of_file(status.st_mode)}, not a file")
            if status.st_size > most:
                raise error(f"{path}: {status.st_size:,} bytes are more than the {most:,} allowed")
            yield file
    except FileNotFoundError:
        raise
    except IsADirectoryError as refused:
        raise error(f"{path}: a folder, not a file") from refused
    except AtnetError:
        raise
    except (OSError, ValueError) as refused:  # a name with a null character is a ValueError
        raise error(f"{path}: cannot be read ({getattr(refused, 'strerror', None) or refused})") from refused


def read_regular(path: str | Path, most: int, error: type[AtnetError] = ConfigError) -> bytes:
    """The bytes of a file; see `open_regular` for what is refused."""
    with open_regular(path, most, error) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # a number given, Python takes the memory at once


def read_text(path: str | Path, most: int = MAX_TEXT_BYTES, error: type[AtnetError] = ConfigError) -> str:
    """A UTF-8 file's text; see `open_regular` for what is refused."""
    try:
        return read_regular(path, most, error).decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(f"{path}: not UTF-8 text ({wrong.reason} at byte {wrong.start:,})") from wrong


def kind_of_file(mode: int) -> str:
    """What a file is that is no regular one, by its st_mode."""
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a named pipe" if stat.S_ISFIFO(mode) else "a device or socket"


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part.

    Raises OSError if the disk does not take it; then nothing new is left.
    """
    with writing_whole(path) as file:
        file.write(content)


@contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name when all is written; else nothing new is left.

    Of several processes that write it at once, the last to end has it, whole. Links are replaced, not followed. One
    that is killed leaves a file called as `UNFINISHED` says.
    """
    beside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(beside, flags, 0o666)
    try:
        with open(handle, "wb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def placing_whole(path: Path) -> Iterator[Path]:
    """A path to write to, for writers that take no file: as `writing_whole`.

    It has the same name, in a new folder beside that no other user can write to. What else is written there is removed.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-", ignore_cleanup_errors=True) as folder:
        inside = Path(folder) / path.name
        yield inside
        with inside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(inside, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes what was renamed in the folder outlast a loss of power."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_between(path: Path, begin: str, end: str, body: str) -> None:
    """Puts the body between two lines of a text file. Raises ConfigError if they are not there once, in this order."""
    text = read_text(path)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ConfigError(f"{path}: no place for the table; put these lines where it belongs:\n{begin}\n{end}")
    before, _, rest = text.partition(begin)
    write_whole(path, f"{before}{begin}\n{body}{end}{rest.partition(end)[2]}".encode())


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its last line ended."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, ["---"] * len(heads), *rows))


RENAMED = {
    "picture": "image", "pictures": "images", "train_pictures": "train_images", "val_pictures": "val_images",
    "bad_pictures": "bad_images",
}  # fmt: skip
"""Of keys and columns in files of before version 0.2, what they are called now."""


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """What an older file says, by the names of now."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


def csv_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line of CSV a row, below the first row's names."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def resolve_run(where: str | Path) -> Path:
    """The path, a pointer file (where links cannot be made) being followed. Raises ConfigError if it is no path."""
    path = Path(where).expanduser()
    try:
        if path.name == "last" and path.is_file():
            to = read_text(path, 4096).strip()
            if not to or not to.isprintable():
                raise ConfigError(f"{path}: not a pointer to a run; delete it, or give the run's folder")
            return path.parent / to
        path.resolve()
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a name with a null character
        raise ConfigError(f"{str(path)!r}: cannot be opened ({error}); give another run's folder") from error
    return path


def require_new(path: Path, option: str = "--out") -> None:
    """Raises ConfigError, naming the option that gave it, if the file is there already or its folder is not."""
    if path.exists():
        raise ConfigError(f"{path}: exists; choose another {option}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder; make it, or choose another {option}")


def quoted(word: str | Path) -> str:
    """The word as a shell takes it, for a command that a person is to type."""
    return shlex.quote(str(word))


def did_you_mean(path: Path, *folders: str, among: Callable[[Path], bool] = Path.exists) -> str:
    """The end of a message, "; did you mean X?", X being called most alike beside the path or in the folders.

    Empty if nothing is called alike.

    among: which files and folders can be meant.
    """
    for folder in (path.parent, *map(Path, folders)):
        try:
            names = sorted(name for name in os.listdir(folder) if among(folder / name))
        except OSError:
            continue
        same = [name for name in names if Path(name).stem == path.name]
        close = same or difflib.get_close_matches(path.name, names, 1)
        if close:
            return f"; did you mean {folder / close[0]}?"
    return ""


def cache_folder() -> Path:
    """Where what can be made again is kept: ATNET_CACHE, or atnet in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atnet"
    return Path(os.environ.get("ATNET_CACHE") or default)
