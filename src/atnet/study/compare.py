"""Finished runs side by side: is a difference more than chance?"""

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from atnet.config import GONE, NONE
from atnet.errors import ConfigError
from atnet.run.record import kept_weights, read_predictions, read_record, reading

WHERE = {"device", "threads", "data.workers"}
"""Options that say where a network is trained, not how."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run: its folder, its record, and the top-1 (percent) of the weights that `load` takes."""

    run: Path
    record: dict[str, Any]
    top1: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in nothing but the seed.  spread: standard deviation in points, None of a single run."""

    entries: tuple[Entry, ...]
    mean: float
    spread: float | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs on the same validation images.

    difference: top-1 of the second minus that of the first, points.
    only_first, only_second: images that one alone has right.
    p: McNemar's exact test, two-sided: how likely such a difference is between equally good networks.
    None of these where the images are not the same.
    """

    first: Path
    second: Path
    difference: float
    only_first: int | None
    only_second: int | None
    p: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs, the groups they form, pairs of runs, and which settings differ: name to value by run."""

    entries: tuple[Entry, ...]
    groups: tuple[Group, ...]
    pairs: tuple[Pair, ...]
    settings: dict[str, tuple[Any, ...]]


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Compares finished runs. Raises ConfigError if there are not two, or one is not finished.

    Source of the test: McNemar 1947; exact binomial form.
    """
    if len(runs) < 2:
        raise ConfigError("compare takes two runs or more: atnet compare runs/ONE runs/OTHER")
    entries = []
    for where in runs:
        run, record = read_record(where)
        entries.append(Entry(run=run, record=record, top1=record["top1"][kept_weights(record)]))
    with reading(entries[0].run):
        return _compared(entries)


def _compared(entries: Sequence[Entry]) -> Comparison:
    flat = [flat_settings(entry.record["config"]) for entry in entries]
    names = sorted(set().union(*flat))
    settings = {name: tuple(one.get(name) for one in flat) for name in names}
    return Comparison(
        entries=tuple(entries),
        groups=_groups(entries),
        pairs=tuple(_pair(one, other) for one, other in itertools.combinations(entries, 2)),
        settings={name: values for name, values in settings.items() if len(set(map(repr, values))) > 1},
    )


def _groups(entries: Sequence[Entry]) -> tuple[Group, ...]:
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        settings = flat_settings(entry.record["config"]) | dict.fromkeys({"seed", *WHERE})
        key = json.dumps([settings, entry.record["train_images"], entry.record["val_images"]], sort_keys=True)
        alike.setdefault(key, []).append(entry)
    groups = []
    for members in alike.values():
        figures = [entry.top1 for entry in members]
        seeds = {entry.record["seed"] for entry in members}
        spread = statistics.stdev(figures) if len(seeds) > 1 else None
        groups.append(Group(entries=tuple(members), mean=statistics.mean(figures), spread=spread))
    return tuple(groups)


def _pair(one: Entry, other: Entry) -> Pair:
    answers = [read_predictions(entry.run) for entry in (one, other)]
    same = [(row["image"], row["class"]) for row in answers[0]] == [(row["image"], row["class"]) for row in answers[1]]
    first = second = p = None
    if same:
        right = [[row["class"] == row["called"] for row in rows] for rows in answers]
        first = sum(a and not b for a, b in zip(*right, strict=True))
        second = sum(b and not a for a, b in zip(*right, strict=True))
        p = float(binomtest(second, first + second).pvalue) if first + second else 1.0
    return Pair(
        first=one.run, second=other.run, difference=other.top1 - one.top1, only_first=first, only_second=second, p=p
    )


def flat_settings(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options of a record's configuration by their full names, "optim.lr" for one; without those that are gone."""
    flat: dict[str, Any] = {}
    if config.get("weights") == "":  # as records of before version 0.4 say none
        config = config | {"weights": NONE}
    for name, value in config.items():
        flat |= flat_settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    without = {f"{section}.{name}": value for section, gone in GONE.items() for name, value in gone.items()}
    return {name: value for name, value in flat.items() if name not in without or without[name] != value}
