import json
import shutil

import pytest
from scipy.stats import chi2

import atnet
from atnet.cli import main
from atnet.errors import ConfigError
from atnet.study.compare import compare, flat_settings


@pytest.fixture
def runs(quick, tmp_path):
    """Three runs: two seeds of one recipe, and another learning rate."""
    return [
        atnet.train(**quick, **more, out=tmp_path / name).folder
        for name, more in (("a", {}), ("b", {"seed": 1}), ("c", {"optim": {"lr": 1e-5}}))
    ]


def edit(run, column, values):
    """Replaces a column of the run's predictions."""
    lines = (run / "predictions.csv").read_text().splitlines()
    place = lines[0].split(",").index(column)
    cells = [line.split(",") for line in lines]
    for cell, value in zip(cells[1:], values, strict=True):
        cell[place] = value
    (run / "predictions.csv").write_text("\n".join(map(",".join, cells)) + "\n")


def test_runs_are_grouped_by_all_but_the_seed(runs):
    found = compare(runs)
    assert [[entry.run.name for entry in group.entries] for group in found.groups] == [["a", "b"], ["c"]]
    top1 = [entry.top1 for entry in found.entries]
    assert found.groups[0].mean == pytest.approx((top1[0] + top1[1]) / 2)
    assert found.groups[0].spread == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
    assert found.groups[1].spread is None
    assert set(found.settings) == {"seed", "optim.lr"}
    assert found.settings["optim.lr"] == (0.012, 0.012, 1e-05)


def test_mcnemar_counts_images_that_one_alone_has_right(runs):
    one, other = runs[:2]
    classes = [line.split(",")[1] for line in (one / "predictions.csv").read_text().splitlines()[1:]]
    edit(one, "called", ["x" if i < 24 else name for i, name in enumerate(classes)])
    edit(other, "called", ["x" if 20 <= i < 30 else name for i, name in enumerate(classes)])
    [pair] = compare([one, other]).pairs
    assert (pair.only_first, pair.only_second) == (6, 20)
    assert pair.p == pytest.approx(0.0094, abs=2e-4)  # binomial, 6 or fewer of 26, twice
    assert pair.p == pytest.approx(chi2.sf((20 - 6 - 1) ** 2 / 26, 1), abs=3e-3)  # McNemar's with correction


def test_runs_on_other_images_are_not_tested(runs):
    edit(runs[1], "image", [f"other{i}.png" for i in range(50)])
    [pair] = compare(runs[:2]).pairs
    assert pair.p is None


def test_a_run_against_itself_is_chance(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "copy")
    [pair] = compare([runs[0], tmp_path / "copy"]).pairs
    assert (pair.difference, pair.p) == (0, 1)


def test_one_run_or_an_unfinished_one_cannot_be_compared(runs, tmp_path):
    with pytest.raises(ConfigError, match="two runs or more"):
        compare(runs[:1])
    (runs[1] / "record.json").unlink()
    with pytest.raises(ConfigError, match=f"not finished; go on with: atnet train --resume {runs[1]}"):
        compare(runs[:2])
    (runs[1] / "record.json").write_text("{")
    with pytest.raises(ConfigError, match=r"record.json: damaged"):
        compare(runs[:2])


def test_comparisons_are_printed_and_machine_readable(runs, capsys):
    from atnet.cli import main

    main(["compare", *map(str, runs)])
    said = capsys.readouterr().out
    assert "optim.lr" in said
    assert "McNemar p =" in said
    assert "± " in said
    main(["compare", *map(str, runs), "--json"])
    assert len(json.loads(capsys.readouterr().out)["pairs"]) == 3


def test_a_seed_spread_is_not_held_against_the_runs_that_make_it(runs, capsys):
    main(["compare", *map(str, runs)])
    pairs = [line for line in capsys.readouterr().out.splitlines() if " against " in line]
    assert "points, the same settings; " in pairs[0]
    assert "seed spread" in pairs[1]
    assert "seed spread" in pairs[2]


def test_options_that_are_gone_set_no_runs_apart():
    old = {
        "optim": {"lr": 0.1},
        "heads": {"view_drop": 0.0, "penalty": 0.0, "together": 0.0},
        "distill": {"kind": "soft"},
    }
    assert flat_settings(old) == {"optim.lr": 0.1, "heads.together": 0.0}
    assert flat_settings({"distill": {"kind": "hard"}}) == {"distill.kind": "hard"}
