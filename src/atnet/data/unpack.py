"""Parquet files of images, unpacked once into tar shards: Parquet is not made for random access."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from atnet.data.parquet import class_names, read_images
from atnet.data.shards import CLASSES, Sample, index_path, write_shard
from atnet.files import cache_folder, write_whole
from atnet.progress import progress_bar


def unpack(files: list[Path]) -> list[str]:
    """The images of Parquet files as shards in the cache folder, made once: Parquet is not made for random access."""
    shards = []
    for file in files:
        status = file.stat()
        key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:32]
        shard = cache_folder() / "unpacked" / key / "images.tar"
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
            for image, label, content in read_images(file):
                advance(len(content))
                yield Sample(image, label, position.get(label, 0), content)

        write_shard(shard, samples())
