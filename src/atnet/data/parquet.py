"""Parquet files with the images in them, as Hugging Face datasets come. Free of torch."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from atnet.data.classes import class_of
from atnet.data.samples import some
from atnet.errors import DataError
from atnet.files import open_regular

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch
    from pyarrow.parquet import ParquetFile

LIST_ROWS = 10_000
MAX_METADATA_BYTES = 50_000_000
MAX_GROWTH, FREE_GROWTH = 50, 200_000_000
"""What a file holds may be so many times its bytes, for the same image can stand in many rows, or so many bytes."""


@contextmanager
def opened(file: Path | BinaryIO, name: str = "") -> "Iterator[ParquetFile]":
    """A Parquet file. Raises DataError naming it if it, or what is made of it until it is closed, cannot be read."""
    import pyarrow
    import pyarrow.parquet

    if isinstance(file, Path):
        try:
            with open_regular(file, 1 << 62, DataError) as regular, opened(regular, str(file)) as found:
                yield found
        except FileNotFoundError as error:
            raise DataError(f"{file}: no such file") from error
        return
    try:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 8, 0))
        if int.from_bytes(file.read(4), "little") > MAX_METADATA_BYTES:
            raise DataError(f"{name}: not a whole Parquet file: more than {MAX_METADATA_BYTES:,} bytes of metadata")
        file.seek(0)
        with pyarrow.parquet.ParquetFile(file) as found:
            yield found
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{name}: needs more memory than there is") from error
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{name}: not a whole Parquet file ({error})") from error


def is_bytes(kind: "DataType") -> bool:
    """Whether a column of a kind has bytes."""
    import pyarrow

    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def is_text(kind: "DataType") -> bool:
    """Whether a column of a kind has text."""
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def is_integer(kind: "DataType") -> bool:
    """Whether a column of a kind has whole numbers."""
    import pyarrow

    return bool(pyarrow.types.is_integer(kind))


def batches_of(file: "ParquetFile", columns: list[str], rows: int, name: str, size: int) -> "Iterator[RecordBatch]":
    """The columns, some rows at a time. Raises DataError before a group that would take too much memory is read.

    size: of the file, in bytes.
    """
    allowed = most_bytes(size)
    for number in range(file.metadata.num_row_groups):
        # Of the group, not of its columns: pyarrow ends the process on a column whose statistics are damaged.
        found = file.metadata.row_group(number).total_byte_size
        if found > allowed:
            raise DataError(f"{name}: {found:,} bytes in a group of rows are too many for {size:,} in the file")
    yield from file.iter_batches(rows, columns=columns)


def most_bytes(size: int) -> int:
    """How many bytes a file of so many may hold, decompressed."""
    return max(FREE_GROWTH, MAX_GROWTH * size)


def rows_of(file: "ParquetFile", columns: list[str], name: str, size: int, most: int) -> Iterator[tuple[Any, ...]]:
    """The values of the columns, row by row. Raises DataError if a batch has more than 100 times `most` bytes."""
    for batch in batches_of(file, columns, LIST_ROWS, name, size):
        if batch.nbytes > most * 100:
            raise DataError(f"{name}: {batch.nbytes:,} bytes in {batch.num_rows:,} rows are too many")
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def image_columns(path: Path) -> tuple[str, str] | None:
    """The columns of images, by its path, and of labels; None if there are no images in the file."""
    import pyarrow

    with opened(path) as file:
        fields = list(file.schema_arrow)
    images = [field.name for field in fields if is_bytes(field.type)] + [
        f"{field.name}.bytes"
        for field in fields
        if pyarrow.types.is_struct(field.type)
        and any(inner.name == "bytes" and is_bytes(inner.type) for inner in field.type)
    ]
    names = [field.name for field in fields]
    labels = [name for name in names if name.lower() in ("label", "labels", "fine_label", "class", "target")]
    if not images:
        return None
    if len(images) > 1 or len(labels) != 1:
        raise DataError(f"{path}: expected one column of images and one called label, found {some(names)}")
    return images[0], labels[0]


def read_images(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Each image's id, class and bytes.

    The classes are the names that Hugging Face's metadata give the labels, or else the labels themselves.
    """
    columns = image_columns(path)
    if columns is None:
        raise DataError(f"{path}: no column of images in it")
    image, label = columns
    size = path.stat().st_size
    total, allowed = 0, most_bytes(size)
    with opened(path) as file:
        names = _class_names(file, label, str(path))
        row = 0
        # One by one, for else a large image that stands in many rows would be in memory as often.
        for batch in batches_of(file, [image, label], 1, str(path), size):
            cells = batch[image.removesuffix(".bytes")]
            if cells.type.num_fields and image.endswith(".bytes"):
                cells = cells.field("bytes")
            for cell, value in zip(cells, batch[label].to_pylist(), strict=True):
                content = cell.as_py() or b""
                total += len(content)
                if total > allowed:
                    raise DataError(f"{path}: its images take more than {allowed:,} bytes, too many for its size")
                name = class_of(value)
                if not name or value == -1:
                    raise DataError(f"{path}: row {row} has no label: a part without labels cannot be used")
                known = names is not None and isinstance(value, int) and 0 <= value < len(names)
                if names is not None and not known:
                    raise DataError(f"{path}: row {row} has the label {value!r}, of {len(names)} classes")
                yield f"{path.stem}/{row:08}", names[value] if names else name, content
                row += 1


def class_names(path: Path) -> tuple[str, ...] | None:
    """The names that Hugging Face's metadata give the labels, in their order; None if they don't."""
    columns = image_columns(path)
    with opened(path) as file:
        names = _class_names(file, columns[1], str(path)) if columns else None
    return tuple(names) if names else None


def _class_names(file: "ParquetFile", label: str, path: str) -> list[str] | None:
    noted = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(noted)["info"]["features"][label]["names"] if noted else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if names is None:
        return None
    if isinstance(names, dict):  # by position, which need not be their order
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: the names of its classes, in its metadata, are none")
    found = [class_of(name) for name in names]
    unsuited = next((name for name in found if not name or len(name.splitlines()) != 1), None)
    if unsuited is not None:
        raise DataError(f"{path}: {unsuited!r}, among the classes of its metadata, is not a name of one line")
    return found
