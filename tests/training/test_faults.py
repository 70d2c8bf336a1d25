import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import atnet
from atnet.cli import main
from atnet.errors import ConfigError, TrainingError
from atnet.models.atnet import SeparableConv
from atnet.run.record import checkpoints, read_metrics
from atnet.training import state as states
from atnet.training.faults import replay


@pytest.fixture
def spoil(monkeypatch):
    """Makes the given steps go wrong: in the network, in a gradient, or in a running statistic."""

    def spoil(wrong: dict[int, str]):
        prepare, forward = states.prepare, SeparableConv.forward
        now = {"step": -1}

        def preparing(state, pixels, labels, part):
            now["step"] = state.step
            return prepare(state, pixels, labels, part)

        def spoilt(self, grid):
            kind = wrong.get(now["step"]) if self.training else None
            out = forward(self, grid)
            if kind == "loss":
                return out * float("nan")
            if kind == "gradient":
                out.register_hook(lambda gradient: gradient * float("inf"))
            if kind == "statistic":
                self.norm.running_var.data.fill_(float("inf"))
            return out

        monkeypatch.setattr(states, "prepare", preparing)
        monkeypatch.setattr(SeparableConv, "forward", spoilt)

    return spoil


def test_what_is_not_finite_is_not_taken_noted_and_can_be_replayed(quick, tmp_path, spoil, capsys):
    spoil({3: "loss", 7: "gradient", 12: "statistic"})
    run = atnet.train(**quick | {"epochs": 2, "save_minutes": 0.0, "keep": 100}, out=tmp_path / "run").folder
    for path in checkpoints(run):
        tensors = torch.load(path)["networks"]
        assert all(torch.isfinite(t).all() for network in tensors.values() for t in network.values())
    assert len(checkpoints(run)) == 20 + 2  # and one at each end of an epoch
    before, after = (torch.load(checkpoints(run)[::-1][step])["networks"]["last.safetensors"] for step in (2, 3))
    counts = [n for n in before if n.endswith("num_batches_tracked")]
    assert [n for n in before if n not in counts and not torch.equal(before[n], after[n])] == []

    with (run / "faults" / "faults.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["epoch"]) for row in rows] == [("3", "1"), ("7", "1"), ("12", "2")]
    assert [row["fault"].split(" is ")[0] for row in rows] == [
        "the loss", "the gradient's norm", "the sum of batch statistics",
    ]  # fmt: skip
    assert len(set(rows[0]["images"].split())) == 20

    found = [replay(run, step) for step in (3, 7, 12)]
    assert [one.fault for one in found] == [row["fault"] for row in rows]
    assert found[0].layer.startswith("stages.2.")
    assert found[1].layer == ""
    assert "stem.0.conv.weight" in found[1].gradients
    main(["replay", str(run), "7"])
    assert f"Step 7: {rows[1]['fault']}\n" in capsys.readouterr().out
    assert json.loads((run / "record.json").read_text())["loss"]["last"] < 10, (
        "steps that are not finite changed nothing"
    )


def test_a_replayed_step_has_the_images_and_the_loss_of_the_run(quick, tmp_path, spoil, monkeypatch):
    seen = {}
    take = states.train_step

    def taking(state, pixels, *words):
        seen.setdefault(state.step, pixels.clone())
        return take(state, pixels, *words)

    monkeypatch.setattr("atnet.training.loop.train_step", taking)
    spoil({5: "gradient"})
    augment = {"randaugment": 2, "erasing": 0.5}
    options = quick | {"augment": augment, "data": quick["data"] | {"workers": 2, "cache": "ram", "cache_size": 32}}
    run = atnet.train(**options, out=tmp_path / "run").folder
    unbroken = seen.pop(5)
    monkeypatch.setattr("atnet.training.faults.train_step", taking)
    replay(run, 5)
    assert torch.equal(seen[5], unbroken)


def test_too_many_in_a_row_stop_the_run_with_what_was_seen(quick, tmp_path, spoil):
    spoil({2: "loss", **dict.fromkeys(range(4, 40), "gradient")})
    with pytest.raises(TrainingError, match=r"at step 8 \(epoch 1\), and 5 steps in a row.*replay .* 2` what happened"):
        atnet.train(**quick, out=tmp_path / "run")
    assert (tmp_path / "run" / "faults" / "faults.csv").is_file()


def test_a_step_that_was_finite_says_which_are_not(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run").folder
    with pytest.raises(
        ConfigError, match="step 4 is not among those that can be replayed; every step of it was finite"
    ):
        replay(run, 4)
    assert [row["step"] for row in read_metrics(run)] == ["10"]
    assert not (Path(run) / "faults").exists()
    assert load_file(run / "last.safetensors")
