import csv
import itertools

import numpy as np
import pytest
import yaml

import atnet
from atnet.cli import main
from atnet.errors import ConfigError, TrainingError
from atnet.study.study import (
    Study,
    Trial,
    compare_trials,
    fraction,
    read_results,
    read_shard,
    read_study,
    run_study,
)


@pytest.fixture
def write(tmp_path, quick):
    """Writes a study of a quick recipe and returns its path."""
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(quick))

    def write(**parts):
        path = tmp_path / "shape.yaml"
        path.write_text(yaml.safe_dump({"recipe": "quick.yaml", **parts}, sort_keys=False))
        return path

    return write


@pytest.mark.parametrize(("factors", "runs"), [(3, 8), (7, 8), (16, 32), (31, 32)])
def test_a_fraction_is_balanced_and_mixes_no_two_factors(factors, runs):
    levels = np.where(fraction(factors, runs), 1, -1)
    assert levels.shape == (runs, factors)
    assert (levels.sum(0) == 0).all()
    assert (levels.T @ levels == runs * np.eye(factors)).all()


def test_half_as_many_factors_as_runs_are_not_mixed_with_pairs_of_others():
    levels = np.where(fraction(16, 32), 1, -1)
    for a, b in itertools.combinations(range(16), 2):
        assert (levels.T @ (levels[:, a] * levels[:, b]) == 0).all()


@pytest.mark.parametrize(("factors", "runs"), [(3, 12), (8, 8), (1, 2)])
def test_a_fraction_that_cannot_be_says_so(factors, runs):
    with pytest.raises(ConfigError, match=f"runs: {runs} for {factors} factors; use a power of two"):
        fraction(factors, runs)


def test_variants_and_factors_change_the_model_and_the_options(write, quick):
    model = quick["model"]
    study = read_study(
        write(options={"optim": {"lr": 1e-3}}, seeds=[3, 4], variants={"plain": None, "few": {"model": "+registers=1"}})
    )
    assert [trial.key for trial in study.trials] == ["plain-seed3", "plain-seed4", "few-seed3", "few-seed4"]
    assert study.trials[2].options == {"model": f"{model}+registers=1", "optim": {"lr": 1e-3}, "seed": 3}
    factors = {"few": {"model": "+registers=1"}, "narrow": {"model": "+kernel=5"}, "high": {"optim": {"lr": 4e-3}}}
    study = read_study(write(options={"optim": {"clip": 2.0}}, factors=factors, runs=8))
    both = next(trial for trial in study.trials if trial.on == {"few", "narrow", "high"})
    assert both.options == {"model": f"{model}+registers=1+kernel=5", "optim": {"clip": 2.0, "lr": 4e-3}, "seed": 0}
    assert len({trial.on for trial in study.trials}) == 8


def test_each_of_several_models_is_run_in_every_variant(write, quick):
    models = {quick["model"]: None, "mobilenetv3_small_100": {"data": {"size": 64}, "epochs": 5}}
    study = read_study(
        write(
            options={"epochs": 3}, models=models, variants={"plain": None, "short": {"epochs": 2}, "few": {"batch": 8}}
        )
    )
    assert [trial.key for trial in study.trials[2:4]] == [
        f"{quick['model']},-few-seed0",
        "mobilenetv3_small_100,-plain-seed0",
    ]
    assert [trial.options["epochs"] for trial in study.trials] == [3, 2, 3, 5, 2, 5]
    assert study.trials[3].options == {"model": "mobilenetv3_small_100", "data": {"size": 64}, "epochs": 5, "seed": 0}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"models": ["xxxs"], "variants": {"a": None}}, "models is a mapping of names to options"),
        ({"variants": ["a", "b"]}, "variants is a mapping of names to options"),
        ({"models": {"xxxs": None}, "factors": {"b": None}}, "models go with variants"),
        ({"models": {"xxxxs": None}, "variants": {"a": None}}, "xxxxs, a: .*xxxs"),
        ({"variant": {}}, "variant is nothing of a study"),
        ({}, "variants, factors or a search"),
        ({"variants": {"a": None}, "factors": {"b": None}}, "variants, factors or a search"),
        ({"variants": {"odd": {"optim": {"lrr": 1}}}}, "odd: .*did you mean optim.lr"),
        ({"variants": {"odd": {"model": "+kernal=5"}}}, "odd: .*'kernal=5' changes nothing of a layout.*kernel"),
        ({"variants": {"odd": {"model": "+heads=5"}}}, "odd: .*dim=192 is not divisible by heads=5"),
        ({"variants": {"w/o registers": None}}, "w/o registers: files are called so"),
        ({"variants": {"a b": None, "a-b": None}}, "there are two runs called a-b-seed0"),
        ({"variants": {"few": "+registers=1"}}, "variants: few is a mapping of options"),
        ({"factors": {"few": "+registers=1"}}, "factors: few is a mapping of options"),
        ({"variants": {"a": None}, "seeds": 3}, r"seeds is a list of whole numbers, \[0, 1, 2\]"),
        ({"factors": {"a": None}, "runs": "many"}, "runs: many is no whole number"),
        ({"variants": {"a": {"weights": "nowhere"}}}, "a: nowhere: no such run"),
    ],
)
def test_a_study_that_cannot_run_says_why_before_anything_is_run(write, parts, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_study(write(**parts))
    assert not (tmp_path / "runs").exists()


def test_effects_are_those_that_were_put_in_and_chance_is_told_from_them():
    names = tuple("abcdefghijklmno")
    design = fraction(15, 32)
    noise = np.random.default_rng(0).normal(0, 0.3, 32)
    trials, results = [], []
    for row, levels in enumerate(design):
        on = frozenset(name for name, level in zip(names, levels, strict=True) if level)
        trials.append(Trial(name=str(row), seed=0, options={}, on=on))
        top1 = 70 + 3 * ("c" in on) - 2 * ("k" in on) + noise[row]
        results.append((trials[-1], {"top1": {"last": 0.0, "ema": top1}}))
    bars = compare_trials(Study(recipe=None, trials=tuple(trials), factors=names), results)
    assert [bar.name for bar in bars[:2]] == ["c", "k"]
    assert [bar.value for bar in bars[:2]] == pytest.approx([3, -2], abs=0.3)
    assert 0.1 < bars[0].spread < 0.6
    assert abs(bars[1].value) > bars[1].spread
    assert sum(abs(bar.value) > bar.spread for bar in bars[2:]) <= 2, "one in twenty, of 13"


def test_a_study_goes_on_where_it_stopped_and_trains_nothing_twice(write, digits, tmp_path):
    path = write(seeds=[0, 1], variants={"plain": {"batch": 40}})
    study, out = read_study(path, str(digits)), tmp_path / "shape"
    queue = run_study(study, out)
    _, first = next(queue)
    queue.close()
    made = (out / "plain-seed0.json").stat().st_mtime_ns
    assert not (out / "plain-seed1.json").exists()
    (tmp_path / "runs" / "shape" / "plain-seed1").mkdir(parents=True)
    results = list(run_study(study, out))
    assert (out / "plain-seed0.json").stat().st_mtime_ns == made
    assert results[0][1] == first
    assert [record["seed"] for _, record in results] == [0, 1]

    run = tmp_path / "runs" / "shape" / "plain-seed1"  # as if killed between its last epoch and its record
    (run / "record.json").unlink()
    (out / "plain-seed1.json").unlink()
    again = list(run_study(study, out))
    assert again[1][1]["top1"] == results[1][1]["top1"]
    assert "resumed" in again[1][1]["environment"]


def test_a_record_of_other_settings_is_not_taken_for_the_trial(write, digits, tmp_path):
    out = tmp_path / "shape"
    factors = {"smoothing": {"label_smoothing": 0.2}, "depth": {"drop_path": 0.1}}
    list(run_study(read_study(write(factors=factors, runs=4), str(digits)), out))
    list(run_study(read_study(write(factors=factors, runs=4, options={"threads": 1}), "elsewhere"), out))
    turned = read_study(write(factors=dict(reversed(factors.items())), runs=4), str(digits))
    with pytest.raises(
        ConfigError, match=r"run\d\d-seed0.json: made with .* now; delete .*runs/shape/run\d\d-seed0 to train"
    ):
        list(run_study(turned, out))
    wider = read_study(write(factors=factors, runs=4, options={"model": "xxxs", "weights": "none"}), str(digits))
    with pytest.raises(ConfigError, match="made with parameters"):
        list(run_study(wider, out))


def test_a_run_of_other_settings_is_not_taken_for_the_trial(write, digits, tmp_path, monkeypatch):
    """Where the record was deleted, as the message says, and where the run was stopped."""
    before = read_study(write(variants={"plain": None}), str(digits))
    list(run_study(before, tmp_path / "shape"))
    changed = read_study(write(variants={"plain": {"optim": {"lr": 1e-3}}}), str(digits))
    with pytest.raises(ConfigError, match=r"plain-seed0.json: made with optim.lr 0.012, and it is to have 0.001 now"):
        list(run_study(changed, tmp_path / "shape"))
    (tmp_path / "shape" / "plain-seed0.json").unlink()
    for out in (tmp_path / "shape", tmp_path / "elsewhere" / "shape"):
        with pytest.raises(ConfigError, match=r"runs/shape/plain-seed0: made with optim.lr 0.012.*--out another"):
            list(run_study(changed, out))
    run = tmp_path / "runs" / "shape" / "plain-seed0"
    (run / "record.json").unlink()
    with pytest.raises(ConfigError, match=r"runs/shape/plain-seed0: made with optim.lr 0.012"):
        list(run_study(changed, tmp_path / "shape"))
    [(_, again)] = run_study(before, tmp_path / "shape")
    assert again["config"]["optim"]["lr"] == 12e-3


def test_what_is_settled_at_the_start_of_a_run_does_not_make_it_another(write, quick, digits, tmp_path):
    """A teacher, weights, a list of classes, a batch that fits."""
    atnet.train(**quick, out="runs/taught")
    (tmp_path / "names.txt").write_text("\n".join(sorted(path.name for path in (digits / "train").iterdir())))
    base = {"data": {"classes": "names.txt"}, "batch": "auto"}
    variants = {"taught": {"teacher": ["runs/taught"]}, "further": {"weights": "runs/taught"}}
    study = read_study(write(options=base, variants=variants), str(digits))
    made = list(run_study(study, tmp_path / "shape"))
    assert made[0][1]["config"]["teacher"] == ["taught/ema.safetensors"]
    assert made[0][1]["config"]["data"]["classes"] == "names.txt"
    assert made[1][1]["config"]["optim"]["lr"] == pytest.approx(3e-3)
    assert list(run_study(study, tmp_path / "shape")) == made


def test_the_images_of_a_study_stay_where_they_are_said_to_be(write, digits):
    """Whether they or their size are said first, or in short."""
    for options, changes in (
        ({"data": str(digits)}, {"data": {"size": 64}}),
        ({"data": {"size": 64}}, {"data": str(digits)}),
    ):
        [trial] = read_study(write(options=options, variants={"a": changes})).trials
        assert trial.options["data"] == {"source": str(digits), "size": 64}


def test_a_trial_that_diverges_does_not_keep_the_others_from_their_turn(write, digits, tmp_path):
    high = {"optim": {"lr": 1e30, "clip": 0.0}, "schedule": {"warmup": 0.0}}
    study = read_study(write(variants={"high": high, "plain": None}), str(digits))
    for said in (r"high-seed0: .*lower --optim.lr", r"high-seed0: .*could not be trained before"):
        with pytest.raises(TrainingError, match=rf"1 of 2 trials have no record:\n{said}"):
            list(run_study(study, tmp_path / "shape"))
        assert [trial.name for trial, _ in read_results(study, tmp_path / "shape")] == ["plain"]


def test_a_damaged_record_is_named(write, tmp_path):
    study = read_study(write(variants={"plain": None}))
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "plain-seed0.json").write_text('{"top1": ')
    with pytest.raises(ConfigError, match=r"plain-seed0.json: damaged"):
        list(run_study(study, tmp_path / "shape"))


def test_the_command_lists_then_runs_then_compares(write, quick, digits, tmp_path, capsys):
    path = write(variants={"plain": None, "[few]": {"model": "+registers=1"}})
    main(["study", str(path), "--data", str(digits), "--check"])
    said = capsys.readouterr().out
    assert "[few]-seed0" in said
    assert "Nothing was trained" in said
    assert not (tmp_path / "shape").exists()
    main(["study", str(path), "--data", str(digits)])
    said = capsys.readouterr().out
    assert f"Written: {tmp_path / 'shape'}/results.csv, study.png, 2 records" in said
    assert "nan" not in said, "one seed has no spread"
    rows = list(csv.DictReader((tmp_path / "shape" / "results.csv").read_text().splitlines()))
    assert [(row["trial"], row["model"]) for row in rows] == [
        ("plain", f"atnet_{quick['model']}"),
        ("[few]", f"atnet_{quick['model']}+registers=1"),
    ]
    assert int(rows[0]["parameters"]) - int(rows[1]["parameters"]) == 3 * 192
    assert (tmp_path / "shape" / "study.png").stat().st_size > 5_000


def test_two_shards_make_what_one_process_makes(write, tmp_path):
    study = read_study(write(seeds=[0, 1], variants={"plain": None, "few": {"model": "+registers=1"}}))
    for part in (2, 1):
        found = run_study(study, tmp_path / "shape", (part, 2))
        assert [trial.key for trial, _ in found] == [trial.key for trial in study.trials[part - 1 :: 2]]
    assert [trial.key for trial, _ in read_results(study, tmp_path / "shape")] == [trial.key for trial in study.trials]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3"])
def test_a_shard_that_is_none_says_so(text):
    with pytest.raises(ConfigError, match=f"--shard {text}: which of how many"):
        read_shard(text)
