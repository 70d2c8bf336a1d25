"""Images in tar files, one image and its label under one key, as webdataset lays them. Free of torch."""

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
from fnmatch import fnmatchcase
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from atnet.data.classes import class_of
from atnet.data.decode import MAX_BYTES, OTHER_SUFFIXES, SUFFIXES
from atnet.data.parquet import batches_of, is_bytes, is_integer, is_text, opened
from atnet.data.samples import Samples, collect, in_order, some
from atnet.errors import DataError
from atnet.files import cache_folder, kind_of_file, open_regular, read_regular, write_whole, writing_whole
from atnet.progress import progress_bar

log = logging.getLogger("atnet")

LABELS = (".cls", ".json", ".txt")
CLASSES = "classes.txt"
INDEX = "index"
NUMBERED = b"atnet.numbered"
"""In the metadata of an index whose labels are positions."""
MAX_LABEL_BYTES, MAX_CLASSES_BYTES, MAX_INDEX_BYTES = 1_000_000, 10_000_000, 500_000_000
MAX_HEAD_BYTES = 65_536
"""Of a name or of attributes in a tar file, which are read whole before the file that they belong to."""

MAX_FILES = 1_000_000
"""That braces may stand for."""
_SUFFIXES = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"BM", "bmp"), (b"GIF", "gif"))
_LONG_NUMBER = re.compile(rb"\d{40}")
_MARKED = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}|\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Shards:
    """Tar files on disk or at any fsspec address, read at the places where the images are."""

    name: str
    files: tuple[str, ...]
    spans: NDArray[np.int64]
    """Of each image (N, 3): which file, offset and length in bytes."""

    def locate(self, image: str, place: int) -> str:
        return f"{self.files[self.spans[place, 0]]}/{image}"

    def read(self, image: str, place: int) -> bytes:
        file, begin, length = self.spans[place].tolist()
        where = self.files[file]
        if length > MAX_BYTES:
            raise DataError(f"{self.locate(image, place)}: {length:,} bytes are more than the {MAX_BYTES:,} allowed")
        try:
            if is_address(where):
                content: bytes = _system(where).cat_file(where, start=begin, end=begin + length)
            else:
                with open(where, "rb") as opened:
                    opened.seek(begin)
                    content = opened.read(length)
        except Exception as error:  # each fsspec backend has errors of its own
            raise DataError(f"{self.locate(image, place)}: cannot be read ({error})") from error
        if len(content) != length:
            raise DataError(
                f"{self.locate(image, place)}: {len(content):,} of {length:,} bytes: the shard is truncated"
            )
        return content


def is_address(source: str) -> bool:
    """Whether it is an fsspec address, s3://bucket/train-{000000..000099}.tar for example."""
    return bool(_MARKED.match(source))


def expand(source: str) -> list[str]:
    """The names that braces and stars stand for, sorted; {000..099} and {a,b} are those of the shell."""
    pieces = _RANGE.split(source)
    kinds = [i % 4 if piece else 2 for i, piece in enumerate(pieces)]  # text, a range's ends, or names
    counts = [
        max(int(pieces[i + 1]) - int(pieces[i]) + 1, 0) if kind == 1 else pieces[i].count(",") + 1
        for i, kind in enumerate(kinds)
        if kind in (1, 3)
    ]
    most = 1000 if "*" in source else MAX_FILES  # a star is looked for in a folder, for each of them
    if max(counts, default=1) > most or prod(counts) > most or prod(counts) * len(source) > 100 * MAX_FILES:
        raise DataError(f"{source[:200]}: {prod(counts):,} files are too many")
    choices: list[list[str]] = []
    for i, kind in enumerate(kinds):
        if kind == 0:
            choices.append([pieces[i]])
        elif kind == 1:
            numbers = range(int(pieces[i]), int(pieces[i + 1]) + 1)
            choices.append([str(number).zfill(len(pieces[i])) for number in numbers])
        elif kind == 3:
            choices.append(pieces[i].split(","))
    names = ["".join(parts) for parts in product(*choices)]
    found: list[str] = []
    for name in names:
        if "*" not in name:
            found.append(name)
        elif is_address(name):
            protocol = name.split("://")[0]
            found += sorted(f"{protocol}://{path}" for path in _system(name).glob(name))
        else:
            top = Path(name).expanduser()
            try:
                found += sorted(str(top.parent / one) for one in os.listdir(top.parent) if fnmatchcase(one, top.name))
            except (OSError, ValueError) as error:
                raise DataError(f"{top.parent}: cannot be read ({error})") from error
    if not found:
        raise DataError(f"{source}: no such file")
    return found


def open_shards(name: str, files: Sequence[str]) -> Samples:
    """The images of tar files, labelled by a .cls, .json or .txt file beside each.

    Where an index of `atnet pack` lies beside the files it is used; else they are scanned once, and what was found is
    kept in the cache folder.
    Raises DataError naming a file that is missing, truncated or has an image without a label.
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
        raise DataError(f"{name}: no images in it")
    store = Shards(name, tuple(files), spans)
    listed = _beside(files[0], CLASSES, MAX_CLASSES_BYTES)
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
        return parse_class_list(read_regular(path, MAX_CLASSES_BYTES, DataError), str(path))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such list of classes: a text file with a class on each line") from error


def parse_class_list(content: bytes, path: str) -> tuple[str, ...]:
    """The content of a text file with a class on each line. Raises DataError naming the line that cannot be used."""
    try:
        names = [class_of(name) for name in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}): a text file with a class on each line") from error
    while names and not names[-1]:
        names.pop()
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise DataError(f"{path}: line {number} is empty, and would shift the labels below it: remove it")
        if name in first:
            raise DataError(f"{path}: {name!r} stands on line {first[name]} and on line {number}: remove one")
        first[name] = number
    if not names:
        raise DataError(f"{path}: no classes in it")
    return tuple(names)


@dataclass(frozen=True)
class Table:
    """What is in a shard: of each image its id, label, and offset and length in bytes (N, 2).

    numbered: whether labels are positions in a list of classes, as those of .cls files; else names, if they are any.
    """

    ids: list[str]
    labels: list[str]
    spans: NDArray[np.int64]
    numbered: bool = False

    def to_parquet(self) -> bytes:
        import pyarrow
        import pyarrow.parquet

        ids: Sequence[str | bytes] = self.ids
        if any(map(_is_no_text, self.ids)):  # names of files that are not UTF-8
            ids = [one.encode("utf-8", "surrogateescape") for one in self.ids]
        columns = {"id": ids, "label": self.labels, "offset": self.spans[:, 0], "length": self.spans[:, 1]}
        stream = io.BytesIO()
        noted = {NUMBERED: b"1"} if self.numbered else {}
        pyarrow.parquet.write_table(pyarrow.table(columns, metadata=noted), stream)
        return stream.getvalue()

    @classmethod
    def from_parquet(cls, content: bytes, path: str, shard: str, size: int) -> "Table":
        """Raises DataError if it is not the index of the shard, which has `size` bytes."""
        again = "delete it, and it is made again"
        kinds = {"id": (is_text, is_bytes), "label": (is_text,), "offset": (is_integer,), "length": (is_integer,)}
        ids, labels, spans = [], [], [np.zeros((0, 2), dtype=np.int64)]
        with opened(io.BytesIO(content), path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            for name, allowed in kinds.items():
                if schema.names.count(name) != 1:
                    raise DataError(f"{path}: no column {name!r} in it: {again}")
                if rows and not any(kind(schema.field(name).type) for kind in allowed):
                    raise DataError(f"{path}: the column {name!r} is of another kind than an index has: {again}")
            if rows > size // tarfile.BLOCKSIZE:
                raise DataError(f"{path}: {rows:,} images cannot be in a shard of {size:,} bytes: {again}")
            for batch in batches_of(file, list(kinds), 10_000, path, len(content)) if rows else ():
                if any(column.null_count for column in batch.columns):
                    raise DataError(f"{path}: a row without a value in it: {again}")
                ids += batch["id"].to_pylist()
                labels += batch["label"].to_pylist()
                spans.append(np.column_stack([batch["offset"].to_numpy(), batch["length"].to_numpy()]).astype(np.int64))
            numbered = NUMBERED in (schema.metadata or {})
        found = np.concatenate(spans)
        if found.min(initial=0) < 0:
            raise DataError(f"{path}: a place before the beginning in it: {again}")
        if found.max(initial=0) > size or found.sum(1).max(initial=0) > size:
            raise DataError(f"{shard}: truncated, {size:,} bytes are fewer than {path} says: pack it again")
        names = [one.decode("utf-8", "surrogateescape") if isinstance(one, bytes) else one for one in ids]
        return cls(names, labels, found, numbered)


def _is_no_text(name: str) -> bool:
    return not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name)


@dataclass(frozen=True)
class Sample:
    """An image to be written.  number: its class's position in the list of classes."""

    id: str
    label: str
    number: int
    content: bytes


def _suffix_of(content: bytes) -> str:
    """By which an image of one of the formats that are read is known in a tar."""
    if content[4:8] == b"ftyp":
        return "avif" if content[8:11] == b"avi" else "heic"
    return next((suffix for start, suffix in _SUFFIXES if content.startswith(start)), "tif")


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """A tar file and its index, each whole or absent, the index last; returns the count of images."""
    ids, labels, spans = [], [], []
    with writing_whole(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples):
            suffix = _suffix_of(sample.content)
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


class _Heads:
    """A tar file as tarfile reads it: piece by piece, of which none is larger than the head of a file may be."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEAD_BYTES:
            raise tarfile.ReadError(f"a head of {size:,} bytes")
        content = self._read(size)
        if size > tarfile.BLOCKSIZE and _LONG_NUMBER.search(content):
            raise tarfile.ReadError("a head with a number too long")  # in which tarfile would look for others
        return content


def scan(file: BinaryIO, name: str) -> Table:
    """What is in a tar file. Raises DataError if it is damaged, or an image has no label."""
    found: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    left: list[str] = []
    numbered = True
    end = 0
    try:
        with tarfile.open(fileobj=_Heads(file), mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # else each stays in memory
                if member.size < 0:
                    raise DataError(f"{name}: {member.name!a} has less than no bytes, so it is no whole tar file")
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
                        raise DataError(f"{name}: two images have the key {key!r}")
                    if member.issparse():
                        raise DataError(f"{name}: {member.name!a} is stored without its zeros: write the file anew")
                    found[key] = (member.name, member.offset_data, member.size)
                elif dot + extension in LABELS and key not in labels:
                    if member.size > MAX_LABEL_BYTES:
                        raise DataError(f"{name}: {member.name} is too large for a label")
                    file.seek(member.offset_data)
                    label = _label(file.read(member.size), dot + extension, f"{name}/{member.name}")
                    if label is not None:
                        labels[key] = label
                        numbered = numbered and extension == "cls"
                elif suffix in OTHER_SUFFIXES:
                    left.append(member.name)
            size = file.seek(0, os.SEEK_END)
    except DataError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise DataError(f"{name}: not a whole tar file ({error})") from error
    if left:
        log.warning("%s: %d images of kinds that are not read are left out (%s)", name, len(left), some(left))
    if end > size:
        raise DataError(f"{name}: truncated, {size:,} of at least {end:,} bytes")
    bare = next((one for key, (one, _, _) in found.items() if key not in labels), None)
    if bare is not None:
        raise DataError(f"{name}: {bare} has no label: expected a {', '.join(LABELS)} file beside it")
    spans = np.array([span[1:] for span in found.values()], dtype=np.int64).reshape(-1, 2)
    return Table([one for one, _, _ in found.values()], [labels[key] for key in found], spans, numbered)


def _label(content: bytes, suffix: str, name: str) -> str | None:
    """The label in a file beside an image; None if it holds none."""
    try:
        text = class_of(content.decode())
        if suffix != ".json":
            return text or None
        noted: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not a label ({error})") from error
    if isinstance(noted, dict):
        noted = next((noted[key] for key in ("label", "class", "cls") if key in noted), None)
    try:
        return class_of(noted) or None
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def _index_of(file: str) -> Table:
    size, stamp = _size_and_stamp(file)
    packed = f"{INDEX}/{posixpath.splitext(posixpath.basename(file))[0]}.parquet"
    content = _beside(file, packed, MAX_INDEX_BYTES)
    if content is not None:
        return Table.from_parquet(content, packed if is_address(file) else str(Path(file).parent / packed), file, size)
    kept = cache_folder() / INDEX / f"{hashlib.sha256(f'{file} {size} {stamp} 3'.encode()).hexdigest()[:32]}.parquet"
    try:
        return Table.from_parquet(read_regular(kept, MAX_INDEX_BYTES, DataError), str(kept), file, size)
    except FileNotFoundError:
        pass
    except DataError as error:
        log.warning("%s; %s is scanned anew", error, file)
    with _system(file).open(file, "rb") if is_address(file) else open_regular(file, 1 << 62, DataError) as opened:
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
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{file}: {kind_of_file(status.st_mode)}, not a tar file")
        return status.st_size, str(status.st_mtime_ns)
    except DataError:
        raise
    except Exception as error:  # each fsspec backend has errors of its own
        raise DataError(f"{file}: cannot be reached ({error})") from error


def _beside(file: str, name: str, most: int) -> bytes | None:
    """A file of at most `most` bytes in the folder of another, or below it; None if there is none."""
    where = posixpath.join(posixpath.dirname(file), name)
    try:
        if not is_address(file):
            return read_regular(Path(file).parent / name, most, DataError)
        found: bytes = _system(file).cat_file(where, end=most + 1)
        if len(found) > most:
            raise DataError(f"{where}: more than the {most:,} bytes allowed")
        return found
    except FileNotFoundError:
        return None
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}: cannot be read ({error})") from error


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
