"""`atnet bench`"""

import itertools
import sys
from pathlib import Path
from typing import Literal

import yaml
from rich.console import Console
from rich.table import Table


def bench(
    *models: str,
    size: tuple[int, ...] = (224,),
    batch: tuple[int, ...] = (1,),
    engine: tuple[Literal["onnx", "eager", "compile", "train"], ...] = ("onnx",),
    threads: tuple[int, ...] = (1,),
    rounds: int = 7,
    seconds: float = 0.5,
    reference: str | None = None,
    recipe: Path | None = None,
    out: Path | None = None,
    document: Path | None = None,
    title: str = "",
) -> None:
    """Time networks side by side: `atnet bench xxxs edgenext_xx_small mobilenetv3_small_100`.

    Each runs in a process of its own, with fresh weights; they take turns in rounds, and ratios are taken
    within a round.

    Parameters
    ----------
    models
        AT-Net sizes and timm architectures.
    size
        Side of the input in pixels; more than one may be given.
    batch
        Pictures at a time; more than one may be given.
    engine
        onnx (ONNX Runtime), eager, compile (torch), train (a training step); more than one may be given.
    threads
        CPU threads; more than one may be given.
    rounds
        How often each network has its turn.
    seconds
        Length of a turn; three runs at least.
    reference
        The model that ratios are taken to; the first if not given.
    recipe
        A recipe for the training step.
    out
        A new folder for bench.csv, bench.png and machine.yaml.
    document
        A Markdown file with markers for the title, between which the table is put.
    title
        What the document calls the table.
    """
    from atnet.errors import ConfigError
    from atnet.measure.bench import bench as run
    from atnet.measure.bench import machine, machine_line, publish, to_csv
    from atnet.show.pictures import draw_bench

    if not models:
        raise ConfigError("no model given: atnet bench xxxs mobilenetv3_small_100")
    if out is not None and out.exists():
        raise ConfigError(f"{out}: exists; choose another --out")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    found = []
    for one, side, count, pictures in itertools.product(engine, size, threads, batch):
        timings = run(
            models, size=side, batch=pictures, engine=one, threads=count, rounds=rounds, seconds=seconds,
            reference=reference, recipe=recipe,
        )  # fmt: skip
        found += timings
        table = Table("model", box=None, header_style="bold")
        for name in ("params", "macs", "median ms", "p95", "images/s", "ratio", "first s", "memory", "disk"):
            table.add_column(name, justify="right")
        for t in timings:
            table.add_row(
                t.model, f"{t.cost.parameters / 1e6:.2f}M", f"{t.cost.macs / 1e6:,.0f}M", f"{t.median:.2f}",
                f"{t.p95:.2f}", f"{t.images_per_s:.0f}", f"{t.ratio:.2f} ({t.ratio_low:.2f}-{t.ratio_high:.2f})",
                f"{t.first:.1f}", f"{t.peak:.0f} MB", f"{t.disk:.1f} MB",
            )  # fmt: skip
        console.print(f"\n{one}, {side} px, batch {pictures}, {count} thread{'s' * (count > 1)}", style="bold")
        console.print(table)
    console.print(f"\n{machine_line()}", markup=False, soft_wrap=True)
    if document is not None:
        picture = publish(found, document, title)
        draw_bench(found, picture)
        console.print(f"Written: {document}, {picture}", markup=False, soft_wrap=True)
    if out is None:
        console.print("Next: the same with --out FOLDER keeps the table and a picture", markup=False)
        return
    out.mkdir(parents=True)
    (out / "bench.csv").write_text(to_csv(found), encoding="utf-8")
    (out / "machine.yaml").write_text(yaml.safe_dump(machine(), sort_keys=False), encoding="utf-8")
    draw_bench(found, out / "bench.png")
    console.print(f"Written: {out}/bench.csv, bench.png, machine.yaml", markup=False, soft_wrap=True)
