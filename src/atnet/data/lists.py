"""Lists of pictures: CSV, TSV, JSON, JSON lines or Parquet with a column of paths and one of labels. Free of torch."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atnet.data.decode import read_file
from atnet.data.pictures import Pictures, collect, some
from atnet.errors import DataError

SUFFIXES = {".csv", ".tsv", ".json", ".jsonl", ".parquet"}
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "picture"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "part", "subset", "set", "partition"),
}
MAX_LIST_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Listed:
    """Files that a list names, relative to its folder or absolute."""

    list: Path

    @property
    def name(self) -> str:
        return str(self.list)

    def locate(self, picture: str, place: int) -> str:
        return str(self.list.parent / picture)

    def read(self, picture: str, place: int) -> bytes:
        return read_file(self.list.parent / picture)


def open_list(path: Path) -> dict[str, Pictures]:
    """The pictures that a list names, by its column of splits; under "" where there is none.

    Raises DataError naming the list and the line that cannot be used.
    """
    heads, rows = _read(path)
    found = {what: _column(path, heads, what) for what in COLUMNS}
    at, label_at, split_at = found["path"], found["label"], found["split"]
    if at is None or label_at is None:
        what = "path" if at is None else "label"
        raise DataError(f"{path}: no column of {what}s among {some(heads)}: call it {' or '.join(COLUMNS[what][:3])}")
    wanted = max(at, label_at, split_at or 0)
    ids: defaultdict[str, list[str]] = defaultdict(list)
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(rows, 1):
        if len(row) <= wanted or "" in (row[at], row[label_at]) or None in (row[at], row[label_at]):
            raise DataError(
                f"{path}: row {number} has no {'label' if len(row) > at and row[at] else 'path'}: {str(row)[:200]}"
            )
        split = "" if split_at is None else str(row[split_at])
        ids[split].append(str(row[at]))
        classes[split].append(str(row[label_at]))
    if not ids:
        raise DataError(f"{path}: no rows in it")
    return {split: collect(Listed(path), ids[split], classes[split]) for split in ids}


def _read(path: Path) -> tuple[list[str], Iterable[Any]]:
    """Column names, and rows as sequences in their order."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path)
    if path.stat().st_size > MAX_LIST_BYTES:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes are more than the {MAX_LIST_BYTES:,} allowed; split it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}): save it as UTF-8") from error
    if suffix in (".json", ".jsonl"):
        return _read_json(path, text)
    if "\0" in text:
        raise DataError(f"{path}: has null characters in it, so it is no text: save it as UTF-8")
    rows = csv.reader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    try:
        heads, *others = [row for row in rows if row]
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path}: not a table ({error}) at line {rows.line_num}") from error
    return heads, others


def _read_json(path: Path, text: str) -> tuple[list[str], Iterable[Any]]:
    try:
        if path.suffix.lower() == ".jsonl":
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, list) or not found or not all(isinstance(row, dict) for row in found):
        raise DataError(f"{path}: expected a list of objects, each with a path and a label")
    heads = list(dict.fromkeys(name for row in found for name in row))
    return heads, ([row.get(name) for name in heads] for row in found)


def _read_parquet(path: Path) -> tuple[list[str], Iterable[Any]]:
    from atnet.data.parquet import opened

    with opened(path) as file:
        heads = [name for name in file.schema_arrow.names if any(name.lower() in known for known in COLUMNS.values())]
        columns = [column.to_pylist() for column in file.read(columns=heads).columns]
    return heads, zip(*columns, strict=True)


def _column(path: Path, heads: list[str], what: str) -> int | None:
    """Where the column is; None if there is none. Raises DataError if several could be it."""
    found = [i for i, name in enumerate(heads) if name.strip().lower() in COLUMNS[what]]
    if len(found) > 1:
        names = " and ".join(repr(heads[i]) for i in found)
        raise DataError(f"{path}: {names} could both be the column of {what}s: rename all but one")
    return found[0] if found else None
