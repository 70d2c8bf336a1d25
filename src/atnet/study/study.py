"""A study: one recipe with changes, run after run, in a queue that goes on where it stopped.

Either variants, of one model or of several, each run on every seed; or factors, each off or on, in a two-level
fractional factorial: a factor's effect is the mean of the half of the runs where it is on, less that of the other half.
"""

import itertools
import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard
from scipy.stats import t

from atnet.config import Config, by_section, merged, read_yaml, to_plain
from atnet.errors import AtnetError, ConfigError, TrainingError
from atnet.files import csv_table, write_whole
from atnet.models.cost import cost_of
from atnet.run.record import RECORD, checkpoints, kept_weights, open_run, publish_record, read_json, read_record
from atnet.study.compare import WHERE, flat_settings
from atnet.training.faults import FOLDER as FAULTS
from atnet.training.loop import for_others, resume_run, train
from atnet.training.plan import configure, named

log = logging.getLogger("atnet")

KEYS = ("recipe", "options", "seeds", "models", "variants", "factors", "runs")
UNRELATED = {"model", "data.source"} | WHERE
"""Options that may be others where a record is made again."""
Result = tuple["Trial", dict[str, Any]]
"""A trial and the record of its run."""

Shard = tuple[int, int]
"""Which of how many processes, from 1 on."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a study.  on: the factors that are on, none where the study has variants."""

    name: str
    seed: int
    options: dict[str, Any]
    on: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """What its record and its run are called."""
        return f"{self.name.replace(' ', '-')}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """The trials of a study file, in order.  factors: their names, none where it has variants."""

    recipe: Path
    trials: tuple[Trial, ...]
    factors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of what came out: a variant's top-1 in percent, or the points that a factor adds.

    spread: a variant's standard deviation over seeds, nan of one seed; of a factor, how many points chance
    alone would reach one time in twenty.
    """

    name: str
    value: float
    spread: float


def read_study(path: str | Path, data: str | None = None) -> Study:
    """The study of a YAML file: recipe, options and seeds of all runs, and variants, or factors and runs.

    data: where the images are, if not where the file says.
    In a variant or a factor, `model: +kernel=5` is added to the model's name; other options replace those
    below.  Of several models, by name and with options of their own, each is run in every variant.
    Raises ConfigError naming what does not fit, before anything is run.
    """
    path = Path(path)
    values = read_yaml(path)
    unknown = [name for name in values if name not in KEYS]
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]} is nothing of a study; use {', '.join(KEYS)}")
    for name in ("options", "models", "variants", "factors"):
        if not isinstance(values.get(name, {}), dict):
            raise ConfigError(f"{path}: {name} is a mapping of names to options, {{}} where there are none")
    if "recipe" not in values or ("variants" in values) == ("factors" in values):
        raise ConfigError(f"{path}: a study has a recipe, and variants, factors or a search")
    if "models" in values and "factors" in values:
        raise ConfigError(f"{path}: models go with variants; a study of factors has one model, in its options")
    recipe, seeds, runs = Path(str(values["recipe"])), values.get("seeds", [0]), values.get("runs", 32)
    if not (isinstance(seeds, list) and seeds and all(isinstance(seed, int) for seed in seeds)):
        raise ConfigError(f"{path}: seeds is a list of whole numbers, [0, 1, 2] for example")
    if not isinstance(runs, int):
        raise ConfigError(f"{path}: runs: {runs} is no whole number")
    options = by_section(values.get("options", {}), f"{path}: options")
    base = merged({"model": read_yaml(recipe).get("model", "xxxs")}, options)
    if data is not None:
        base = merged(base, {"data": {"source": data}})
    rows: list[tuple[str, list[dict[str, Any]], frozenset[str]]] = []
    if "variants" in values:
        rows = [(name, [changes], frozenset()) for name, changes in _named_options(values, "variants", path).items()]
        if "models" in values:
            own_options = _named_options(values, "models", path)
            models = {model: {"model": model, **own} for model, own in own_options.items()}
            rows = [
                (f"{model}, {name}", [own, *changes], on)
                for (model, own), (name, changes, on) in itertools.product(models.items(), rows)
            ]
    else:
        factors = _named_options(values, "factors", path)
        for number, levels in enumerate(fraction(len(factors), runs)):
            on = [name for name, level in zip(factors, levels, strict=True) if level]
            rows.append((f"run{number:02}", [factors[name] for name in on], frozenset(on)))
    trials = tuple(
        Trial(name=name, seed=seed, options=merged(changed(base, changes), {"seed": seed}), on=on)
        for (name, changes, on), seed in itertools.product(rows, seeds)
    )
    keys = [trial.key for trial in trials]
    for trial in trials:
        if Path(trial.key).name != trial.key:
            raise ConfigError(f"{path}: {trial.name}: files are called so, which cannot have a folder in their name")
        if keys.count(trial.key) > 1:
            raise ConfigError(f"{path}: {trial.name}: there are two runs called {trial.key}; give one another name")
        try:
            config = configure(recipe, **trial.options)
            cost_of(config.model, config.data.size)
        except AtnetError as error:
            raise ConfigError(f"{path}: {trial.name}: {error}") from error
    return Study(recipe=recipe, trials=trials, factors=tuple(values.get("factors", ())))


def _named_options(values: dict[str, Any], kind: str, path: Path) -> dict[str, dict[str, Any]]:
    """The options behind each name of a kind, {} where there are none. Raises ConfigError if one has something else."""
    found = {}
    for name, options in values[kind].items():
        if not isinstance(options or {}, dict):
            raise ConfigError(f"{path}: {kind}: {name} is a mapping of options to values, {{}} where there are none")
        found[name] = by_section(options or {}, f"{path}: {name}")
    return found


def fraction(factors: int, runs: int) -> NDArray[np.bool_]:
    """Which factors are on in which runs, (runs, factors): balanced, no factor's effect mixed with another's.

    Of up to runs / 2 factors, none is mixed with the joint effect of two others either (resolution IV).
    Raises ConfigError if runs is no power of two above the factors.
    Source: Box, Hunter & Hunter 2005, "Statistics for Experimenters", chapter 6.
    """
    if runs < 4 or runs & (runs - 1) or factors >= runs:
        raise ConfigError(f"runs: {runs} for {factors} factors; use a power of two above them, 4 at least")
    columns = sorted(range(1, runs), key=lambda column: (column.bit_count() % 2 == 0, column.bit_count(), column))
    return np.asarray(hadamard(runs) < 0)[:, columns[:factors]]


def read_shard(text: str) -> Shard:
    """Which of how many: (2, 3) of "2/3". Raises ConfigError on anything else."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"--shard {text}: which of how many processes, as 2/3")
    return int(part), int(parts)


def run_study(study: Study, out: Path, shard: Shard = (1, 1)) -> Iterator[Result]:
    """Each trial with its record: those made before are read, the others trained now, one after the other.

    out: the folder of the records; runs are kept in runs/NAME/.  A run that was stopped goes on.
    shard: (2, 3) is every third trial from the second on, for one of three processes side by side.
    Raises ConfigError on a record or a run of other settings; TrainingError, after all other trials, of those that
    could not be trained to their end.
    """
    runs = Path("runs") / out.name
    out.mkdir(parents=True, exist_ok=True)
    for trial, record in read_results(study, out):
        paths = out / f"{trial.key}.json", runs / trial.key
        _require_settings(configure(study.recipe, **trial.options), _settings(record), *paths)
    first, step = shard
    failed = []
    for trial in study.trials[first - 1 :: step]:
        path, run = out / f"{trial.key}.json", runs / trial.key
        if not path.exists():
            log.info("\n%s, %d of %d", trial.key, study.trials.index(trial) + 1, len(study.trials))
            try:
                record = record_of(run, study.recipe, **trial.options)
            except TrainingError as error:
                log.error("%s: %s", trial.key, error)
                failed.append(f"{trial.key}: {error}")
                continue
            publish_record(path, record)
        yield trial, read_json(path)
    if failed:
        raise TrainingError(f"{len(failed)} of {len(study.trials)} trials have no record:\n" + "\n".join(failed))


def _require_settings(config: Config, had: dict[str, Any], *paths: Path) -> None:
    """Raises ConfigError if what lies at the first path was made with other settings than it is to have now.

    had: its settings by their full names.  paths: it, and what else is to be deleted to make it again.
    Only what both know of is compared, and a network by its parameters: a name may mean another layout by now.
    """
    wanted = _settings(_recorded(config))
    if not config.batch:  # auto
        del wanted["batch"]
    for name in sorted(wanted.keys() & had.keys() - UNRELATED):
        if (wanted[name] or None) != (had[name] or None):
            raise ConfigError(
                f"{paths[0]}: made with {name} {had[name]!r}, and it is to have {wanted[name]!r} now; "
                f"delete {' and '.join(map(str, paths))} to train it again, or give the trial or --out another name"
            )


def _recorded(config: Config) -> dict[str, Any]:
    """What the record of a training by this configuration, settled or not, says of its settings."""
    return {
        "config": json.loads(json.dumps(to_plain(for_others(named(config))))),
        "parameters_without_classifier": cost_of(config.model, config.data.size).parameters_without_classifier,
    }


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """A record's settings by their full names, and its network's parameters."""
    return flat_settings(record["config"]) | {"parameters": record.get("parameters_without_classifier")}


def record_of(run: Path, recipe: Path | None, **options: Any) -> dict[str, Any]:
    """The record of a training: of one that is done; of one that was stopped, gone on with; else made now.

    Raises ConfigError if the run has other settings, TrainingError if it cannot be trained.
    """
    config = configure(recipe, **options)
    if (run / RECORD).exists():
        _require_settings(config, _settings(read_record(run)[1]), run)
    elif checkpoints(run):
        _require_settings(config, _settings(_recorded(open_run(run))), run)
        resume_run(run)
    elif (run / FAULTS).exists():
        raise TrainingError(f"{run}: could not be trained before; see its {FAULTS}/, and delete the run to try again")
    else:
        train(recipe, out=run, **options)
    return read_record(run)[1]


def read_results(study: Study, out: Path) -> list[Result]:
    """The trials that are done, with their records. Raises ConfigError naming a damaged one."""
    paths = [(trial, out / f"{trial.key}.json") for trial in study.trials]
    return [(trial, read_json(path)) for trial, path in paths if path.exists()]


def compare_trials(study: Study, results: Sequence[Result]) -> list[Bar]:
    """What came out, the best or the largest first: of variants their top-1, of factors what they add.

    A factor's margin is Lenth's, from the small effects themselves.
    Source: Lenth 1989, "Quick and Easy Analysis of Unreplicated Factorials".
    """
    top1 = [(trial, record["top1"][kept_weights(record)]) for trial, record in results]
    if not study.factors:
        bars = []
        for name in dict.fromkeys(trial.name for trial, _ in top1):
            found = [figure for trial, figure in top1 if trial.name == name]
            spread = statistics.stdev(found) if len(found) > 1 else float("nan")
            bars.append(Bar(name=name, value=statistics.mean(found), spread=spread))
        return sorted(bars, key=lambda bar: -bar.value)
    points = {
        factor: statistics.mean(figure for trial, figure in top1 if factor in trial.on)
        - statistics.mean(figure for trial, figure in top1 if factor not in trial.on)
        for factor in study.factors
    }
    sizes = np.abs(list(points.values()))
    error = 1.5 * float(np.median(sizes[sizes <= 2.5 * 1.5 * np.median(sizes)]))
    margin = float(t.ppf(0.975, max(len(sizes) / 3, 1))) * error
    ranked = sorted(points.items(), key=lambda item: -abs(item[1]))
    return [Bar(name=factor, value=value, spread=margin) for factor, value in ranked]


def costs(study: Study, out: Path) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table: each trial, its size at 1000 classes, and whether it is done."""
    heads, rows = ["Trial", "Params", "Multiply-adds", "Epochs", "px", "Done"], []
    for trial in study.trials:
        config = configure(study.recipe, **trial.options)
        cost = cost_of(config.model, config.data.size)
        done = "yes" if (out / f"{trial.key}.json").exists() else "no"
        rows.append(
            [trial.key, f"{cost.parameters / 1e6:.3f}M", f"{cost.macs / 1e6:,.1f}M", str(config.epochs),
             str(config.data.size), done]
        )  # fmt: skip
    return heads, rows


def write_results(results: Sequence[Result], path: Path) -> None:
    """A line a trial, as CSV: what was on, size, figures in percent, seconds."""
    rows = [
        {
            "trial": trial.name,
            "seed": trial.seed,
            "on": "; ".join(sorted(trial.on)),
            "model": record["model"],
            "parameters": record["parameters"],
            "top1": record["top1"][kept_weights(record)],
            "top1_last": record["top1"]["last"],
            "seconds": record["seconds"],
        }
        for trial, record in results
    ]
    write_whole(path, csv_table(rows).encode())


def changed(base: dict[str, Any], changes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The options with all changes made, one after the other."""
    options = base
    for change in changes:
        added = dict(change)
        if str(added.get("model", "")).startswith("+"):
            added["model"] = options["model"] + added["model"]
        options = merged(options, added)
    return options
