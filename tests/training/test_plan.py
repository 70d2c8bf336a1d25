import dataclasses
import datetime
import itertools
from types import SimpleNamespace

import psutil
import pytest
import torch

import atnet
from atnet.cli import main
from atnet.config import make_config
from atnet.errors import ConfigError, TrainingError
from atnet.models.cost import cost_of
from atnet.run.record import read_metrics
from atnet.training import loop, plan
from atnet.training import pace as pace_module
from atnet.training.pace import AFTERWARDS, Pace
from atnet.training.plan import Forecast, counted_speed, fitting_batch, forecast, plan_run


@pytest.fixture
def known(quick):
    """A forecast with round figures."""
    return Forecast(
        config=make_config(**quick),
        classes=2,
        train_images=9,
        val_images=3,
        steps_per_epoch=100,
        setup=5,
        folds=0,
        step=0.1,
        evaluation=2,
        memory=500,
        free=800,
        disk=30,
    )


def test_figures_add_up(known):
    assert known.epoch == pytest.approx(12)
    assert known.seconds == pytest.approx(17)


def test_epochs_are_those_that_fit(known):
    assert known.within(datetime.timedelta(seconds=5 + AFTERWARDS + 12 * 3.9)).config.epochs == 3
    with pytest.raises(ConfigError, match=r"--time-budget 10 s is too short: one epoch takes 21 s"):
        known.within(datetime.timedelta(seconds=10))


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_forecast_writes_nothing_and_knows_the_run(quick, tmp_path, cache):
    options = quick | {"keep": 1, "data": quick["data"] | {"cache": cache, "cache_size": 32}}
    before = sorted(tmp_path.rglob("*"))
    found = forecast(**options)
    assert sorted(tmp_path.rglob("*")) == before
    assert found.steps_per_epoch == 10
    assert min(found.step, found.evaluation, found.memory, found.free) > 0
    assert bool(found.setup) == (cache == "ram")
    run = atnet.train(**options, out=tmp_path / "run")
    sizes = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file()) / 1e6
    assert found.disk == pytest.approx(sizes, rel=0.1)


def test_check_says_time_memory_and_disk_and_writes_nothing(digits, tmp_path, capsys):
    main(
        [
            "train",
            "--data",
            str(digits),
            "--data.size",
            "32",
            "--data.workers",
            "0",
            "--batch",
            "20",
            "--weights",
            "none",
            "--check",
        ]
    )
    said = capsys.readouterr().out
    for word in (
        "atnet_xxxs at 32 px, batch 20, on digits: 100 epochs of 10 steps",
        "time ",
        "memory ",
        "disk ",
        "Nothing was written",
    ):
        assert word in said
    assert not (tmp_path / "runs").exists()


def test_a_forecast_of_few_uneven_images_shown_again_and_again(quick, digits):
    for folder in sorted((digits / "train").iterdir())[1:]:
        for image in sorted(folder.iterdir())[2:]:
            image.unlink()
    found = forecast(**quick | {"batch": 36, "data": quick["data"] | {"balance": "sampler"}})
    assert found.train_images == 38
    assert found.steps_per_epoch == 2


def test_a_time_budget_sets_the_epochs(quick, tmp_path, monkeypatch):
    found = forecast(**quick)
    monkeypatch.setattr(loop, "forecast_config", lambda config: found)
    seconds = found.setup + AFTERWARDS + 2.5 * found.epoch
    run = atnet.train(**quick | {"epochs": 9}, time_budget=datetime.timedelta(seconds=seconds), out=tmp_path / "run")
    assert run.record["config"]["epochs"] == 2


def test_auto_takes_a_batch_that_fits_and_writes_it_down(quick, tmp_path, monkeypatch):
    quick = quick | {"model": "xxxs", "weights": "none"}
    free = psutil.virtual_memory()

    def with_free(megabytes):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=int(megabytes * 1e6)))

    with_free(1e6)
    assert fitting_batch(make_config(**quick | {"batch": "auto"})) == 8  # 20 steps of 200 images
    big = make_config(**quick | {"batch": "auto", "data": quick["data"] | {"size": 224}})
    with_free(300)
    assert fitting_batch(big) in (2, 4)
    with_free(60)
    with pytest.raises(TrainingError, match=r"out of memory: xxxs at 224 px needs \d+ MB an image"):
        fitting_batch(big)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    run = atnet.train(**quick | {"batch": "auto"}, out=tmp_path / "run")
    assert run.record["batch"] == 8
    assert "batch: 8" in (run.folder / "config.yaml").read_text()


@pytest.mark.parametrize("batch", ["none", "0", "-4", "2.5"])
def test_a_batch_is_a_count_or_auto(batch):
    with pytest.raises(ConfigError, match="neither a count of images nor auto"):
        make_config(batch=batch)


def test_a_full_memory_names_the_remedy(quick, tmp_path, monkeypatch):
    """The allocator's own error, from asking for more than any machine has."""

    def ask_for_too_much(*_, **__):
        return torch.empty(1 << 60)

    monkeypatch.setattr(torch.nn.GELU, "forward", ask_for_too_much)
    state = plan.State(make_config(**quick | {"model": "mobilenetv3_small_100"}))
    state.forward = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.GELU())
    with pytest.raises(TrainingError, match="out of memory with --batch 20 of 32 px: use half the --batch"):
        plan.train_step(state, torch.zeros(20, 3, 32, 32), torch.zeros(20, dtype=torch.long))


def test_a_plan_for_several_devices_adds_up():
    config = make_config(model="s", epochs=10, batch=1024, data={"size": 224}, optim={"name": "adamw"})
    given = {"images": (102_400, 5_000), "images_per_second": 1000.0}
    one = plan_run(config, devices=1, gigabytes_per_second=10, **given)
    assert (one.steps, one.communication, one.efficiency) == (1000, 0, 1)
    assert one.step == pytest.approx(1.024)
    assert one.evaluation == pytest.approx(2 * 5_000 / 3000)
    assert one.seconds == pytest.approx(1024 + 10 * one.evaluation)
    seldom = plan_run(dataclasses.replace(config, eval_every=4), devices=1, gigabytes_per_second=10, **given)
    assert seldom.seconds == pytest.approx(1024 + 3 * one.evaluation)
    growing = make_config(model="s", epochs=10, batch=1024, data={"size": 224, "first_size": 112})
    areas = [config.area(0, 10), growing.area(0, 10)]
    assert areas == [10, pytest.approx(sum((growing.train_side(epoch) / 224) ** 2 for epoch in range(10)))]
    short = plan_run(growing, devices=1, gigabytes_per_second=10, **given)
    assert short.seconds == pytest.approx(1024 * areas[1] / 10 + 10 * one.evaluation)
    eight = plan_run(config, devices=8, gigabytes_per_second=10, **given)
    assert eight.communication == pytest.approx(8 * 24.765e6 * 7 / 8 / 10e9, rel=1e-3)
    assert (eight.lost, eight.step) == (0, pytest.approx(0.128))
    assert eight.memory < one.memory / 4
    slow = plan_run(config, devices=8, gigabytes_per_second=1, **given)
    assert slow.lost == pytest.approx(slow.communication - 2 / 3 * 0.128)
    assert slow.efficiency == pytest.approx(0.128 / slow.step)
    assert slow.efficiency < 0.8
    with pytest.raises(ConfigError, match="a batch of 1024 cannot be shared by 3 devices"):
        plan_run(config, devices=3, gigabytes_per_second=10, **given)


def test_plan_measures_here_or_takes_what_it_is_told(quick, digits, capsys):
    words = [
        "plan",
        "--data",
        str(digits),
        "--data.size",
        "32",
        "--batch",
        "20",
        "--data.workers",
        "0",
        "--epochs",
        "2",
    ]
    main(words)
    assert "2 epochs of 200 images, batch 20, on 1 x" in capsys.readouterr().out
    main([*words, "--devices", "2", "--images-per-second", "100"])
    said = capsys.readouterr().out
    assert "time    2 s: 20 steps of 100 ms" in said
    assert "Next: torchrun --nproc-per-node 2 -m atnet train" in said
    with pytest.raises(SystemExit):
        main(["plan", "--images-per-second", "100"])
    assert "give --data FOLDER, or --images N" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "--images-per-second", "100", "--images", "1000", "--batch", "auto"])
    assert "--batch auto is found by measuring: give --batch N" in capsys.readouterr().err


def test_a_plan_counts_operations_where_a_device_is_known_by_its_teraflops(capsys):
    speed = counted_speed(make_config(model="xxxs"), teraflops=312, utilisation=0.1)
    assert speed == pytest.approx(31.2e12 / (6 * cost_of("xxxs", 224).macs))
    given = ["plan", "--model", "xxxs", "--weights", "none", "--images", "1281167", "--devices", "8"]
    main([*given, "--teraflops", "312"])
    assert f"on 8 x {speed:,.0f} images/s" in capsys.readouterr().out
    for wrong, said in (
        (["--teraflops", "312", "--images-per-second", "100"], "give one of them"),
        (["--teraflops", "0"], "above 0"),
        (["--teraflops", "312", "--utilisation", "1.5"], "share above 0, up to 1"),
    ):
        with pytest.raises(SystemExit):
            main([*given, *wrong])
        assert said in capsys.readouterr().err


def test_a_budget_is_kept_at_half_the_speed_and_at_twice_it(monkeypatch):
    config = make_config(epochs=10, optim={"lr": 0.01}, schedule={"warmup": 1.0})
    for speed in (0.5, 1.0, 2.0):
        now = [0.0]
        monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=lambda now=now: now[0]))
        pace, step, rates = Pace(budget=1000 + AFTERWARDS, step=1.0, began=0.0), 0, []
        while not pace.over(step, 100, config):
            rates.append(pace.lr(step, 100, config))
            taken = 1.0 if step < 200 else 1 / speed  # as forecast, then not
            now[0] += taken
            pace.advance(taken, 100, config)
            step += 1
        assert now[0] == pytest.approx(1000, abs=3)
        assert step == pytest.approx(200 + 800 * speed, rel=0.02)
        assert max(rates) == pytest.approx(0.01, rel=0.02)
        assert rates[-1] < 2e-4
        assert max(abs(b - a) for a, b in itertools.pairwise(rates)) < 3e-4


def test_a_budget_of_a_run_that_keeps_its_probe_has_no_steps():
    assert Pace(budget=100.0, step=1.0).over(0, 10, make_config(epochs=0, weights="xxxs.general"))


def test_a_budget_goes_on_with_what_is_left_of_it(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pace = Pace(budget=100.0, progress=0.25, step=0.5, began=0.0)
    saved = pace.checkpoint()
    now[0] = 1e6  # the next process, a day later
    again = Pace.restored(saved)
    assert (again.used, again.progress, again.ending) == (10.0, 0.25, -1)


def test_a_run_within_a_budget_ends_with_a_record_and_is_over(quick, tmp_path):
    run = atnet.train(**quick | {"epochs": 9}, time_budget=datetime.timedelta(seconds=25), out=tmp_path / "run")
    rows = read_metrics(run.folder)
    assert run.record["epochs"] == len(rows) > 1
    assert float(rows[-1]["lr"]) < 0.1 * max(float(row["lr"]) for row in rows)
    with pytest.raises(ConfigError, match=r"epochs are done; nothing is left to resume"):
        atnet.train(resume=run.folder)


def test_a_run_without_progress_ends_early_and_resumes_to_the_same(quick, tmp_path, train_until, monkeypatch):
    """Where no epoch is better than the first, the third begins the end: a step or two at a rate that falls."""
    monkeypatch.setattr("atnet.training.pace.LEAST_DECAY", 13)
    options = quick | {"epochs": 9, "early_stop": 2, "optim": {"lr": 1e-9}, "eval_every": 1, "ema": 0.0}
    run = atnet.train(**options, out=tmp_path / "whole")
    rows = read_metrics(run.folder)
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 43]
    assert run.record["epochs"] == 5
    train_until(4, **options, out=tmp_path / "broken")
    again = atnet.train(resume=tmp_path / "broken")
    assert [row["lr"] for row in read_metrics(again.folder)] == [row["lr"] for row in rows]
    assert again.record["loss"] == run.record["loss"]
    with pytest.raises(ConfigError, match=r"all 5 epochs are done"):
        atnet.train(resume=again.folder)


def test_what_is_left_is_reckoned_with_the_speed_of_late(quick):
    config = make_config(epochs=4, eval_every=2, data={"size": 64, "first_size": 32})
    pace = Pace(step=2.0, evaluation=30.0)
    areas = [config.area(epoch, epoch + 1) for epoch in range(4)]
    assert areas[0] < areas[1] < areas[3] == 1
    assert pace.seconds_left(60, 100, config) == pytest.approx(2 * (40 + 100 * sum(areas[1:]) / areas[0]) + 60)
    assert pace.seconds_left(399, 100, config) == pytest.approx(2 + 30)
    pace.end_early(200)
    assert pace.seconds_left(210, 100, config) == pytest.approx(2 * 10 + 30)
