"""`atnet study`"""

import math
from pathlib import Path

from rich.console import Console

from atnet.cli.tables import table_of
from atnet.errors import ConfigError
from atnet.files import quoted


def study(
    study: Path, *, data: str | None = None, out: Path | None = None, shard: str = "1/1", check: bool = False
) -> None:
    """Run a study: many short trainings of one recipe with changes, in a queue that goes on where it stopped.

    Parameters
    ----------
    study
        A YAML file: recipe and options of all runs, and variants (of several models), factors and runs, or a search:
        ranges that Optuna draws options from.
    data
        The images, if they lie elsewhere than the study says.
    out
        The folder for records, results.csv and study.png; the study's name without .yaml if not given.
    shard
        Which of several processes side by side this one is: 2/3 runs every third trial, from the second on.
    check
        List the runs and what each costs; train nothing.
    """
    from atnet.study.search import is_search
    from atnet.study.study import read_shard

    out, console = out or study.with_suffix(""), Console(highlight=False, width=120)
    if out == study:
        raise ConfigError(f"{study}: its records go to a folder of its name without .yaml; give another --out")
    (_search if is_search(study) else _compare)(study, data, out, read_shard(shard), check, console)
    if check:
        console.print("Nothing was trained. Next: the same command without --check")


def _compare(path: Path, data: str | None, out: Path, shard: tuple[int, int], check: bool, console: Console) -> None:
    from atnet.study.study import compare_trials, costs, read_results, read_study, run_study, write_results
    from atnet.viz.plots import draw_study

    plan = read_study(path, data)
    if check:
        console.print(table_of(*costs(plan, out)))
        return
    for _ in run_study(plan, out, shard):
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


def _search(path: Path, data: str | None, out: Path, shard: tuple[int, int], check: bool, console: Console) -> None:
    from atnet.study.search import importances, read_search, run_search, shown, write_best
    from atnet.viz.plots import draw_study

    search = read_search(path, data)
    if check:
        console.print(table_of(["Option", "Drawn from"], [[name, str(one)] for name, one in search.ranges.items()]))
        console.print(f"{search.trials} trials by {search.sampler}{', the poorer ones cut short' * search.halving}")
        return
    tried = run_search(search, out, shard)
    best, written = write_best(search, tried, out), "results.csv, study.db"
    if best is None:
        raise ConfigError(f"{out}: no trial was trained to its end; see {out}/results.csv")
    ranked = sorted((one for one in tried if one.state == "done"), key=lambda one: -(one.top1 or 0))[:5]
    rows = [[one.key, f"{one.top1:.2f}", *(shown(one.values[name]) for name in search.ranges)] for one in ranked]
    console.print(table_of(["Trial", "Top-1", *search.ranges], rows))
    if bars := importances(search, out):
        rows = [[bar.name, f"{bar.value:.0f}%"] for bar in bars]
        console.print(table_of(["Option", "Share of the differences"], rows))
        draw_study(bars, out / "study.png", "share of the differences between trials, %")
        written += ", study.png"
    early = sum(one.state == "ended early" for one in tried)
    console.print(
        f"Written: {out}/best.yaml, {written}: {len(tried)} of {search.trials} trials, {early} ended early",
        markup=False,
        soft_wrap=True,
    )
    again = f" --data {quoted(Path(data))}" if data else ""
    console.print(f"Next: atnet train {quoted(out)}/best.yaml{again}", markup=False, soft_wrap=True)
