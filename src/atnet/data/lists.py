"""Lists of images: CSV, TSV, JSON, JSON lines or Parquet with a column of paths and one of labels. Free of torch."""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from atnet.data.classes import class_of
from atnet.data.decode import read_file
from atnet.data.exports import MAX_EXPORT_BYTES, local, row_of_task, rows_of
from atnet.data.samples import Samples, collect, some
from atnet.errors import DataError
from atnet.files import open_regular

SUFFIXES = {".csv", ".tsv", ".json", ".jsonl", ".parquet"}
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "picture"),
    "label": ("label", "class", "class_name", "category", "target", "choice"),
    "split": ("split", "part", "subset", "set", "partition"),
}
MAX_LIST_BYTES = 2_000_000_000
MAX_ROWS, MAX_ROW, MAX_COLUMNS, MAX_SPLITS = 20_000_000, 1_000_000, 1000, 20
"""Most rows of a list, letters of a row, columns, and names of parts."""

PARQUET_ROWS = 1_000_000
"""A list in Parquet may have so many rows, and one more for each of its bytes: paths differ, so each takes some."""

SEPARATORS = (";", "|", ",")
"""By which other tools' lists part several labels of an image."""

FEW_OF_A_NUMBER, MANY_NUMBERS = 10, 20
"""Images of each value below which numbers with fractions are no classes; fewer values may be anything."""

Row = Sequence[Any]


@dataclass(frozen=True)
class Listed:
    """Files that a list names, relative to its folder or absolute."""

    list: Path

    @property
    def name(self) -> str:
        return str(self.list)

    def locate(self, image: str, place: int) -> str:
        return str(self.list.parent / image)

    def read(self, image: str, place: int) -> bytes:
        return read_file(self.list.parent / image)


def open_list(path: Path) -> dict[str, Samples]:
    """The images that a list names, by its column of splits in lower case; under "" where there is none.

    Raises DataError naming the list and the row that cannot be used.
    """
    ids: defaultdict[str, list[str]] = defaultdict(list)
    classes: defaultdict[str, list[str]] = defaultdict(list)
    known: dict[Any, str] = {}  # of each label its class: one string for all its images
    number = 0
    found: dict[str, int | None] = {}
    seen = 0
    try:
        for number, (header, row) in enumerate(_read(path), 1):
            if len(header) != seen:
                found, seen = {what: _column(path, header, what) for what in COLUMNS}, len(header)
            image, value, part = (None if at is None or at >= len(row) else row[at] for at in found.values())
            label = known.get(value) if isinstance(value, str) else None
            if label is None:
                label = class_of(value)
                if isinstance(value, str):
                    known[value] = label
            if image in (None, "") or not label:
                what = "path" if image in (None, "") else "label"
                raise DataError(f"{path}: row {number} has no {what}: {str(row)[:200]}")
            image = local(str(image))
            if number > MAX_ROWS:
                raise DataError(f"{path}: more than the {MAX_ROWS:,} rows allowed: split it, or pack its images")
            image.encode("utf-8", "surrogateescape")
            split = "" if found["split"] is None else "None" if part is None else str(part).strip().lower()
            if split not in ids and len(ids) == MAX_SPLITS:
                raise DataError(f"{path}: more than {MAX_SPLITS} parts in its column of splits")
            ids[split].append(image)
            classes[split].append(label)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such list") from error
    except DataError:
        raise
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: row {number}: {error.object[:80]!a} has half a letter in it: mend it") from error
    except (ValueError, OSError) as error:  # a label that is none
        raise DataError(f"{path}: row {number}: {error}") from error
    if not ids:
        raise DataError(f"{path}: no rows in it")
    _require_classes(path, Counter(label for part in classes.values() for label in part))
    return {split: collect(Listed(path), ids[split], classes[split]) for split in ids}


def _require_classes(path: Path, counts: Counter[str]) -> None:
    """Raises DataError if labels are no names of classes: several in one, or a quantity."""
    for between in SEPARATORS:
        joined = [label for label in counts if between in label]
        parts = Counter(part for label in joined for part in {one.strip() for one in label.split(between)})
        alone = {part for part, times in parts.items() if part and (times > 1 or part in counts)}
        several = [label for label in joined if all(one.strip() in alone for one in label.split(between))]
        if 2 * len(several) > len(joined):
            raise DataError(
                f"{path}: the label {several[0]!r:.200} looks like several classes, and an image has one here: keep "
                f"one of them in each row. If it is one class, write it without {between!r}"
            )
    try:
        values = [float(label) for label in counts]
    except ValueError:
        return
    often = counts.total() / len(counts)
    if len(counts) < MANY_NUMBERS:
        return
    if often < 2 or (often < FEW_OF_A_NUMBER and any(not value.is_integer() for value in values)):
        raise DataError(
            f"{path}: its {len(counts):,} labels are numbers such as {min(counts)}, {often:.1f} images of each: a "
            "quantity is not learned here. If each number is a class, write it as a word, class_3 for 3"
        )


def _read(path: Path) -> Iterator[tuple[list[str], Row]]:
    """For each row, the names of the columns and the values in their order; later rows of JSON may add columns."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _read_parquet(path)
        return
    with (
        open_regular(path, MAX_LIST_BYTES, DataError) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="" if suffix in (".csv", ".tsv") else None) as text,
    ):
        try:
            if suffix == ".jsonl":
                found = (json.loads(line) for line in _lines(path, text) if line.strip())
                yield from _aligned(path, found)
            elif suffix == ".json":
                yield from _aligned(path, _rows_of_json(path, text))
            else:
                yield from _read_table(path, text, "\t" if suffix == ".tsv" else ",")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error}): save it as UTF-8") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error})") from error


def _lines(path: Path, text: TextIO) -> Iterator[str]:
    """The lines of a text. Raises DataError if one is too long, before it is all read."""
    while line := text.readline(MAX_ROW + 1):
        if len(line) > MAX_ROW:
            raise DataError(f"{path}: a line of more than {MAX_ROW:,} letters, so it is no list")
        if "\0" in line:
            raise DataError(f"{path}: has null characters in it, so it is no text: save it as UTF-8")
        yield line


def _read_table(path: Path, text: TextIO, between: str) -> Iterator[tuple[list[str], Row]]:
    rows = csv.reader(_lines(path, text), delimiter=between, strict=True)
    header: list[str] | None = None
    try:
        for row in rows:
            if header is None and row:
                header = row
                _require_columns(path, header)
            elif header is not None and row:
                yield header, row
    except csv.Error as error:
        raise DataError(f"{path}: not a table ({error}) at line {rows.line_num}") from error
    if header is None:
        raise DataError(f"{path}: no rows in it")


def _rows_of_json(path: Path, text: TextIO) -> Iterator[Any]:
    """The objects of a list, or what an annotation tool's object says."""
    if text.read(1000).lstrip()[:1] != "{":
        text.seek(0)
        for one in _elements(path, text):
            task = isinstance(one, dict) and {"data", "annotations"} <= one.keys()
            found = row_of_task(path, one) if task else one
            if found is not None:
                yield found
        return
    text.seek(0)
    content = text.read(MAX_EXPORT_BYTES + 1)
    if len(content) > MAX_EXPORT_BYTES:
        raise DataError(f"{path}: an object of more than {MAX_EXPORT_BYTES:,} letters: make it a list")
    yield from rows_of(path, json.loads(content))


def _elements(path: Path, text: TextIO) -> Iterator[Any]:
    """The elements of a JSON list, one after the other: all at once they would take many times the text's memory."""
    decoder = json.JSONDecoder()
    held, at = text.read(2 * MAX_ROW), 0
    between = "["
    while True:
        if len(held) - at < MAX_ROW:
            held, at = held[at:] + text.read(2 * MAX_ROW), 0
        at = _skip(held, at)
        if between == "[" and held[at : at + 1] != "[":
            decoder.raw_decode(held, at)
            raise DataError(f"{path}: expected a list of objects, each with a path and a label")
        if held[at : at + 1] == "]" and between == ",":
            if _skip(held, at + 1) < len(held) or text.read(1).strip():
                raise DataError(f"{path}: not JSON: something follows the list")
            return
        if held[at : at + 1] != between:
            raise DataError(f"{path}: not JSON: expected {between} or ], found {held[at : at + 20]!a}")
        at = _skip(held, at + 1)
        if between == "[" and held[at : at + 1] == "]":
            raise DataError(f"{path}: no rows in it")
        between = ","
        found, at = decoder.raw_decode(held, at)
        yield found


def _skip(text: str, at: int) -> int:
    """Where the blanks that begin there end."""
    while text[at : at + 1] and text[at] in " \t\n\r":
        at += 1
    return at


def _aligned(path: Path, found: Iterator[Any]) -> Iterator[tuple[list[str], Row]]:
    """Objects as rows."""
    header: list[str] = []
    known: set[str] = set()
    for one in found:
        if not isinstance(one, dict):
            raise DataError(f"{path}: expected a list of objects, each with a path and a label")
        if not known.issuperset(one):
            header += [name for name in one if name not in known]
            known.update(one)
            _require_columns(path, header)
        yield header, [one.get(name) for name in header]


def _read_parquet(path: Path) -> Iterator[tuple[list[str], Row]]:
    from atnet.data.parquet import opened, rows_of

    with opened(path) as file:
        header = [name for name in file.schema_arrow.names if any(name.lower() in known for known in COLUMNS.values())]
        _require_columns(path, header)
        size = path.stat().st_size
        if file.metadata.num_rows > PARQUET_ROWS + size:
            raise DataError(f"{path}: {file.metadata.num_rows:,} rows in {size:,} bytes cannot be a list")
        for row in rows_of(file, header, str(path), size, MAX_ROW):
            yield header, row


def _require_columns(path: Path, header: Sequence[str]) -> None:
    """Raises DataError unless there is one column of paths and one of labels among a modest number."""
    if len(header) > MAX_COLUMNS:
        raise DataError(f"{path}: more than the {MAX_COLUMNS:,} columns allowed")
    for what in ("path", "label"):
        if _column(path, header, what) is None:
            raise DataError(
                f"{path}: no column of {what}s among {some(header)}: call it {' or '.join(COLUMNS[what][:3])}"
            )


def _column(path: Path, header: Sequence[str], what: str) -> int | None:
    """Where the column is; None if there is none. Raises DataError if several could be it."""
    found = [i for i, name in enumerate(header) if name.strip().lower() in COLUMNS[what]]
    if len(found) > 1:
        names = " and ".join(repr(header[i]) for i in found)
        raise DataError(f"{path}: {names} could both be the column of {what}s: rename all but one")
    return found[0] if found else None
