"""Any source as checked tar shards with an index: fewer, larger files, each image as small as training needs it."""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atnet.data.classes import spreadsheet_safe
from atnet.data.decode import decode
from atnet.data.preprocess import resize_shorter
from atnet.data.samples import Samples, hash_of
from atnet.data.shards import CLASSES, MAX_INDEX_BYTES, Sample, Table, index_path, write_shard
from atnet.errors import ConfigError, DataError
from atnet.files import csv_table, read_regular, read_text, renamed, write_whole
from atnet.progress import progress_bar

SETTINGS = "pack.json"
SUMS = "SHA256SUMS"
BAD_FILES = "bad_files.csv"


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What `pack` wrote.  bad: images that could not be read, with the reason; they are in no shard."""

    out: Path
    shards: int
    images: int
    bytes: int
    bad: tuple[tuple[str, str], ...]


def pack(parts: dict[str, Samples], out: Path, *, size: int = 256, quality: int = 90, shard: int = 2000) -> Packed:
    """Writes each part as out/PART-000000.tar and so on; what is there already, of a pack broken off, is kept.

    size: an image whose shorter side is longer, in pixels, is resized to it and saved as JPEG of the quality;
    others keep their bytes.  0: all do.  shard: images in a tar file.
    Each image is decoded once, so that a broken one is known now.  Ids, labels and order are those of the parts.
    Raises ConfigError if out holds something else.
    """
    settings = {
        "format": 1,
        "size": size,
        "quality": quality,
        "shard": shard,
        "images": {part: samples.digest for part, samples in parts.items()},
    }
    _begin(out, settings, next(iter(parts.values())).classes)
    count, written, bad, sums = 0, 0, [], []
    with (
        progress_bar("Packing", sum(map(len, parts.values()))) as advance,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        for part, samples in parts.items():
            names = list(samples.ids)
            # Mixed, for those who read shards one after the other; the same mix each time.
            mixed = sorted(range(len(names)), key=[hash_of(name) for name in names].__getitem__)
            for number, begin in enumerate(range(0, len(mixed), shard)):
                members = mixed[begin : begin + shard]
                path = out / f"{part or 'all'}-{number:06}.tar"

                def made(index: int) -> Sample | tuple[str, str]:
                    sample = _sample(samples, index, size, quality)  # noqa: B023, called in this turn
                    advance(1)
                    return sample

                if index_path(path).is_file():
                    content = read_regular(index_path(path), MAX_INDEX_BYTES, DataError)
                    known = set(Table.from_parquet(content, str(index_path(path)), str(path), path.stat().st_size).ids)
                    again = [index for index in members if names[index] not in known]
                    advance(len(members) - len(again))
                    bad += [found for found in map(made, again) if not isinstance(found, Sample)]
                    kept = len(known)
                else:
                    tried = list(threads.map(made, members))
                    bad += [found for found in tried if not isinstance(found, Sample)]
                    kept = write_shard(path, (found for found in tried if isinstance(found, Sample)))
                with path.open("rb") as file:
                    sums.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
                count += kept
                written += path.stat().st_size
    write_whole(out / SUMS, "".join(sums).encode())
    if bad:
        write_bad_files(out / BAD_FILES, [("", *found) for found in bad])
    return Packed(out=out, shards=len(sums), images=count, bytes=written, bad=tuple(bad))


def write_bad_files(path: Path, bad: Iterable[tuple[str, str, str]]) -> None:
    """A CSV of images that cannot be read: part, image, reason."""
    rows = [
        {"part": part, "image": spreadsheet_safe(image), "reason": spreadsheet_safe(reason)}
        for part, image, reason in bad
    ]
    write_whole(path, csv_table(rows).encode("utf-8", "backslashreplace"))


def _begin(out: Path, settings: dict[str, Any], classes: tuple[str, ...]) -> None:
    path = out / SETTINGS
    if out.exists() and not path.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not empty; choose another folder")
    if path.is_file():
        try:
            known = renamed(json.loads(read_text(path)))
        except ConfigError:
            raise
        except (ValueError, RecursionError, AttributeError) as error:
            raise ConfigError(f"{path}: damaged ({error}); choose another folder") from error
        if known != settings:
            raise ConfigError(f"{out}: holds a pack of other images or settings; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    unsuited = next((name for name in classes if not name.strip() or len(name.splitlines()) != 1), None)
    if unsuited is not None:
        raise DataError(f"{unsuited!r}: a class in a list of classes needs a name of one line: rename it")
    write_whole(out / CLASSES, "".join(f"{name}\n" for name in classes).encode())
    write_whole(path, json.dumps(settings, indent=2).encode())


def _sample(samples: Samples, index: int, size: int, quality: int) -> Sample | tuple[str, str]:
    """The image as it is packed; or its id and why it cannot be read."""
    name, label = samples.ids[index], int(samples.labels[index])
    try:
        content = samples.read_bytes(index)
        image = decode(content, samples.locate(index))
    except DataError as error:
        return name, str(error)
    if size and min(image.size) > size:
        stream = io.BytesIO()
        resize_shorter(image, size, "bicubic").save(stream, "JPEG", quality=quality)
        content = stream.getvalue()
    return Sample(name, samples.classes[label], label, content)
