"""`atnet bench`"""

import itertools
import sys
from pathlib import Path
from typing import Literal

import yaml
from rich.console import Console

from atnet.cli.tables import table_of


def bench(
    *models: str,
    size: tuple[int, ...] = (224,),
    batch: tuple[int, ...] = (1,),
    engine: tuple[Literal["onnx", "eager", "compile", "train", "train-compile"], ...] = (),
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu",
    threads: tuple[int, ...] = (1,),
    rounds: int = 7,
    seconds: float = 0.5,
    reference: str | None = None,
    recipe: Path | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
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
        AT-Net sizes and timm architectures; or weights, as --weights names them, for the architecture that they are of.
    size
        Side of the input in pixels; more than one may be given.
    batch
        Images at a time; more than one may be given.
    engine
        onnx (ONNX Runtime), eager, compile (torch), train, train-compile (a training step); more than one may be
        given. Not given: onnx, or eager with another device than cpu.
    device
        Where torch computes; by a GPU's own clock, after a warm-up, in bf16 if --precision says so.
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
    precision
        Of the training step, as in `atnet train`, and on a GPU of inference too.
    out
        A new folder for bench.csv, bench.png and machine.yaml.
    document
        A Markdown file with markers for the title, between which the table is put.
    title
        What the document calls the table.
    """
    from atnet.bench.bench import bench as run
    from atnet.bench.bench import columns_of, machine, machine_line, publish, roof_of, to_csv
    from atnet.device import pick_device
    from atnet.errors import ConfigError
    from atnet.files import write_whole
    from atnet.progress import counted
    from atnet.viz.plots import draw_bench

    if not models:
        raise ConfigError("no model given: atnet bench xxxs mobilenetv3_small_100")
    if out is not None and out.exists():
        raise ConfigError(f"{out}: exists; choose another --out")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    found = []
    chosen = pick_device(device).type
    engine = engine or ("onnx" if chosen == "cpu" else "eager",)
    for one, side, count, images in itertools.product(engine, size, threads, batch):
        timings = run(
            models, size=side, batch=images, engine=one, threads=count, rounds=rounds, seconds=seconds,
            reference=reference, recipe=recipe, precision=precision, device=chosen,
        )  # fmt: skip
        found += timings
        where = counted(count, "thread") if chosen == "cpu" else chosen
        console.print(f"\n{one}, {side} px, batch {images}, {where}", style="bold")
        console.print(table_of(*columns_of(timings)))
    roofs = [roof_of(one, count, precision, chosen) for one, count in itertools.product(engine, threads)]
    notes = "; ".join([machine_line(), *dict.fromkeys(map(str, roofs))])
    console.print(f"\n{notes}", markup=False, soft_wrap=True)
    if document is not None:
        plot = publish([columns_of(found)], notes, document, title)
        draw_bench(found, plot)
        console.print(f"Written: {document}, {plot}", markup=False, soft_wrap=True)
    if out is None:
        console.print("Next: the same with --out FOLDER keeps the table and a plot", markup=False)
        return
    out.mkdir(parents=True)
    write_whole(out / "bench.csv", to_csv(found).encode())
    write_whole(out / "machine.yaml", yaml.safe_dump(machine(), sort_keys=False).encode())
    draw_bench(found, out / "bench.png")
    console.print(f"Written: {out}/bench.csv, bench.png, machine.yaml", markup=False, soft_wrap=True)
