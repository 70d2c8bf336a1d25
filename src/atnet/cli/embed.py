"""`atnet embed`"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atnet.data.classes import printable


def embed(
    source: str,
    /,
    *,
    weights: Path | None = None,
    out: Path | None = None,
    like: Path | None = None,
    top: int = 10,
    map_: Annotated[Path | None, Parameter(name="--map")] = None,
    size: int | None = None,
    batch: int = 64,
    workers: int = 2,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 0,
    model: str = "",
) -> None:
    """Write what the network knows of each image as a vector, find images that are alike, draw a map of them all.

    Parameters
    ----------
    source
        A folder of images, with class folders or without, or whatever else `atnet train --data` takes.
    weights
        A run, a folder or a weights file, or pretrained ones: timm:resnet18, hf-hub:user/name, local-dir:FOLDER; the
        newest run if not given, and before there is one, xxxs.general, which comes with AT-Net.
    out
        A Parquet file with path, part, class, name and vector; vectors.parquet if neither --like nor --map is given.
    like
        An image: print those most like it.
    top
        How many of them.
    map_
        A PNG: the images on a plane, like ones near each other.
    size
        Side of the input in pixels; that of the training if not given.
    batch
        Images at a time.
    workers
        Loader processes.
    device
        auto takes cuda, then mps, then cpu.
    threads
        CPU threads of the network; 0 is all.
    model
        The architecture of a --weights file that says nothing of itself: resnet18, for example.
    """
    from atnet.device import use_threads
    from atnet.errors import DataError
    from atnet.files import require_new
    from atnet.inference.embed import embed as run

    use_threads(threads)
    if not like and not map_:
        out = out or Path("vectors.parquet")
    for path, option in ((out, "--out"), (map_, "--map")):
        if path:
            require_new(path, option)
    found = run(
        source, weights, like=like, top=top, size=size, batch=batch, workers=workers, model=model, device=device
    )
    console = Console(highlight=False)
    count, dim = found.vectors.shape
    console.print(f"{count:,} images, vectors of {dim} numbers, by {printable(found.info.model)}", markup=False)
    if found.neighbours:
        table = Table("alike", "class", "image", box=None, header_style="bold")
        for one in found.neighbours:
            table.add_row(f"{one.similarity:.3f}", Text(printable(one.name)), Text(printable(one.image)))
        console.print(table, soft_wrap=True)
    if out:
        found.write(out)
        console.print(f"Written: {out} ({out.stat().st_size / 1e6:.1f} MB)", markup=False, soft_wrap=True)
    if map_:
        from atnet.viz.embed import draw_map

        draw_map(found, map_)
        console.print(f"Written: {map_}", markup=False, soft_wrap=True)
    console.print("Next: atnet embed FOLDER --like IMAGE, or --map FILE.png", soft_wrap=True)
    if found.bad:
        shown = "\n  ".join(printable(reason) for _, reason in found.bad[:10])
        more = f"\n  and {len(found.bad) - 10:,} more" if len(found.bad) > 10 else ""
        raise DataError(f"{len(found.bad):,} images could not be read and were left out:\n  {shown}{more}")
