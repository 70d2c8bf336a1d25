"""Answers to many images as files: rows of CSV or Parquet as they come, and the images sorted into folders."""

import contextlib
import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atnet.data.classes import printable, spreadsheet_safe
from atnet.errors import ConfigError
from atnet.files import require_new
from atnet.inference.prediction import Prediction, Unread
from atnet.progress import counted

UNSURE = "_unsure"
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{k}" for port in ("COM", "LPT") for k in range(1, 10))}
"""Names that Windows has for devices."""

ROWS = 1000
"""Of a group of a Parquet file."""


class Output:
    """What is written of each answer. written: a line for each file or folder, when all is done."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self._takers: list[Any] = []

    def add(self, answer: Prediction | Unread) -> None:
        """Raises OSError if the disk does not take it."""
        for taker in self._takers:
            taker.add(answer)


@contextmanager
def open_output(
    table: Path | None, parquet: Path | None, folder: Path | None, *, top: int, link: bool, unsure_below: float
) -> Iterator[Output]:
    """Files for answers. A row is there as soon as it is answered: a stopped command leaves what it has done.

    table, parquet: new files, or None.  folder: for images, in a folder of their likeliest class; never overwritten.
    top: classes a row has.  link: links in place of copies.
    unsure_below: the smallest probability of a class's folder.
    Raises ConfigError if a file exists, or cannot be written.
    """
    output = Output()
    with contextlib.ExitStack() as opened:
        wanted = [(path, kind) for path, kind in ((table, _Csv), (parquet, _Parquet)) if path is not None]
        for path, _ in wanted:
            require_new(path, "file")
        for path, kind in wanted:
            try:
                output._takers.append(opened.enter_context(kind(path, top)))
            except OSError as error:
                raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another") from error
        if folder is not None:
            output._takers.append(_Sorted(folder, link, unsure_below))
        yield output
    output.written = [taker.said() for taker in output._takers]


def _columns(top: int) -> list[str]:
    return [
        "image",
        "error",
        *(f"{what}{k}" for k in ("", *range(2, top + 1)) for what in ("class", "name", "probability")),
    ]


def _row(answer: Prediction | Unread, top: int) -> list[Any]:
    """Of these columns."""
    if isinstance(answer, Unread):
        return [answer.image, str(answer.error), *([None] * (3 * top))]
    cells = [cell for one in answer.top for cell in one]
    return [answer.image, None, *cells, *([None] * (3 * top - len(cells)))]


class _Csv:
    def __init__(self, path: Path, top: int) -> None:
        self.path, self.top, self.count = path, top, 0

    def __enter__(self) -> "_Csv":
        self._file = self.path.open("x", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(_columns(self.top))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, answer: Prediction | Unread) -> None:
        cells = _row(answer, self.top)
        shown = [
            "" if one is None else f"{one:.6f}" if isinstance(one, float) else spreadsheet_safe(one) for one in cells
        ]
        self._writer.writerow(shown)
        self._file.flush()
        self.count += 1

    def said(self) -> str:
        return f"{self.path} ({counted(self.count, 'row')})"


class _Parquet:
    def __init__(self, path: Path, top: int) -> None:
        self.path, self.top, self.count = path, top, 0
        self._rows: list[list[Any]] = []

    def __enter__(self) -> "_Parquet":
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        kinds = [
            pyarrow.float64() if name.startswith("probability") else pyarrow.string() for name in _columns(self.top)
        ]
        self._schema = pyarrow.schema(list(zip(_columns(self.top), kinds, strict=True)))
        self._writer = ParquetWriter(self.path, self._schema)
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._writer.close()

    def add(self, answer: Prediction | Unread) -> None:
        self._rows.append(_row(answer, self.top))
        self.count += 1
        if len(self._rows) == ROWS:
            self._write()

    def _write(self) -> None:
        import pyarrow

        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        arrays = [pyarrow.array(_text(column), kind) for column, kind in zip(columns, self._schema.types, strict=True)]
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []

    def said(self) -> str:
        return f"{self.path} ({counted(self.count, 'row')})"


def _text(column: tuple[Any, ...]) -> list[Any]:
    """Names of files that are no text can be in no Parquet file: with a question mark in place of what is none."""
    return [one.encode("utf-8", "replace").decode() if isinstance(one, str) else one for one in column]


class _Sorted:
    def __init__(self, folder: Path, link: bool, unsure_below: float) -> None:
        self.folder, self.link, self.unsure_below = folder, link, unsure_below
        self.counts: Counter[str] = Counter()

    def add(self, answer: Prediction | Unread) -> None:
        if isinstance(answer, Unread):
            return
        [(name, _, probability), *_] = answer.top
        place = UNSURE if probability < self.unsure_below else folder_name(name)
        source = Path(answer.image)
        into = self.folder / place
        into.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1_000_000):
            target = into / (source.name if number == 1 else f"{source.stem}-{number}{source.suffix}")
            with contextlib.suppress(FileExistsError):
                if self.link:
                    target.symlink_to(source.resolve())
                else:
                    with target.open("xb") as file, source.open("rb") as image:
                        shutil.copyfileobj(image, file)
                    shutil.copystat(source, target)
                break
        self.counts[place] += 1

    def said(self) -> str:
        counts = ", ".join(f"{place}: {count:,}" for place, count in self.counts.most_common(10))
        return f"{self.folder}{os.sep} ({counts})"


def folder_name(name: str) -> str:
    """A folder's name of a class's: one that can lead nowhere else, and that all systems take."""
    plain = "".join("_" if letter in '/\\:*?"<>|' else letter for letter in printable(name)).strip(" .")
    plain = plain.encode()[:200].decode(errors="ignore")
    return f"{plain}_" if plain == UNSURE or plain.upper() in RESERVED else plain or "_"
