"""Parquet files with the pictures in them, as Hugging Face data sets come. Free of torch."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock

from atnet.data.shards import CLASSES, Sample, cache_folder, index_path, write_shard
from atnet.errors import DataError
from atnet.files import write_whole
from atnet.progress import progress_bar

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 64


@contextmanager
def opened(file: Path | BinaryIO, name: str | Path = "") -> "Iterator[ParquetFile]":
    """A Parquet file. Raises DataError naming it if it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as found:
            yield found
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name or file}: not a whole Parquet file ({error})") from error


def picture_columns(path: Path) -> tuple[str, str] | None:
    """The columns of pictures and of labels; None if there are no pictures in the file."""
    import pyarrow

    with opened(path) as file:
        schema = file.schema_arrow
    names = {name: schema.field(name).type for name in schema.names}
    pictures = [
        name
        for name, kind in names.items()
        if pyarrow.types.is_binary(kind)
        or pyarrow.types.is_large_binary(kind)
        or (pyarrow.types.is_struct(kind) and "bytes" in {field.name for field in kind})
    ]
    labels = [name for name in names if name.lower() in ("label", "labels", "fine_label", "class", "target")]
    if not pictures:
        return None
    if len(pictures) > 1 or len(labels) != 1:
        raise DataError(f"{path}: expected one column of pictures and one called label, found {', '.join(names)}")
    return pictures[0], labels[0]


def read_pictures(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Each picture's id, class and bytes.

    The classes are the names that Hugging Face's metadata give the labels, or else the labels themselves.
    """
    columns = picture_columns(path)
    if columns is None:
        raise DataError(f"{path}: no column of pictures in it")
    picture, label = columns
    with opened(path) as file:
        names = _class_names(file, label)
        row = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=[picture, label]):
            for content, value in zip(batch[picture].to_pylist(), batch[label].to_pylist(), strict=True):
                data = content.get("bytes") if isinstance(content, dict) else content
                if value is None or value == -1:
                    raise DataError(f"{path}: row {row} has no label: a part without labels cannot be used")
                known = names is not None and isinstance(value, int) and 0 <= value < len(names)
                if names is not None and not known:
                    raise DataError(f"{path}: row {row} has the label {value!r}, of {len(names)} classes")
                yield f"{path.stem}/{row:08}", names[value] if names else str(value), data or b""
                row += 1


def class_names(path: Path) -> tuple[str, ...] | None:
    """The names that Hugging Face's metadata give the labels, in their order; None if they don't."""
    columns = picture_columns(path)
    with opened(path) as file:
        names = _class_names(file, columns[1]) if columns else None
    return tuple(names) if names else None


def unpack(files: list[Path]) -> list[str]:
    """The pictures of Parquet files as shards in the cache folder, made once: Parquet is not made for random access."""
    shards = []
    for file in files:
        status = file.stat()
        key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:32]
        shard = cache_folder() / "unpacked" / key / "pictures.tar"
        shard.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(shard.with_name(".lock")):  # the processes of a training ask for it all at once
            if not index_path(shard).is_file():
                _unpack(file, shard)
        shards.append(str(shard))
    return shards


def _unpack(file: Path, shard: Path) -> None:
    names = class_names(file)
    position = {name: i for i, name in enumerate(names or ())}
    if names:
        write_whole(shard.with_name(CLASSES), "".join(f"{name}\n" for name in names).encode())
    with progress_bar(f"Unpacking {file.name}", file.stat().st_size) as advance:

        def samples() -> Iterable[Sample]:
            for picture, label, content in read_pictures(file):
                advance(len(content))
                yield Sample(picture, label, position.get(label, 0), content)

        write_shard(shard, samples())


def _class_names(file: "ParquetFile", label: str) -> list[str] | None:
    noted = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(noted)["info"]["features"][label]["names"] if noted else None
    except (ValueError, KeyError, TypeError):
        return None
    if names is None:
        return None
    return [str(name) for name in (names.values() if isinstance(names, dict) else names)]
