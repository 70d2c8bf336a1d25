"""`atnet study`"""

import math
from pathlib import Path

from rich.console import Console

from atnet.cli.tables import table_of
from atnet.files import quoted


def study(
    study: Path, *, data: str | None = None, out: Path | None = None, shard: str = "1/1", check: bool = False
) -> None:
    """Run a study: many short trainings of one recipe with changes, in a queue that goes on where it stopped.

    Parameters
    ----------
    study
        A YAML file: recipe, options and seeds of all runs, and variants (of several models), or factors and runs.
    data
        The images, if they lie elsewhere than the study says.
    out
        The folder for records, results.csv and study.png; the study's name without .yaml if not given.
    shard
        Which of several processes side by side this one is: 2/3 runs every third trial, from the second on.
    check
        List the runs and what each costs; train nothing.
    """
    from atnet.study.study import (
        compare_trials,
        costs,
        read_results,
        read_shard,
        read_study,
        run_study,
        write_results,
    )
    from atnet.viz.plots import draw_study

    plan, out = read_study(study, data), out or study.with_suffix("")
    console = Console(highlight=False, width=120)
    if check:
        console.print(table_of(*costs(plan, out)))
        console.print("Nothing was trained. Next: the same command without --check")
        return
    for _ in run_study(plan, out, read_shard(shard)):
        write_results(read_results(plan, out), out / "results.csv")
    results = read_results(plan, out)
    if len(results) < len(plan.trials):
        console.print(f"Written: {out}/results.csv, {len(results)} of {len(plan.trials)} records", soft_wrap=True)
        console.print("Next: the same command for the other shards; the last one compares", soft_wrap=True)
        return
    bars = compare_trials(plan, results)
    heads = ["Factor", "Points", "Margin"] if plan.factors else ["Variant", "Top-1", "Spread"]
    rows = [[bar.name, f"{bar.value:.2f}", "" if math.isnan(bar.spread) else f"{bar.spread:.2f}"] for bar in bars]
    console.print(table_of(heads, rows))
    draw_study(bars, out / "study.png", "points of top-1" if plan.factors else "top-1, %")
    console.print(f"Written: {out}/results.csv, study.png, {len(results)} records", markup=False, soft_wrap=True)
    console.print(f"Next: commit {quoted(out)}, with what it decides", markup=False, soft_wrap=True)
