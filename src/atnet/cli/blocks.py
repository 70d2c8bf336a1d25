"""`atnet blocks`"""

import sys
from pathlib import Path

from rich.console import Console

from atnet.cli.tables import table_of


def blocks(
    *,
    size: int = 224,
    threads: int = 1,
    rounds: int = 7,
    seconds: float = 0.1,
    document: Path | None = None,
    title: str = "blocks",
) -> None:
    """Time AT-Net's building blocks at each stride and width, so that a layout is costed before it is trained.

    One image, ONNX Runtime, fp32. Then the sizes of the family, measured beside the sums of their blocks.

    Parameters
    ----------
    size
        Side of the image in pixels.
    threads
        CPU threads.
    rounds
        How often each has its turn.
    seconds
        Length of a turn; three runs at least.
    document
        A Markdown file with markers for the title, between which the tables are put.
    title
        What the document calls the tables.
    """
    from atnet.bench.bench import machine_line, publish
    from atnet.bench.blocks import bench_blocks, columns_of_blocks, columns_of_costed
    from atnet.bench.roof import measure_roof
    from atnet.viz.plots import draw_blocks

    found, costed = bench_blocks(size=size, threads=threads, rounds=rounds, seconds=seconds)
    tables = [columns_of_blocks(found), columns_of_costed(costed)]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for table in tables:
        console.print(table_of(*table), "")
    notes = f"{machine_line()}; {measure_roof(threads)}"
    console.print(notes, markup=False, soft_wrap=True)
    if document is None:
        console.print('Next: atnet bench xxxs, or a layout of your own: atnet.create_model("xxxs", depths=(2, 8, 11))')
        return
    plot = publish(tables, notes, document, title)
    draw_blocks(found, plot)
    console.print(f"Written: {document}, {plot}", markup=False, soft_wrap=True)
