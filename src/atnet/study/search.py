"""A search: options drawn from ranges, trial after trial, where those before did well; poor trials end early.

The drawing, the ending and the memory of it all are Optuna's (Akiba et al. 2019, "Optuna: A Next-generation
Hyperparameter Optimization Framework"): tree-structured Parzen estimators or CMA-ES, successive halving, SQLite.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from atnet.config import by_section, make_config, merged, read_yaml, to_plain
from atnet.errors import AtnetError, ConfigError, TrainingError
from atnet.extras import require
from atnet.files import csv_table, write_whole
from atnet.models.cost import cost_of
from atnet.run.record import (
    METRICS,
    RECORD,
    checkpoints,
    in_use,
    kept_weights,
    publish_record,
    read_metrics,
    read_record,
)
from atnet.study.compare import flat_settings
from atnet.study.study import Bar, Shard, changed
from atnet.training.loop import resume_run, train
from atnet.training.plan import configure

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("atnet")

KEYS = ("recipe", "options", "search", "trials", "sampler", "halving")
DATABASE, BEST, TABLE = "study.db", "best.yaml", "results.csv"
SAMPLERS = ("tpe", "cmaes", "random")
LEAST_COMPARED = 4
"""Trials trained to their end from which importances say anything."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """What an option is drawn from: one of several values, or low to high, both included.

    whole: whole numbers alone.  log: as often between 1 and 10 as between 10 and 100.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that have to be right for all of it to be."""
        return self.choices or (self.low, self.high)

    def drawn(self, trial: "optuna.Trial", name: str) -> Any:
        if self.choices:
            keys = [json.dumps(choice) for choice in self.choices]
            return self.choices[keys.index(trial.suggest_categorical(name, keys))]
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}" + (", by its logarithm" if self.log else "")


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a study file asks for.  halving: whether trials that are behind end early."""

    recipe: Path
    options: dict[str, Any]
    ranges: dict[str, Range]
    trials: int
    sampler: Literal["tpe", "cmaes", "random"] = "tpe"
    halving: bool = True

    def changed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The options of all trials, with one's own."""
        return changed(self.options, [_nested(values)])


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A trial that is over.

    key: what its record and its run are called.
    top1: in percent; of one that ended early, then; None of one that failed.
    """

    key: str
    state: Literal["done", "ended early", "failed"]
    top1: float | None
    values: dict[str, Any]


def is_search(path: str | Path) -> bool:
    """Whether a study file draws options from ranges."""
    return "search" in read_yaml(path)


def read_search(path: str | Path, data: str | None = None) -> Search:
    """The search of a YAML file.

    data: where the images are, if not where the file says.
    Raises ConfigError naming what does not fit, before anything is run.
    """
    path = Path(path)
    given = read_yaml(path)
    if unknown := [name for name in given if name not in KEYS]:
        raise ConfigError(f"{path}: {unknown[0]} is nothing of a search; use {', '.join(KEYS)}")
    if "recipe" not in given:
        raise ConfigError(f"{path}: a search has a recipe")
    for name in ("options", "search"):
        if not isinstance(given.get(name, {}), dict):
            raise ConfigError(f"{path}: {name} is a mapping of options")
    trials, sampler, halving = given.get("trials", 20), given.get("sampler", "tpe"), given.get("halving", True)
    if not isinstance(trials, int) or not 1 <= trials <= 10_000:
        raise ConfigError(f"{path}: trials: {trials!r}; use 1 to 10,000")
    if sampler not in SAMPLERS or not isinstance(halving, bool):
        raise ConfigError(f"{path}: sampler is one of {', '.join(SAMPLERS)}, and halving true or false")
    recipe = Path(str(given["recipe"]))
    base = merged({"model": read_yaml(recipe).get("model", "xxxs")}, by_section(given.get("options", {}), str(path)))
    if data is not None:
        base = merged(base, {"data": {"source": data}})
    usual = flat_settings(to_plain(make_config(recipe, **base)))
    ranges = {str(name): _range(path, str(name), asked, usual) for name, asked in given["search"].items()}
    if not ranges:
        raise ConfigError(f"{path}: search: nothing is searched; as optim.lr: {{low: 1.0e-3, high: 1.0e-2, log: true}}")
    search = Search(recipe=recipe, options=base, ranges=ranges, trials=trials, sampler=sampler, halving=halving)
    for name, one in ranges.items():
        for value in one.ends:
            try:
                config = configure(recipe, **search.changed({name: value}))
                cost_of(config.model, config.data.size)
            except AtnetError as error:
                raise ConfigError(f"{path}: search: {name}={value}: {error}") from error
    return search


def _range(path: Path, name: str, asked: Any, usual: dict[str, Any]) -> Range:
    if isinstance(asked, list):
        if len(asked) < 2 or any(isinstance(one, dict) for one in asked):
            raise ConfigError(f"{path}: search: {name} has values to choose from, [0, 0.1] for example")
        return Range(choices=tuple(asked))
    if not isinstance(asked, dict) or not {"low", "high"} <= asked.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"{path}: search: {name} is a list of values, or {{low: 0.1, high: 1.0, log: true}}")
    low, high, by_log = asked["low"], asked["high"], asked.get("log", False)
    if isinstance(usual.get(name), bool) or not isinstance(usual.get(name), int | float):
        raise ConfigError(f"{path}: search: {name} is no number; give a list of values")
    if not (isinstance(low, int | float) and isinstance(high, int | float) and isinstance(by_log, bool)):
        raise ConfigError(f"{path}: search: {name}: low and high are numbers (1.0e-3, with a point), log true or false")
    if not low < high or (by_log and low <= 0):
        raise ConfigError(f"{path}: search: {name}: low is below high, and with log: true above 0")
    return Range(low=low, high=high, whole=isinstance(usual[name], int), log=by_log)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Options by their full names, "optim.lr" for one, in their sections."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        section, _, rest = name.rpartition(".")
        found = merged(found, {section: {rest: value}} if section else {name: value})
    return by_section(found, "search")


def run_search(search: Search, out: Path, shard: Shard = (1, 1)) -> list[Tried]:
    """The trials that are left, trained one after the other; all that are over.

    out: the folder of the database, and of the records; runs are kept in runs/NAME/.  A run that was stopped goes on.
    shard: (2, 3) is the second of three processes side by side, which share the trials.
    Raises ConfigError if the folder is another search's, MissingExtraError without Optuna.
    """
    study = _open(search, out)
    part, parts = shard
    share = len(range(part - 1, search.trials, parts))
    _free_stopped(study, part, out)
    while sum(trial.user_attrs.get("shard") == part and _is_over(trial) for trial in study.trials) < share:
        study.sampler = _sampler(search, seed=len(study.trials), several=parts > 1)
        trial = study.ask()
        trial.set_user_attr("shard", part)
        _try(search, out, study, trial)
        write_whole(out / TABLE, csv_table(_rows(_over(search, study))).encode())
    return _over(search, study)


def read_tried(search: Search, out: Path) -> list[Tried]:
    """The trials that are over, in their order."""
    return _over(search, _open(search, out))


def importances(search: Search, out: Path) -> list[Bar]:
    """How much of the differences between trials' top-1 each option makes, in percent, the largest first.

    None from fewer than four trials that were trained to their end.  Source: Hutter et al. 2014, "An Efficient
    Approach for Assessing Hyperparameter Importance".
    """
    import optuna

    study = _open(search, out)
    values = [trial.value for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if len(values) < LEAST_COMPARED or len(set(values)) < 2:
        return []
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return [Bar(name=name, value=100 * share, spread=float("nan")) for name, share in found.items()]


def write_best(search: Search, tried: list[Tried], out: Path) -> Tried | None:
    """The best trial, its recipe as best.yaml; None if none was trained to its end."""
    done = [one for one in tried if one.state == "done"]
    if not done:
        return None
    best = max(done, key=lambda one: one.top1 or 0.0)
    recipe = merged(read_yaml(search.recipe), search.changed(best.values))
    said = f"# {best.key} of {out.name}: {best.top1:.2f}% of its validation images\n"
    write_whole(out / BEST, (said + yaml.safe_dump(recipe, sort_keys=False)).encode())
    return best


def _open(search: Search, out: Path) -> "optuna.Study":
    """The study in the folder's database, which is made if there is none. Raises ConfigError if it is another's."""
    require("study")
    import optuna

    optuna.logging.disable_default_handler()
    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{out / DATABASE}",
        study_name="search",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.SuccessiveHalvingPruner() if search.halving else optuna.pruners.NopPruner(),
    )
    told = {
        "recipe": str(search.recipe),
        "options": search.options,
        "search": {name: str(one) for name, one in search.ranges.items()},
    }
    made = study.user_attrs
    for name, value in told.items():
        if name not in made:
            study.set_user_attr(name, value)
        elif made[name] != json.loads(json.dumps(value)):
            raise ConfigError(f"{out / DATABASE}: made with another {name}; give the search another --out")
    return study


def _sampler(search: Search, *, seed: int, several: bool) -> "optuna.samplers.BaseSampler":
    """seed: another one for each trial, for a sampler that is made anew would draw the same again."""
    import optuna

    match search.sampler:
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=several)


def _free_stopped(study: "optuna.Study", part: int, out: Path) -> None:
    """Asks again for the trials that this process, or the one before it, did not bring to their end."""
    import optuna

    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING and trial.user_attrs.get("shard", part) == part:
            if in_use(_run_of(trial, out)):
                raise ConfigError(f"{_run_of(trial, out)}: another process trains it now; wait, or use --shard")
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={"run": _key(trial)})


def _run_of(trial: Any, out: Path) -> Path:
    """The run of a trial: of one that goes on, the one that was stopped."""
    return Path("runs") / out.name / _key(trial)


def _key(trial: Any) -> str:
    return str(trial.user_attrs.get("run", f"trial{trial.number:03}"))


def _try(search: Search, out: Path, study: "optuna.Study", trial: "optuna.Trial") -> None:
    """Trains a trial, to its end or until it is behind."""
    import optuna

    values = {name: one.drawn(trial, name) for name, one in search.ranges.items()}
    run, options = _run_of(trial, out), search.changed(values)
    log.info("\n%s: %s", run.name, ", ".join(f"{name} {shown(value)}" for name, value in values.items()))

    def report(row: dict[str, Any]) -> None:
        if row["val_top1"] != "":
            trial.report(float(row["val_top1"]), int(row["epoch"]))
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        if not (run / RECORD).exists():
            if checkpoints(run):
                for row in read_metrics(run) if (run / METRICS).exists() else []:
                    report(row)
                resume_run(run, report)
            else:
                train(search.recipe, out=run, on_epoch=report, **options)
        record = read_record(run)[1]
    except optuna.TrialPruned:
        log.info("it is behind the others, and ends here")
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except TrainingError as error:
        log.error("%s", error)
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        publish_record(out / f"{run.name}.json", record)
        study.tell(trial, record["top1"][kept_weights(record)])


def shown(value: Any) -> str:
    """A value as a person reads it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_over(trial: Any) -> bool:
    """Whether a trial of Optuna's was brought to an end, and not stopped."""
    return trial.state.is_finished() and (trial.state.name != "FAIL" or "error" in trial.user_attrs)


def _over(search: Search, study: "optuna.Study") -> list[Tried]:
    return [_told(search, trial) for trial in study.trials if _is_over(trial)]


def _told(search: Search, trial: Any) -> Tried:
    state: Literal["done", "ended early", "failed"] = "failed"
    if trial.state.name in ("COMPLETE", "PRUNED"):
        state = "done" if trial.state.name == "COMPLETE" else "ended early"
    values = {
        name: json.loads(value) if search.ranges[name].choices else value
        for name, value in trial.params.items()
        if name in search.ranges
    }
    return Tried(key=_key(trial), state=state, top1=None if state == "failed" else trial.value, values=values)


def _rows(tried: list[Tried]) -> list[dict[str, Any]]:
    """A line a trial, for CSV."""
    return [
        {"trial": one.key, "state": one.state, "top1": "" if one.top1 is None else round(one.top1, 4)} | one.values
        for one in tried
    ]
