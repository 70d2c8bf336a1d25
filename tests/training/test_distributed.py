"""Several real processes on one training, started as a user starts them."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import atnet
from atnet.config import make_config, to_yaml
from atnet.errors import ConfigError
from atnet.run.record import checkpoints, read_metrics, read_record
from atnet.training import distributed
from atnet.training.checkpoint import saved_step
from atnet.training.state import State

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
AUGMENT = {"randaugment": 1, "mixup": 0.2, "flip": 0.0}


@pytest.fixture
def options(quick, digits):
    """Two parts a batch, with all that draws random numbers; 50 validation images, 25 for each of two processes."""
    data = quick["data"] | {"workers": 1}
    return quick | {"epochs": 2, "drop_path": 0.2, "augment": AUGMENT, "optim": {"accumulate": 2}, "data": data}


def start(options, out: Path, count: int = 2, *more: str) -> subprocess.Popen:
    recipe = out.with_suffix(".yaml")
    recipe.write_text(to_yaml(make_config(**options)))
    command = [*LAUNCH[:-1], str(count), *more, "-m", "atnet", "train", str(recipe), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def figures(run: Path) -> list[tuple[float, float, float]]:
    rows = read_metrics(run)
    return [(float(row["train_loss"]), float(row["val_loss"]), float(row["ema_val_loss"])) for row in rows]


@pytest.mark.slow
def test_two_processes_train_what_one_does(options, tmp_path):
    said = finish(start(options, tmp_path / "two"))
    assert said.count("Written to") == 1
    one = atnet.train(**options, out=tmp_path / "one")
    for ours, theirs in zip(figures(one.folder), figures(tmp_path / "two"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    before, after = load_file(one.folder / "last.safetensors"), load_file(tmp_path / "two" / "last.safetensors")
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=2e-3, rtol=1e-2, msg=name)
    assert read_record(tmp_path / "two")[1]["val_images"] == 50
    lines = (tmp_path / "two" / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        line.split(",")[0] for line in (one.folder / "predictions.csv").read_text().splitlines()
    ]


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_with_one_process(options, tmp_path):
    whole = atnet.train(**options | {"epochs": 3}, out=tmp_path / "whole").folder
    process = start(options | {"epochs": 3}, tmp_path / "run")
    while not checkpoints(tmp_path / "run"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.terminate()
    said, _ = process.communicate(timeout=120)
    assert "saved; go on with: atnet train --resume" in said
    assert not (tmp_path / "run" / "record.json").exists()
    atnet.train(resume=tmp_path / "run")
    for ours, theirs in zip(figures(whole), figures(tmp_path / "run"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_a_killed_process_comes_back_from_the_last_checkpoint(options, tmp_path):
    process = start(options | {"epochs": 3}, tmp_path / "run", 2, "--max-restarts", "2")
    while not checkpoints(tmp_path / "run"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    trainers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.is_running() and "atnet" in child.cmdline() and child.environ().get("RANK") == "1"
    ]
    trainers[0].kill()
    finish(process)
    assert len(read_metrics(tmp_path / "run")) == 3
    assert read_record(tmp_path / "run")[1]["environment"]["resumed"]


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_them_all_with_its_message(options, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    process = start(options, tmp_path / "run")
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "exists and is not empty" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--time-budget", "1m"), "--time-budget measures one process"),
        (("--batch", "auto"), "--batch auto measures one process"),
    ],
)
def test_what_one_process_measures_is_refused_to_several(options, tmp_path, more, said):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(to_yaml(make_config(**options)))
    done = subprocess.run([*LAUNCH, "-m", "atnet", "train", str(recipe), *more], capture_output=True, text=True)
    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / "runs").exists()


def test_parts_that_cannot_be_shared_say_how_many_processes_can(options, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match="a batch of 2 parts .* cannot be shared by 3 processes: use 1, 2 of them"):
        State(make_config(**options))


def stalled(options, out: Path, process: int, where: str) -> subprocess.Popen:
    """A training of two processes, one of which waits for its data for ever; returns when it does."""
    (out.parent / "recipe.yaml").write_text(to_yaml(make_config(**options)))
    command = [*LAUNCH, str(Path(__file__).with_name("stalled.py")), str(out.parent / "recipe.yaml"), str(out)]
    begun = subprocess.Popen(
        [*command, str(process), where], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=out.parent
    )
    while not (out.parent / "STALLED").exists():
        assert begun.poll() is None, begun.communicate()
        time.sleep(0.02)
    return begun


def resume(run: Path) -> None:
    subprocess.run([*LAUNCH, "-m", "atnet", "train", "--resume", str(run)], check=True, capture_output=True)


SIGNALLED = list(itertools.product((0, 1), ("PID-0", "PID-1", "torchrun")))
"""The process that waits for data, and who gets the signal: it, the one that waits for that one, or torchrun."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases", [SIGNALLED[1::4], pytest.param(SIGNALLED, marks=pytest.mark.exhaustive)], ids=["two", "all"]
)
def test_a_signal_stops_all_though_one_waits_for_its_data(options, tmp_path, cases):
    finish(start(options, tmp_path / "whole"))
    whole = load_file(tmp_path / "whole" / "last.safetensors")
    for number, (process, told) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        begun = stalled(options, folder / "run", process, "13")
        time.sleep(1)  # for the other one to come to where it waits
        asked = begun.pid if told == "torchrun" else int((folder / told).read_text())
        os.kill(asked, signal.SIGTERM)
        said, _ = begun.communicate(timeout=30)
        assert "stopped after step 13 of 20, saved" in said
        assert saved_step(checkpoints(folder / "run")[0]) == 13
        resume(folder / "run")
        for name, tensor in load_file(folder / "run" / "last.safetensors").items():
            assert torch.equal(tensor, whole[name]), (process, told, name)


@pytest.mark.slow
def test_a_signal_stops_an_evaluation_of_all(options, tmp_path):
    process = stalled(options, tmp_path / "run", 1, "evaluation")
    os.kill(int((tmp_path / "PID-0").read_text()), signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert "stopped after step 10 of 20, saved" in said
    resume(tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 2


@pytest.mark.slow
def test_the_first_process_may_take_longer_at_the_start_than_a_step_may(options, tmp_path):
    process = stalled(options, tmp_path / "run", 0, "start")  # of twice as long as stalled.py lets a step take
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert len(read_metrics(tmp_path / "run")) == 2


def test_what_lies_on_cpus_goes_by_gloo_where_there_are_gpus_too(monkeypatch):
    asked = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(dist, "rendezvous", lambda *given, **named: iter([(dist.HashStore(), 0, 1)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **named: asked.append((backend, named["timeout"])))
    monkeypatch.setattr(dist, "new_group", lambda **named: asked.append((named["backend"], named["timeout"])))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed._Joined, "backend", "gloo")
    with distributed.process_group():
        pass
    assert asked == [("cpu:gloo,cuda:nccl", distributed.WORK), ("gloo", distributed.WAITING)]
    assert distributed.WORK > distributed.WAITING > distributed.STEP
