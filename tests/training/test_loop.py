import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

import atnet
from atnet.config import Config, make_config, to_yaml
from atnet.errors import ConfigError, DataError, Stopped, TrainingError
from atnet.eval.fitting import describe_fit
from atnet.run.record import checkpoints, open_run, read_metrics
from atnet.training import loop


def test_a_run_leaves_what_is_promised(quick, tmp_path):
    run = atnet.train(**quick | {"epochs": 2}, out=tmp_path / "run")
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "best.safetensors", "checkpoints", "config.yaml", "ema.safetensors", "environment.yaml", "last.safetensors",
        "metrics.csv", "predictions.csv", "record.json", "sha256.json",
    ]  # fmt: skip
    rows = read_metrics(run.folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5", "ema_val_top1",
            "ema_val_top5", "lr", "images_per_s", "peak_memory_mb"} <= set(rows[0])  # fmt: skip
    assert run.record["top1"]["last"] == float(rows[-1]["val_top1"])
    assert run.record["best_top1"] == max(float(row[c]) for row in rows for c in ("val_top1", "ema_val_top1"))
    assert run.record["parameters"] - run.record["parameters_without_classifier"] == 192 * 10 + 10
    assert {"command", "commit", "torch", "threads", "processor"} <= set(run.record["environment"])
    assert make_config(run.folder / "config.yaml").model == f"atnet_{quick['model']}"
    assert Path("runs/last").resolve() == run.folder.resolve()


@pytest.mark.slow
def test_evaluations_are_as_far_apart_as_asked(quick, tmp_path):
    every = atnet.train(**quick | {"epochs": 5}, out=tmp_path / "every")
    second = atnet.train(**quick | {"epochs": 5, "eval_every": 2}, out=tmp_path / "second")
    rows = [read_metrics(run.folder) for run in (every, second)]
    assert [row["epoch"] for row in rows[1] if row["val_top1"]] == ["2", "4", "5"]
    columns = [name for name in rows[0][0] if name.startswith(("train", "val", "ema"))]
    for at in (1, 3, 4):
        assert [rows[0][at][name] for name in columns] == [rows[1][at][name] for name in columns]
    assert [rows[1][0][name] for name in columns[3:]] == [""] * 6
    assert second.record["top1"] == every.record["top1"]
    assert second.record["best_top1"] == max(
        float(row[c] or 0) for row in rows[1] for c in ("val_top1", "ema_val_top1")
    )
    assert (second.folder / "curves.png") in atnet.render_run(second.folder)
    assert "Fewer than three epochs" not in " ".join(describe_fit(rows[1], second.record["config"]))


def test_the_network_learns(quick, tmp_path):
    options = quick | {"model": "xxxs", "weights": "none", "epochs": 10}
    options |= {"data": quick["data"] | {"cache": "ram", "cache_size": 32}}
    options["augment"] = {"flip": 0.0, "crop_scale": 0.9}
    run = atnet.train(**options, optim={"lr": 2e-3}, out=tmp_path / "run")
    losses = [float(row["train_loss"]) for row in read_metrics(run.folder)]
    assert losses[-1] < losses[0] - 0.5
    assert run.record["top1"]["last"] > 40  # of ten classes


def test_several_heads_learn_together_and_are_recorded_apart(quick_star, tmp_path):
    run = atnet.train(**quick_star, out=tmp_path / "run")
    found = run.record["heads"]["ema"]
    assert [len(found[name]) for name in ("top1", "loss")] == [5, 5]
    assert 0 < found["disagreement"] < 100
    assert len(set(found["loss"])) == 5, "each head has a loss of its own"
    info = atnet.evaluate(run.folder).info
    assert info.facts["trust"]["images"] == len(atnet.evaluate(run.folder).scores.labels)
    before, after = (load_file(path) for path in (run.folder / "last.safetensors", run.folder / "ema.safetensors"))
    assert any(name.startswith("adapters") and not torch.equal(before[name], after[name]) for name in before)


def test_same_seed_same_weights_another_seed_others(quick, tmp_path):
    augment = quick["augment"] | {"randaugment": 1, "erasing": 0.3, "mixup": 0.2, "cutmix": 1.0}
    options = quick | {"augment": augment, "drop_path": 0.2}

    def weights(name, **more):
        return load_file(atnet.train(**options | more, out=tmp_path / name).folder / "last.safetensors")

    one, again, other = weights("one"), weights("again"), weights("other", seed=1)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not all(torch.equal(one[n], other[n]) for n in one)


def test_killed_run_ends_with_the_weights_of_an_unbroken_run(quick, tmp_path):
    """A real process, killed in its second epoch; resumed with another number of loader workers."""
    options = quick | {"epochs": 3, "drop_path": 0.2, "augment": {"randaugment": 1, "mixup": 0.2}}
    options["data"] = options["data"] | {"first_size": 16}
    options["optim"] = {"name": "muon"}  # and AdamW, for what Muon leaves
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(make_config(**options)))
    whole = atnet.train(recipe, out=tmp_path / "whole")

    broken = tmp_path / "broken"
    command = [sys.executable, "-m", "atnet", "train", str(recipe), "--out", str(broken)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not checkpoints(broken):
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "record.json").exists()

    config = yaml.safe_load((broken / "config.yaml").read_text())
    config["data"]["workers"] = 2
    (broken / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run([sys.executable, "-m", "atnet", "train", "--resume", str(broken)], capture_output=True)
    assert done.returncode == 0, done.stderr
    for name in ("last.safetensors", "ema.safetensors", "best.safetensors"):
        one, other = load_file(whole.folder / name), load_file(broken / name)
        assert [n for n in one if not torch.equal(one[n], other[n])] == []
    losses = [[row["train_loss"] for row in read_metrics(run)] for run in (whole.folder, broken)]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_the_rest_gives_the_weights_of_an_unbroken_run(quick, tmp_path, number, code):
    """A real process with loader processes, all of them interrupted in its second epoch, as a system does it."""
    options = quick | {"epochs": 3, "ema": 0.99, "drop_path": 0.1, "data": quick["data"] | {"workers": 2}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(make_config(**options)))
    whole = atnet.train(recipe, out=tmp_path / "whole")

    broken = tmp_path / "broken"
    command = [sys.executable, "-m", "atnet", "train", str(recipe), "--out", str(broken)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # these tests may run under nohup
    )
    while not checkpoints(broken):
        assert process.poll() is None, "the training ended before it could be interrupted"
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, said = process.communicate()
    assert process.returncode == code, said
    assert f"saved; go on with: atnet train --resume {broken}" in said
    assert "Traceback" not in said

    atnet.train(resume=broken)
    for name in ("last.safetensors", "ema.safetensors", "best.safetensors"):
        one, other = load_file(whole.folder / name), load_file(broken / name)
        assert [n for n in one if not torch.equal(one[n], other[n])] == []
    losses = [[(row["train_loss"], row["val_loss"]) for row in read_metrics(run)] for run in (whole.folder, broken)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_killed_loader_process_is_named_and_the_run_goes_on_from_its_checkpoint(quick, tmp_path):
    options = quick | {"epochs": 3, "data": quick["data"] | {"workers": 2}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(make_config(**options)))
    command = [sys.executable, "-m", "atnet", "train", str(recipe), "--out", "broken", "--epochs", "50"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not checkpoints(tmp_path / "broken"):
        assert process.poll() is None, "the training ended before a loader could be killed"
        time.sleep(0.02)
    workers = [child for child in psutil.Process(process.pid).children() if child.name().startswith("pt_data_worker")]
    (workers or psutil.Process(process.pid).children())[0].kill()
    _, said = process.communicate()
    assert process.returncode == 2, said
    assert "a loader process ended" in said
    assert "saved after step" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(quick, tmp_path):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(to_yaml(make_config(**quick | {"epochs": 50, "data": quick["data"] | {"workers": 2}})))
    command = [sys.executable, "-m", "atnet", "train", str(recipe), "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not checkpoints(run):
            assert process.poll() is None, "the training ended before another one could begin"
            time.sleep(0.02)
        assert loop.unfinished_run(open_run(run), run) is None
        with pytest.raises(ConfigError, match="run: another process trains it now"):
            atnet.train(resume=run)
    finally:
        process.kill()
        process.wait()
    saved = checkpoints(run)[0]
    assert loop.unfinished_run(open_run(run), run) == run  # though its loader processes may still be there
    (saved.parent / f".{saved.name}.0123456789abcdef.tmp").write_bytes(b"half of it")
    (run / ".ema.safetensors.0123456789abcdef.tmp").write_bytes(b"half of it")
    for name in (mine := ("thesis.tmp", "step-mine.pt", "step-0000000001-epoch-000001-copy.pt")):
        (saved.parent / name).write_bytes(b"years of work")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"epochs": 1 + int(saved.name.split("-")[3])}))
    atnet.train(resume=run)
    assert [path.name for path in run.rglob("*.tmp")] == ["thesis.tmp"]
    assert all((saved.parent / name).read_bytes() == b"years of work" for name in mine)


def test_a_run_that_ended_before_its_first_checkpoint_can_be_begun_again(quick, tmp_path):
    run, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(make_config(**quick | {"epochs": 50})))
    command = [sys.executable, "-m", "atnet", "train", str(recipe), "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "environment.yaml").exists():
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not checkpoints(run)
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / f".step-0000000001-epoch-000000-{'a' * 16}.pt.{'0' * 16}.tmp").write_bytes(b"half of it")
    assert atnet.train(**quick, out=run).record["epochs"] == quick["epochs"]
    mine = tmp_path / "mine"  # a folder with something of the user's in it stays as it is
    mine.mkdir()
    (mine / "config.yaml").write_text(recipe.read_text())
    with pytest.raises(ConfigError, match="exists and is not empty"):
        atnet.train(**quick, out=mine)
    assert (mine / "config.yaml").read_text() == recipe.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["next batch", "step", "evaluation", "save"])
def test_an_interruption_anywhere_leaves_a_step_to_go_on_from(quick, tmp_path, monkeypatch, where):
    options = quick | {"epochs": 2}
    whole = atnet.train(**options, out=tmp_path / "whole")
    calls = 0

    def interrupting(function, at):
        def run(*words, **named):
            nonlocal calls
            calls += 1
            if calls == at:
                signal.raise_signal(signal.SIGINT)
            return function(*words, **named)

        return run

    name, at = {
        "next batch": ("progress_bar", 2), "step": ("train_step", 13), "evaluation": ("score_together", 2),
        "save": ("_save", 1),
    }[where]  # fmt: skip
    monkeypatch.setattr(loop, name, interrupting(getattr(loop, name), at))
    with pytest.raises(Stopped, match="saved; go on with"):
        atnet.train(**options, out=tmp_path / "broken")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    steps = torch.load(checkpoints(tmp_path / "broken")[0])["step"]
    assert steps == {"next batch": 10, "step": 13, "evaluation": 20, "save": 10}[where]
    again = atnet.train(resume=tmp_path / "broken")
    assert read_metrics(again.folder)[-1]["val_loss"] == read_metrics(whole.folder)[-1]["val_loss"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resuming_a_finished_run_says_so(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="all 1 epochs are done"):
        atnet.train(resume=run.folder)


def test_a_run_cut_off_after_its_last_epoch_gets_its_record(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    (run.folder / "record.json").unlink()
    again = atnet.train(resume=run.folder)
    assert again.record["top1"] == run.record["top1"]
    assert len(again.record["environment"]["resumed"]) == 1


def test_resuming_on_other_images_says_so(quick, digits, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    (run.folder / "record.json").unlink()
    next((digits / "train" / "six").iterdir()).unlink()
    with pytest.raises(ConfigError, match="its images are not those the run began with"):
        atnet.train(resume=run.folder)


def test_the_pointer_to_the_newest_run_replaces_nothing_else(quick, tmp_path):
    Path("runs").mkdir()
    Path("runs/last").write_text("my notes")
    with pytest.raises(ConfigError, match="not a pointer to a run"):
        atnet.train(**quick, out=tmp_path / "run")
    assert Path("runs/last").read_text() == "my notes"
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="no run is called so"):
        atnet.train(**quick, out="runs/last")


def test_a_pointer_file_serves_where_links_cannot_be_made(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    Path("runs/last").unlink()
    Path("runs/last").write_text("../run")
    assert round(atnet.evaluate("runs/last").scores.top1, 4) == run.record["top1"]["ema"]
    newer = atnet.train(**quick, out=tmp_path / "newer")
    assert Path("runs/last").resolve() == newer.folder.resolve()


def test_a_network_that_cannot_take_the_size_says_so_before_the_run(quick, tmp_path):
    with pytest.raises(ConfigError, match="crossvit_9_240"):
        atnet.train(**quick | {"model": "crossvit_9_240"}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_says_so(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    (run.folder / "record.json").unlink()
    [checkpoint] = checkpoints(run.folder)
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="every checkpoint in it is damaged"):
        atnet.train(resume=run.folder)


def test_resume_takes_no_other_options(tmp_path):
    with pytest.raises(ConfigError, match="nothing else"):
        atnet.train(resume=tmp_path, epochs=3)


def test_nothing_is_overwritten(quick, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        atnet.train(**quick, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_fewer_images_than_the_batch_are_shown_more_than_once(quick, tmp_path):
    run = atnet.train(**quick | {"batch": 512}, out=tmp_path / "run")
    (row,) = read_metrics(run.folder)
    assert int(row["step"]) == 1
    assert 0 <= float(row["train_top1"]) < 100


def test_a_loss_that_is_not_finite_stops_the_run(quick, tmp_path):
    with pytest.raises(TrainingError, match="lower --optim.lr"):
        atnet.train(**quick, optim={"lr": 1e30, "clip": 0}, schedule={"warmup": 0}, out=tmp_path / "run")


def test_an_absent_device_says_which_are_there(quick, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(ConfigError, match="device=cuda: torch does not see one; here are: cpu"):
        atnet.train(**quick | {"device": "cuda"}, out=tmp_path / "run")


def test_accumulation_leaves_the_gradient_of_the_whole_batch(quick, tmp_path):
    """On a network without batch statistics, whose parts then add up to the whole; a peer of a fixed input size."""
    options = quick | {"model": "vit_tiny_patch16_224", "augment": {"flip": 0.0}, "ema": 0.0, "batch": 100}
    whole = atnet.train(**options, out=tmp_path / "whole")
    parts = atnet.train(**options, optim={"accumulate": 4}, out=tmp_path / "parts")
    for run in (whole, parts):
        assert not (run.folder / "ema.safetensors").exists()
    losses = [float(read_metrics(run.folder)[0]["train_loss"]) for run in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_bf16_and_checkpointing_train(quick, tmp_path):
    losses = [
        float(read_metrics(atnet.train(**quick | options, out=tmp_path / name).folder)[0]["train_loss"])
        for name, options in {
            "plain": {"precision": "fp32"},
            "saving": {"precision": "bf16", "checkpointing": True},
        }.items()
    ]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.slow
def test_the_imagenet_recipe_takes_two_steps_on_made_up_images(digits, tmp_path):
    recipe = Path(__file__).parent.parent.parent / "recipes" / "imagenet.yaml"
    run = atnet.train(
        recipe, batch=100, epochs=1, schedule={"cycle": 0},
        data={"source": str(digits), "workers": 0}, optim={"accumulate": 10}, out=tmp_path / "run",
    )  # fmt: skip
    config = make_config(run.folder / "config.yaml")
    assert (config.data.size, config.augment.randaugment, config.augment.erasing) == (224, 2, 0.25)
    with (run.folder / "metrics.csv").open() as file:
        assert next(csv.DictReader(file))["step"] == "2"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xxxs", "xxs", "xs", "s", "s_star", "l"])
def test_each_sizes_imagenet_recipe_takes_two_steps_at_a_small_size(digits, tmp_path, name):
    recipe = Path(__file__).parent.parent.parent / "recipes" / f"imagenet_{name}.yaml"
    data = {"source": str(digits), "size": 32, "train_size": 32, "first_size": 16, "workers": 0}
    run = atnet.train(recipe, batch=100, epochs=1, data=data, out=tmp_path / "run")
    assert run.record["model"] == f"atnet_{name}"
    with (run.folder / "metrics.csv").open() as file:
        assert next(csv.DictReader(file))["step"] == "2"


def test_every_option_is_part_of_a_run(quick, tmp_path):
    """No option that the configuration offers is lost on the way into the run's folder."""
    run = atnet.train(**quick, out=tmp_path / "run")
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    for field in dataclasses.fields(Config):
        assert field.name in saved
    assert saved["data"]["source"] == os.path.realpath(quick["data"]["source"])


def test_a_run_that_fails_before_anything_is_saved_leaves_nothing(quick, digits, tmp_path):
    first = atnet.train(**quick, out=tmp_path / "first")
    whole = {path: path.read_bytes() for path in (digits / "val").rglob("*.png")}
    for path in whole:
        path.write_text("text")
    with pytest.raises(DataError, match="none of 50 images to evaluate on can be read"):
        atnet.train(**quick, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert Path("runs/last").resolve() == first.folder.resolve(), "the newest run that has saved something"
    for path, content in whole.items():
        path.write_bytes(content)
    again = atnet.train(**quick, out=tmp_path / "run")
    for name in ("last.safetensors", "ema.safetensors", "best.safetensors"):
        assert (again.folder / name).read_bytes() == (first.folder / name).read_bytes(), "the file's every byte"


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_losses(quick, tmp_path):
    plain = atnet.train(**quick, precision="fp32", out=tmp_path / "plain")
    compiled = atnet.train(**quick, precision="fp32", compile=True, out=tmp_path / "compiled")
    for ours, theirs in zip(read_metrics(plain.folder), read_metrics(compiled.folder), strict=True):
        for name in ("train_loss", "val_loss", "ema_val_loss"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=5e-3)
    before, after = (load_file(run.folder / "last.safetensors") for run in (plain, compiled))
    assert before.keys() == after.keys()
