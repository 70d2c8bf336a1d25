"""`atnet pack`"""

from pathlib import Path
from typing import Literal

from rich.console import Console

from atnet.data.classes import printable
from atnet.files import quoted


def pack(
    source: str,
    out: Path,
    /,
    *,
    size: int = 256,
    quality: int = 90,
    shard: int = 2000,
    classes: str = "",
    mismatch: Literal["error", "ignore"] = "error",
) -> None:
    """Write any source as checked tar shards with an index, for faster training and fewer files.

    A pack that was broken off goes on where it was.

    Parameters
    ----------
    source
        What `atnet train --data` takes: a folder, a list, ImageNet's archives unpacked, Parquet files, shards.
    out
        The folder, which must be absent, empty, or hold the same pack, unfinished.
    size
        Shorter side in pixels to which larger images are reduced; 0 keeps every image's bytes.
    quality
        Of the JPEGs that reduced images become, 1 to 95.
    shard
        Images in a file.
    classes
        A text file with a class on each line, in the order of the labels; else classes.txt in the source, or by name.
    mismatch
        ignore leaves images of classes out that training lacks.
    """
    from atnet.data.pack import BAD_FILES, SUMS
    from atnet.data.pack import pack as run
    from atnet.data.sources import open_whole

    done = run(open_whole(source, classes, mismatch), out, size=size, quality=quality, shard=shard)
    console = Console(highlight=False)
    console.print(
        f"Written to {out}: {done.images:,} images in {done.shards} shards, {done.bytes / 1e6:,.0f} MB, "
        f"their index, classes.txt and {SUMS}",
        markup=False,
        soft_wrap=True,
    )
    if done.bad:
        console.print(
            f"{len(done.bad):,} images could not be read, so they are left out: {out / BAD_FILES}", markup=False
        )
        for _, reason in done.bad[:5]:
            console.print(f"  {printable(reason)}", markup=False, soft_wrap=True)
    console.print(f"Next: atnet train --data {quoted(out)}", markup=False, soft_wrap=True)
