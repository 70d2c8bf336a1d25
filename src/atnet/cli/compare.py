"""`atnet compare`"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atnet.data.classes import printable
from atnet.files import quoted


def compare(
    *runs: Path,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Lay finished runs side by side: figures, what differs, seed spread, McNemar's test on the same images.

    Parameters
    ----------
    runs
        Folders of finished runs, two or more.
    as_json
        Print JSON.
    """
    from atnet.progress import duration
    from atnet.run.record import kept_weights
    from atnet.study.compare import compare as run

    found = run(runs)
    if as_json:
        print(json.dumps(asdict(found), indent=2, default=str, allow_nan=False))
        return
    console = Console(highlight=False)
    table = Table("", box=None, header_style="bold")
    figures: list[tuple[str, Callable[[dict[str, Any], str], str]]] = [
        ("top-1 %", lambda record, kept: f"{record['top1'][kept]:.2f}"),
        ("top-5 %", lambda record, kept: f"{record['top5'][kept]:.2f}"),
        ("loss", lambda record, kept: f"{record['loss'][kept]:.4f}"),
        ("weights", lambda record, kept: "moving average" if kept == "ema" else "last"),
        ("model", lambda record, kept: printable(record["model"])),
        ("parameters", lambda record, kept: f"{record['parameters'] / 1e6:.2f}M"),
        ("data", lambda record, kept: f"{printable(record['data'])} at {record['size']} px"),
        ("epochs", lambda record, kept: str(record["epochs"])),
        ("seed", lambda record, kept: str(record["seed"])),
        ("time", lambda record, kept: duration(record["seconds"])),
        ("images/s", lambda record, kept: f"{record['images_per_s']:.0f}"),
    ]
    for entry in found.entries:
        table.add_column(Text(printable(str(entry.run))), overflow="fold")
    for name, figure in figures:
        if name == "top-5 %" and all(entry.record["classes"] <= 5 for entry in found.entries):
            continue
        cells = (figure(entry.record, kept_weights(entry.record)) for entry in found.entries)
        table.add_row(name, *map(Text, cells))
    console.print(table)

    if found.settings:
        differs = Table("setting", box=None, header_style="bold")
        for entry in found.entries:
            differs.add_column(Text(printable(str(entry.run))), overflow="fold")
        for name, values in found.settings.items():
            differs.add_row(name, *(Text(printable(str(value))) for value in values))
        console.print("\nSettings that differ", style="bold")
        console.print(differs)

    console.print("\nRuns that differ in the seed alone", style="bold")
    spreads = [group.spread for group in found.groups if group.spread is not None]
    for group in found.groups:
        named = ", ".join(printable(str(entry.run)) for entry in group.entries)
        spread = "one seed" if group.spread is None else f"± {group.spread:.2f} over {len(group.entries)} runs"
        console.print(f"  {group.mean:.2f} {spread}: {named}", markup=False, soft_wrap=True)

    console.print("\nPairs", style="bold")
    for pair in found.pairs:
        line = f"  {printable(str(pair.second))} against {printable(str(pair.first))}: {pair.difference:+.2f} points"
        if any({pair.first, pair.second} <= {entry.run for entry in group.entries} for group in found.groups):
            line += ", the same settings"
        elif spreads:
            widest = max(spreads)
            line += f", {abs(pair.difference) / widest:.1f} times the seed spread" if widest else ", seed spread 0"
        if pair.p is None:
            line += "; other validation images, so no test"
        else:
            chance = "more than chance" if pair.p < 0.05 else "may be chance"
            line += (
                f"; {pair.only_second} images right in it alone, {pair.only_first} in the other alone, "
                f"McNemar p = {pair.p:.2g}: {chance}"
            )
        console.print(line, markup=False, soft_wrap=True)
    if not spreads:
        console.print("The seed spread is not known: repeat a run with --seed 1 and --seed 2, and compare all.")
    best = max(found.entries, key=lambda entry: entry.top1)
    console.print(f"Next: atnet predict IMAGE --weights {quoted(best.run)}", markup=False, soft_wrap=True)
