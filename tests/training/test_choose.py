import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import atnet
from atnet.cli import main
from atnet.data.sources import open_configured
from atnet.training.choose import Comparison, compare_with_probe, folds_to_train
from atnet.training.plan import configure, forecast, settle

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def options(five_digits, finished_run) -> dict:
    data = {"source": str(five_digits), "workers": 0}
    return {"data": data, "weights": str(finished_run), "batch": 20, "epochs": 1, "augment": {"flip": 0.0}}


def test_where_fine_tuning_does_harm_the_probe_is_kept(options, five_digits, capsys):
    words = ["--data", str(five_digits), "--data.workers", "0", "--weights", options["weights"], "--batch", "20"]
    main(["train", *words, "--epochs", "2", "--optim.name", "adamw", "--optim.lr", "3", "--ema", "0", "--out", "run"])
    record = json.loads(Path("run/record.json").read_text())
    found = record["probe"]
    assert found["compared_images"] == 100, "each training image once, none of validation"
    assert found["compared_probe"] - found["compared_tuned"] > found["compared_error"] > 0
    assert record["epochs"] == 0
    probed = atnet.probe(options["data"], options["weights"], batch=20, out="probed")
    assert record["top1"] == probed.record["top1"]
    main(["report", "run"])
    page = Path("run/report.html").read_text()
    assert "so the probe was kept" in page
    assert f"the probe had {found['compared_probe']:.1f}% right" in page


def test_fine_tuning_goes_on_where_it_is_as_good(options, monkeypatch):
    monkeypatch.setattr("atnet.training.state.draws_head", lambda model: False)  # as of networks that are not ours
    gentle = options | {"optim": {"lr": 1e-9}, "ema": 0.0}
    found = atnet.train(**gentle, out="run").record
    assert found["epochs"] == 1
    assert found["probe"]["compared_probe"] == found["probe"]["compared_tuned"]
    assert "compared_probe" not in atnet.train(**gentle, choose=False, out="other").record["probe"]


def test_validation_images_decide_nothing(options, five_digits):
    config = settle(configure(**options))
    found = compare_with_probe(config, open_configured(config.data)[0])
    for image in (five_digits / "val").rglob("*.png"):
        image.write_bytes(b"no image")
    assert compare_with_probe(config, open_configured(config.data)[0]) == found


@pytest.mark.parametrize(("error", "kept"), [(5.0, False), (1.0, True)])
def test_chance_keeps_fine_tuning(error, kept):
    assert Comparison(probe=83.0, tuned=80.0, images=100, error=error).keep_probe == kept


@pytest.mark.parametrize(
    ("counts", "folds"),
    [([5] * 5, 3), ([20] * 5, 3), ([60] * 5, 1), ([30] * 5, 2), ([2, 40], 2), ([1, 400], 0), ([3000] * 2, 0)],
)
def test_as_few_folds_are_trained_as_judge_eighty_images(counts, folds, options):
    labels = np.repeat(np.arange(len(counts)), counts)
    assert folds_to_train(settle(configure(**options)), labels) == folds


def test_the_head_of_the_same_classes_is_compared_with_nothing(finished_run, digits):
    options = {"data": {"source": str(digits), "workers": 0}, "weights": str(finished_run), "epochs": 1, "batch": 20}
    config = settle(configure(**options))
    assert compare_with_probe(config, open_configured(config.data)[0]) is None
    assert forecast(**options).folds == 0


def test_a_forecast_counts_the_trainings_of_the_comparison(options):
    found = forecast(**options)
    assert found.folds == 3
    assert found.seconds == pytest.approx(found.setup + found.epoch + 3 * 2 / 3 * found.steps_per_epoch * found.step)
    assert forecast(**options, choose=False).folds == 0


def test_batch_norm_keeps_the_statistics_of_weights_unless_asked(options):
    before = load_file(Path(options["weights"]) / "ema.safetensors")
    running = [name for name in before if name.endswith(("running_mean", "running_var"))]
    for how, moved in (({}, False), ({"batchnorm": "train"}, True)):
        folder = atnet.train(**options, **how, choose=False, out=f"run-{moved}").folder
        after = load_file(folder / "last.safetensors")
        assert {not torch.equal(before[name], after[name]) for name in running} == {moved}
        assert not torch.equal(before["encoder.1.mlp.fc1.weight"], after["encoder.1.mlp.fc1.weight"])
