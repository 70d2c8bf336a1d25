"""Batch statistics of parts of a batch, those of one image among them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import atnet
from atnet.training.norm import RunningStatistics


@pytest.fixture
def images(tmp_path):
    """Eight training images, one of which can't be read, and four others."""
    for number in range(12):
        folder = tmp_path / "set" / ("train" if number < 8 else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "set/train/a/0.png").write_bytes(b"no image")
    return tmp_path / "set"


@pytest.mark.parametrize("model", ["xxxs", "mobilenetv3_small_100"])
@pytest.mark.parametrize("shares", [(1, 1), (2, 1), (2, 2)])
def test_a_part_of_one_image_trains_where_that_is_one_number_a_channel(images, tmp_path, model, shares):
    batch, parts = shares
    run = atnet.train(
        data=images, model=model, out=tmp_path / "run", epochs=1, batch=batch, threads=1,
        **{"data.size": 16, "data.workers": 0, "data.max_bad": 0.5, "optim.accumulate": parts},
    )  # fmt: skip
    trained, _ = atnet.load(run.folder)
    assert all(bool(tensor.isfinite().all()) for tensor in trained.state_dict().values())


def test_such_a_layer_normalises_by_what_was_before_the_step_and_stays(capsys):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(3)
    )
    statistics = RunningStatistics(model)
    whole, one = torch.randn(4, 3, 5, 5), torch.randn(1, 3, 5, 5) + 2
    with statistics.part(whole):
        model(whole)
    statistics.finish([statistics.read()])
    statistics.begin()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model[2].eval()  # frozen, and to stay so
    with statistics.part(one):
        out = model(one)
        row = statistics.read()
    statistics.finish([row])
    assert [part.training for part in model] == [True, True, False, True, True]
    for name, tensor in model.named_buffers():
        if "num" not in name:
            assert torch.equal(tensor, before[name]) == (not name.startswith("0."))
    pooled = ((one - one.mean((2, 3), True)) / (one.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()).mean(
        (2, 3)
    )
    for layer in (2, 4):
        mean, var = before[f"{layer}.running_mean"], before[f"{layer}.running_var"]
        pooled = (pooled - mean) / (var + 1e-5).sqrt()
    torch.testing.assert_close(out, pooled, rtol=1e-4, atol=1e-5)
