"""Files that are whole or absent, tables in them, names that were nearly right, and the pointer to the newest run."""

import csv
import difflib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from atnet.errors import ConfigError


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part.

    Raises OSError if the disk does not take it; then nothing new is left.
    """
    with writing_whole(path) as file:
        file.write(content)


@contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name when all is written; else nothing new is left.

    Of several processes that write it at once, the last to end has it. One that is killed leaves NAME.NUMBER.tmp.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def replace_between(path: Path, begin: str, end: str, body: str) -> None:
    """Puts the body between two lines of a text file. Raises ConfigError if they are not there once, in this order."""
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ConfigError(f"{path}: no place for the table; put these lines where it belongs:\n{begin}\n{end}")
    before, _, rest = text.partition(begin)
    write_whole(path, f"{before}{begin}\n{body}{end}{rest.partition(end)[2]}".encode())


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its last line ended."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, ["---"] * len(heads), *rows))


def csv_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line of CSV a row, below the first row's names."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def resolve_run(where: str | Path) -> Path:
    """The path, a pointer file (where links cannot be made) being followed."""
    path = Path(where).expanduser()
    if path.name == "last" and path.is_file() and path.stat().st_size < 4096:
        return path.parent / path.read_text(encoding="utf-8").strip()
    return path


def require_new(path: Path, option: str = "--out") -> None:
    """Raises ConfigError, naming the option that gave it, if the file is there already or its folder is not."""
    if path.exists():
        raise ConfigError(f"{path}: exists; choose another {option}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder; make it, or choose another {option}")


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
