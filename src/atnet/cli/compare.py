"""`atnet compare`"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atnet.data.classes import printable


def compare(
    *runs: Path,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Lay finished runs side by side: figures, what differs, seed spread, McNemar's test on the same pictures.

    Parameters
    ----------
    runs
        Folders of finished runs, two or more.
    as_json
        Print JSON.
    """
    from atnet.measure.compare import compare as run
    from atnet.progress import duration

    found = run(runs)
    if as_json:
        print(json.dumps(asdict(found), indent=2, default=str))
        return
    console = Console(highlight=False)
    table = Table(
        *("run", "model", "params", "data", "size", "epochs", "seed", "top-1 %", "top-5 %", "loss", "time", "images/s"),
        box=None, header_style="bold",
    )  # fmt: skip
    for entry in found.entries:
        record = entry.record
        kept = "ema" if "ema" in record["top1"] else "last"
        table.add_row(
            Text(printable(str(entry.run))), Text(printable(record["model"])), f"{record['parameters'] / 1e6:.2f}M",
            Text(printable(record["data"])), str(record["size"]), str(record["epochs"]), str(record["seed"]),
            f"{entry.top1:.2f}", f"{record['top5'][kept]:.2f}", f"{record['loss'][kept]:.4f}",
            duration(record["seconds"]), f"{record['images_per_s']:.0f}",
        )  # fmt: skip
    console.print(table)

    if found.settings:
        differs = Table("setting", box=None, header_style="bold")
        for entry in found.entries:
            differs.add_column(Text(printable(str(entry.run))))
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
        if spreads:
            widest = max(spreads)
            line += f", {abs(pair.difference) / widest:.1f} times the seed spread" if widest else ", seed spread 0"
        if pair.p is None:
            line += "; other validation pictures, so no test"
        else:
            chance = "more than chance" if pair.p < 0.05 else "may be chance"
            line += (
                f"; {pair.only_second} pictures right in it alone, {pair.only_first} in the other alone, "
                f"McNemar p = {pair.p:.2g}: {chance}"
            )
        console.print(line, markup=False, soft_wrap=True)
    if not spreads:
        console.print("The seed spread is not known: repeat a run with --seed 1 and --seed 2, and compare all.")
    console.print(f"Next: atnet report {found.entries[0].run}", markup=False, soft_wrap=True)
