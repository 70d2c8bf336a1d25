import csv
import json
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest
import yaml

from atnet.cli import main
from atnet.config import make_config
from atnet.errors import ConfigError, MissingExtraError
from atnet.run.record import RECORD, checkpoints, read_record
from atnet.study.search import (
    Range,
    importances,
    is_search,
    read_search,
    read_tried,
    run_search,
    write_best,
)

RANGES = {
    "optim.lr": {"low": 1e-4, "high": 3e-2, "log": True},
    "label_smoothing": {"low": 0, "high": 0.3},
    "augment.randaugment": {"low": 0, "high": 2},
    "model": ["+registers=1", "+registers=2"],
}


@pytest.fixture
def write(tmp_path, quick):
    """Writes a search of a quick recipe and returns its path."""
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(quick | {"epochs": 2, "eval_every": 1}))

    def write(**parts):
        path = tmp_path / "lr.yaml"
        given = {"recipe": "quick.yaml", "search": {"optim.lr": RANGES["optim.lr"]}, "trials": 2} | parts
        path.write_text(yaml.safe_dump(given, sort_keys=False))
        return path

    return write


def test_ranges_are_of_the_options_kind(write, quick):
    search = read_search(write(search=RANGES))
    assert search.ranges["optim.lr"] == Range(low=1e-4, high=3e-2, log=True)
    assert search.ranges["label_smoothing"] == Range(low=0, high=0.3)
    assert search.ranges["augment.randaugment"] == Range(low=0, high=2, whole=True)
    assert search.ranges["model"].choices == ("+registers=1", "+registers=2")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [{name: one.drawn(trial, name) for name, one in search.ranges.items()} for trial in map(_ask, [study] * 40)]
    assert {type(values["augment.randaugment"]) for values in drawn} == {int}
    assert {values["augment.randaugment"] for values in drawn} == {0, 1, 2}
    assert 10 < sum(values["optim.lr"] < 1.7e-3 for values in drawn) < 30, "half of them, by the logarithm"
    options = search.changed(drawn[0])
    assert options["model"] == quick["model"] + drawn[0]["model"]
    assert make_config("quick.yaml", **options).optim.lr == drawn[0]["optim.lr"]


def _ask(study):
    return study.ask()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"variants": {}}, "variants is nothing of a search; use recipe, options, search"),
        ({"search": {}}, "nothing is searched"),
        ({"search": ["optim.lr"]}, "search is a mapping"),
        ({"search": {"optim.lr": 3}}, r"optim.lr is a list of values, or \{low: 0.1, high: 1.0"),
        ({"search": {"optim.lr": {"low": 1, "hi": 2}}}, "optim.lr is a list of values"),
        ({"search": {"optim.lr": [1e-3]}}, "optim.lr has values to choose from"),
        ({"search": {"optim.lr": {"low": "1e-3", "high": 1}}}, r"low and high are numbers \(1.0e-3, with a point\)"),
        ({"search": {"optim.lr": {"low": 0.2, "high": 0.1}}}, "low is below high"),
        ({"search": {"optim.lr": {"low": 0, "high": 1, "log": True}}}, "with log: true above 0"),
        ({"search": {"model": {"low": 0, "high": 1}}}, "model is no number; give a list"),
        ({"search": {"optim.lrr": {"low": 0.1, "high": 1.0}}}, "optim.lrr is no number"),
        ({"search": {"optim.lrr": [0.1, 1.0]}}, "optim.lrr=0.1: .*did you mean optim.lr"),
        ({"search": {"label_smoothing": {"low": 0.0, "high": 7.0}}}, "label_smoothing=7.0: .*out of range"),
        ({"trials": 0}, "trials: 0; use 1 to 10,000"),
        ({"sampler": "best"}, "sampler is one of tpe, cmaes, random"),
    ],
)
def test_a_search_that_cannot_run_says_why_before_anything_is_run(write, parts, message, tmp_path):
    path = write(**parts)
    with pytest.raises(ConfigError, match=message):
        read_search(path)
    assert not (tmp_path / "runs").exists()


def test_without_optuna_the_extra_is_named(write, monkeypatch, tmp_path):
    search = read_search(write())
    monkeypatch.setattr("atnet.extras.find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'atnet\[study\]'"):
        run_search(search, tmp_path / "lr")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_a_search_finds_a_rate_that_learns_and_goes_on_where_it_stopped(write, digits, tmp_path, sampler, capsys):
    ranges = {"optim.lr": {"low": 1e-7, "high": 1e-2, "log": True}, "label_smoothing": {"low": 0.0, "high": 0.1}}
    path, out = write(search=ranges, trials=3, sampler=sampler, options={"data": str(digits)}), tmp_path / "lr"
    main(["study", str(path), "--check"])
    assert "1e-07 to 0.01, by its logarithm" in capsys.readouterr().out
    assert not out.exists()
    main(["study", str(path)])
    first = read_tried(read_search(path), out)
    assert len(first) == 3
    path.write_text(path.read_text().replace("trials: 3", "trials: 7"))
    main(["study", str(path)])
    said = capsys.readouterr().out
    search = read_search(path)
    tried = read_tried(search, out)
    assert tried[:3] == first
    assert len(tried) == 7
    assert len({one.values["optim.lr"] for one in tried}) == 7, "none is drawn twice"
    done = [one for one in tried if one.state == "done"]
    assert all(json.loads((out / f"{one.key}.json").read_text())["top1"] for one in done)
    best = max(done, key=lambda one: one.top1)
    assert best.top1 == max(one.top1 for one in tried)
    assert f"Next: atnet train {out}/best.yaml" in said
    assert make_config(out / "best.yaml").optim.lr == pytest.approx(best.values["optim.lr"])
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(row["trial"], row["state"]) for row in rows] == [(one.key, one.state) for one in tried]
    if bars := importances(search, out):
        assert sum(bar.value for bar in bars) == pytest.approx(100)
        assert {bar.name for bar in bars} == set(ranges)
        assert (out / "study.png").stat().st_size > 5_000


@pytest.mark.slow
def test_trials_that_are_behind_end_early(write, digits, tmp_path):
    options = {"data": str(digits), "epochs": 4}
    search = read_search(write(search={"optim.lr": [1e-3, 1e-9]}, trials=6, sampler="random", options=options))
    tried = run_search(search, tmp_path / "lr")
    early = [one for one in tried if one.state == "ended early"]
    assert early
    assert all(one.values["optim.lr"] == 1e-9 for one in early)
    run = tmp_path / "runs" / "lr" / early[0].key
    assert len((run / "metrics.csv").read_text().splitlines()) < 5
    assert not (run / RECORD).exists()
    assert write_best(search, tried, tmp_path / "lr").values["optim.lr"] == 1e-3


@pytest.mark.slow
def test_a_trial_that_diverges_is_told_and_not_tried_again(write, digits, tmp_path):
    options = {"data": str(digits), "schedule": {"warmup": 0.0}, "optim": {"clip": 0.0}}
    search = read_search(write(search={"optim.lr": [1e30, 2e30]}, trials=1, options=options))
    [one] = run_search(search, tmp_path / "lr")
    assert (one.state, one.top1) == ("failed", None)
    assert run_search(search, tmp_path / "lr") == [one]
    assert write_best(search, [one], tmp_path / "lr") is None


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_trial_that_it_was_in(write, digits, tmp_path):
    path = write(trials=2, sampler="random", options={"data": str(digits), "epochs": 6}, halving=False)
    command = [sys.executable, "-m", "atnet", "study", str(path)]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    run = tmp_path / "runs" / "lr" / "trial000"
    while not checkpoints(run) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / RECORD).exists()
    rows = (run / "metrics.csv").read_text()
    search = read_search(path)
    tried = run_search(search, tmp_path / "lr")
    assert [(one.key, one.state) for one in tried] == [("trial000", "done"), ("trial002", "done")]
    assert (run / "metrics.csv").read_text().startswith(rows)
    assert tried[0].values["optim.lr"] == read_record(run)[1]["config"]["optim"]["lr"]


@pytest.mark.slow
def test_shards_share_the_trials_and_another_search_is_told(write, digits, tmp_path):
    path = write(trials=3, options={"data": str(digits), "epochs": 1})
    search = read_search(path)
    assert is_search(path)
    assert len(run_search(search, tmp_path / "lr", (1, 2))) == 2
    assert len(run_search(search, tmp_path / "lr", (2, 2))) == 3
    assert len(run_search(search, tmp_path / "lr", (2, 2))) == 3
    other = read_search(write(search={"optim.lr": {"low": 1e-3, "high": 2e-3}}))
    with pytest.raises(
        ConfigError, match=r"study.db: made with another (search|options); give the search another --out"
    ):
        run_search(other, tmp_path / "lr")
