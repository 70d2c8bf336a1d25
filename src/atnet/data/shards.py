"""Pictures in tar files, one picture and its label under one key, as webdataset lays them. Free of torch."""

import hashlib
import io
import json
import logging
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from atnet.data.decode import SUFFIXES
from atnet.data.pictures import Pictures, collect, in_order
from atnet.errors import DataError
from atnet.files import write_whole, writing_whole
from atnet.progress import progress_bar

log = logging.getLogger("atnet")

LABELS = (".cls", ".json", ".txt")
CLASSES = "classes.txt"
INDEX = "index"
NUMBERED = b"atnet.numbered"
"""In the metadata of an index whose labels are positions."""
MAX_LABEL_BYTES, MAX_CLASSES_BYTES = 1_000_000, 10_000_000
_SUFFIXES = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"BM", "bmp"), (b"GIF", "gif"))
_MARKED = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Shards:
    """Tar files on disk or at any fsspec address, read at the places where the pictures are."""

    name: str
    files: tuple[str, ...]
    spans: NDArray[np.int64]
    """Of each picture (N, 3): which file, offset and length in bytes."""

    def locate(self, picture: str, place: int) -> str:
        return f"{self.files[self.spans[place, 0]]}/{picture}"

    def read(self, picture: str, place: int) -> bytes:
        file, begin, length = self.spans[place].tolist()
        where = self.files[file]
        try:
            if is_address(where):
                content: bytes = _system(where).cat_file(where, start=begin, end=begin + length)
            else:
                with open(where, "rb") as opened:
                    opened.seek(begin)
                    content = opened.read(length)
        except Exception as error:  # each fsspec backend has errors of its own
            raise DataError(f"{self.locate(picture, place)}: cannot be read ({error})") from error
        if len(content) != length:
            raise DataError(
                f"{self.locate(picture, place)}: {len(content):,} of {length:,} bytes: the shard is truncated"
            )
        return content


def is_address(source: str) -> bool:
    """Whether it is an fsspec address, s3://bucket/train-{000000..000099}.tar for example."""
    return bool(_MARKED.match(source))


def expand(source: str) -> list[str]:
    """The names that braces and stars stand for, sorted; {000..099} and {a,b} are those of the shell."""
    pieces = _RANGE.split(source)
    choices: list[list[str]] = []
    for i, piece in enumerate(pieces):
        if i % 4 == 0:
            choices.append([piece])
        elif i % 4 == 1 and piece:
            first, last = int(piece), int(pieces[i + 1])
            if last - first > 1_000_000:
                raise DataError(f"{source}: {last - first + 1:,} files are too many")
            choices.append([str(number).zfill(len(piece)) for number in range(first, last + 1)])
        elif i % 4 == 3 and piece:
            choices.append(piece.split(","))
    names = ["".join(parts) for parts in product(*choices)]
    found: list[str] = []
    for name in names:
        if "*" not in name:
            found.append(name)
        elif is_address(name):
            protocol = name.split("://")[0]
            found += [f"{protocol}://{path}" for path in _system(name).glob(name)]
        else:
            top = Path(name).expanduser()
            found += map(str, sorted(top.parent.glob(top.name)))
    if not found:
        raise DataError(f"{source}: no such file")
    return found


def open_shards(name: str, files: Sequence[str]) -> Pictures:
    """The pictures of tar files, labelled by a .cls, .json or .txt file beside each.

    Where an index of `atnet pack` lies beside the files it is used; else they are scanned once, and what was found is
    kept in the cache folder.
    Raises DataError naming a file that is missing, truncated or has a picture without a label.
    """
    tables = []
    with progress_bar("Reading shards", len(files)) as advance:
        for file in files:
            tables.append(_index_of(file))
            advance(1)
    ids = [one for table in tables for one in table.ids]
    if len(set(ids)) < len(ids):  # keys that begin anew in each file
        stems = [posixpath.splitext(posixpath.basename(file))[0] for file in files]
        prefixes = stems if len(set(stems)) == len(stems) else map(str, range(len(files)))
        ids = [f"{prefix}/{one}" for prefix, table in zip(prefixes, tables, strict=True) for one in table.ids]
    labels = [label for table in tables for label in table.labels]
    spans = np.concatenate(
        [np.column_stack([np.full(len(table.ids), i), table.spans]) for i, table in enumerate(tables)]
    ).astype(np.int64)
    if not ids:
        raise DataError(f"{name}: no pictures in it")
    store = Shards(name, tuple(files), spans)
    listed = _beside(files[0], CLASSES)
    known = None if listed is None else parse_class_list(listed, f"{name}: {CLASSES}")
    if known is None:
        return collect(store, ids, labels)
    named = {label: i for i, label in enumerate(known)}

    def position(label: str) -> int:
        return int(label) if label.isdecimal() and len(label) < 10 and int(label) < len(known) else -1

    positions = all(position(label) >= 0 for table in tables if table.numbered for label in table.labels)
    found = np.array(
        [
            position(label) if label not in named or (table.numbered and positions) else named[label]
            for table in tables
            for label in table.labels
        ],
        dtype=np.int64,
    )
    if found.min() < 0:
        wrong = labels[int(np.flatnonzero(found < 0)[0])]
        raise DataError(f"{name}: the label {wrong!r} is not among the {len(known)} of {CLASSES}")
    return in_order(store, known, ids, found)


def read_class_list(path: Path) -> tuple[str, ...]:
    """A text file with a class on each line. Raises DataError naming the line that cannot be used."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path}: no file: a list of classes is a text file with a class on each line")
        if found.st_size > MAX_CLASSES_BYTES:
            raise DataError(f"{path}: {found.st_size:,} bytes are too many for a list of classes")
        return parse_class_list(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(
            f"{path}: no list of classes ({error.strerror}): a text file with a class on each line"
        ) from error


def parse_class_list(content: bytes, path: str) -> tuple[str, ...]:
    """The content of a text file with a class on each line. Raises DataError naming the line that cannot be used."""
    try:
        names = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}): a text file with a class on each line") from error
    while names and not names[-1].strip():
        names.pop()
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise DataError(f"{path}: line {number} is empty, and would shift the labels below it: remove it")
        if name in first:
            raise DataError(f"{path}: {name!r} stands on line {first[name]} and on line {number}: remove one")
        first[name] = number
    if not names:
        raise DataError(f"{path}: no classes in it")
    return tuple(names)


@dataclass(frozen=True)
class Table:
    """What is in a shard: of each picture its id, label, and offset and length in bytes (N, 2).

    numbered: whether labels are positions in a list of classes, as those of .cls files; else names, if they are any.
    """

    ids: list[str]
    labels: list[str]
    spans: NDArray[np.int64]
    numbered: bool = False

    def to_parquet(self) -> bytes:
        import pyarrow
        import pyarrow.parquet

        columns = {"id": self.ids, "label": self.labels, "offset": self.spans[:, 0], "length": self.spans[:, 1]}
        stream = io.BytesIO()
        noted = {NUMBERED: b"1"} if self.numbered else {}
        pyarrow.parquet.write_table(pyarrow.table(columns, metadata=noted), stream)
        return stream.getvalue()

    @classmethod
    def from_parquet(cls, content: bytes, path: str) -> "Table":
        from atnet.data.parquet import opened

        with opened(io.BytesIO(content), path) as file:
            table = file.read()
        try:
            spans = np.column_stack([table["offset"].to_numpy(), table["length"].to_numpy()]).astype(np.int64)
            numbered = NUMBERED in (table.schema.metadata or {})
            return cls(table["id"].to_pylist(), table["label"].to_pylist(), spans, numbered)
        except KeyError as error:
            raise DataError(f"{path}: no column {error} in it: delete it, and it is made again") from error


@dataclass(frozen=True)
class Sample:
    """A picture to be written.  number: its class's position in the list of classes."""

    id: str
    label: str
    number: int
    content: bytes


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """A tar file and its index, each whole or absent, the index last; returns the count of pictures."""
    ids, labels, spans = [], [], []
    with writing_whole(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples):
            suffix = next((suffix for start, suffix in _SUFFIXES if sample.content.startswith(start)), "tif")
            spans.append((tar.offset + tarfile.BLOCKSIZE, len(sample.content)))
            for end, content in ((suffix, sample.content), ("cls", str(sample.number).encode())):
                member = tarfile.TarInfo(f"{number:08}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            ids.append(sample.id)
            labels.append(sample.label)
    index = index_path(path)
    index.parent.mkdir(exist_ok=True)
    write_whole(index, Table(ids, labels, np.array(spans, dtype=np.int64).reshape(-1, 2)).to_parquet())
    return len(ids)


def index_path(shard: Path) -> Path:
    """Where the index of a shard is."""
    return shard.parent / INDEX / f"{shard.stem}.parquet"


def scan(file: BinaryIO, name: str) -> Table:
    """What is in a tar file. Raises DataError if it is damaged, or a picture has no label."""
    found: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    numbered = True
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + member.size
                if not member.isreg():
                    continue
                folder, base = posixpath.split(member.name)
                if base.startswith("."):
                    continue
                stem, dot, extension = base.partition(".")
                key = posixpath.join(folder, stem)
                suffix = posixpath.splitext(base)[1].lower()
                if suffix in SUFFIXES:
                    if key in found:
                        raise DataError(f"{name}: two pictures have the key {key!r}")
                    found[key] = (member.name, member.offset_data, member.size)
                elif dot + extension in LABELS and key not in labels:
                    if member.size > MAX_LABEL_BYTES:
                        raise DataError(f"{name}: {member.name} is too large for a label")
                    opened = tar.extractfile(member)
                    label = _label(opened.read() if opened else b"", dot + extension, f"{name}/{member.name}")
                    if label is not None:
                        labels[key] = label
                        numbered = numbered and extension == "cls"
            size = file.seek(0, os.SEEK_END)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: not a whole tar file ({error})") from error
    if end > size:
        raise DataError(f"{name}: truncated, {size:,} of at least {end:,} bytes")
    bare = next((one for key, (one, _, _) in found.items() if key not in labels), None)
    if bare is not None:
        raise DataError(f"{name}: {bare} has no label: expected a {', '.join(LABELS)} file beside it")
    spans = np.array([span[1:] for span in found.values()], dtype=np.int64).reshape(-1, 2)
    return Table([one for one, _, _ in found.values()], [labels[key] for key in found], spans, numbered)


def _label(content: bytes, suffix: str, name: str) -> str | None:
    """The label in a file beside a picture; None if it holds none."""
    try:
        text = content.decode().strip()
        if suffix != ".json":
            return text or None
        noted: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not a label ({error})") from error
    if isinstance(noted, dict):
        noted = next((noted[key] for key in ("label", "class", "cls") if key in noted), None)
    return str(noted) if isinstance(noted, str | int) else None


def _index_of(file: str) -> Table:
    size, stamp = _size_and_stamp(file)
    packed = f"{INDEX}/{posixpath.splitext(posixpath.basename(file))[0]}.parquet"
    content = _beside(file, packed)
    if content is not None:
        table = Table.from_parquet(content, packed)
        end = int(table.spans.sum(1).max(initial=0))
        if end > size:
            raise DataError(f"{file}: truncated, {size:,} of at least {end:,} bytes: pack it again")
        return table
    kept = cache_folder() / INDEX / f"{hashlib.sha256(f'{file} {size} {stamp} 2'.encode()).hexdigest()[:32]}.parquet"
    if kept.is_file():
        return Table.from_parquet(kept.read_bytes(), str(kept))
    with _system(file).open(file, "rb") if is_address(file) else open(file, "rb") as opened:
        table = scan(opened, file)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, table.to_parquet())
    except OSError as error:
        log.warning("%s: what is in %s could not be kept there, so it is scanned each time (%s)", kept, file, error)
    return table


def _size_and_stamp(file: str) -> tuple[int, str]:
    """Bytes, and what changes when the content does."""
    try:
        if is_address(file):
            system = _system(file)
            return int(system.size(file)), str(system.ukey(file))
        status = os.stat(file)
        return status.st_size, str(status.st_mtime_ns)
    except Exception as error:  # each fsspec backend has errors of its own
        raise DataError(f"{file}: cannot be reached ({error})") from error


def _beside(file: str, name: str) -> bytes | None:
    """A file in the folder of another, or below it; None if there is none."""
    where = posixpath.join(posixpath.dirname(file), name)
    try:
        if not is_address(file):
            return (Path(file).parent / name).read_bytes()
        found: bytes = _system(file).cat_file(where)
        return found
    except FileNotFoundError:
        return None
    except Exception as error:
        raise DataError(f"{where}: cannot be read ({error})") from error


def cache_folder() -> Path:
    """Where what can be made again is kept: ATNET_CACHE, or atnet in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atnet"
    return Path(os.environ.get("ATNET_CACHE") or default)


def _system(address: str) -> Any:
    """The file system of an address; fsspec keeps one for each process."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)[0]
    except (ImportError, ValueError) as error:
        raise DataError(f"{address}: {error}") from error


def files_in(folder: Path, suffix: str) -> list[Path]:
    """The files of a kind directly in a folder, sorted. Raises DataError if the folder cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    return [folder / name for name in names if name.lower().endswith(suffix) and not name.startswith(".")]
