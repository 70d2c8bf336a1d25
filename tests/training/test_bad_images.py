"""Training on data sets in which some images cannot be read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atnet.data.sources import open_parts
from atnet.errors import DataError, Stopped
from atnet.eval.evaluate import evaluate
from atnet.run.record import read_record, read_rows
from atnet.training.loop import resume_run, train
from atnet.training.plan import configure, settle
from atnet.training.state import State, _loss, train_step


def spoil(digits, part, *places):
    """Makes images unreadable; returns their ids."""
    images = dict(zip(("train", "val"), open_parts(str(digits), 0.2), strict=True))[part]
    for place in places:
        Path(images.locate(place)).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return [images.ids[place] for place in places]


def test_broken_images_are_skipped_listed_and_counted(digits, quick):
    bad = spoil(digits, "train", 17, 101)
    bad_val = spoil(digits, "val", 3)
    run = train(**quick)
    rows = read_rows(run.folder / "bad_files.csv")
    assert sorted((row["part"], row["image"]) for row in rows) == sorted(
        [("train", name) for name in bad] + [("val", name) for name in bad_val]
    )
    assert all("a damaged PNG, not a whole" in row["reason"] for row in rows)
    _, record = read_record(run.folder)
    assert record["bad_images"] == {"train": 2, "val": 1}
    predictions = read_rows(run.folder / "predictions.csv")
    assert len(predictions) == 49
    assert bad_val[0] not in {row["image"] for row in predictions}
    found = evaluate(run.folder)
    assert found.scores.count == 49
    assert [name for name, _ in found.scores.bad] == bad_val
    assert found.scores.top1 == pytest.approx(record["top1"]["ema"], abs=1e-3)


def test_a_broken_image_trains_like_one_that_is_not_in_the_batch(digits, quick):
    """With weight 19 in 20 for what is left of its batch: against a step computed by hand."""
    config = settle(configure(**quick, precision="fp32", optim={"clip": 0.0, "lr": 0.1}))
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 10
    labels[4] = -1
    gradients = []
    for some in (torch.ones(20, dtype=torch.bool), labels >= 0):
        state = State(config)
        state.train_mode()
        taken = {}
        for optimizer in state.optimizers:
            optimizer.register_step_pre_hook(
                lambda *_, state=state, taken=taken: taken.update(
                    {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}
                )
            )
        done = train_step(state, pixels[some], labels[some])
        gradients.append(taken)
        assert (done.seen, done.holes) == (19, 20 - 19 if some.all() else 0)
    for name, gradient in gradients[0].items():
        expected = gradients[1][name] * 19 / 20
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), name


@pytest.mark.slow
def test_a_run_with_broken_images_resumes_to_the_same_bits(digits, quick, monkeypatch):
    spoil(digits, "train", 5, 120)
    options = {**quick, "epochs": 3}
    whole = train(**options, out="whole")

    def until_step_15(state, *batch):
        if state.step == 15:
            raise KeyboardInterrupt
        return train_step(state, *batch)

    monkeypatch.setattr("atnet.training.loop.train_step", until_step_15)
    with pytest.raises(Stopped):
        train(**options, out="part")
    monkeypatch.setattr("atnet.training.loop.train_step", train_step)
    (Path("part") / "bad_files.csv").unlink()
    resumed = resume_run("part")
    for name in ("last.safetensors", "ema.safetensors"):
        one, other = load_file(whole.folder / name), load_file(resumed.folder / name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_rows(whole.folder / "bad_files.csv") == read_rows(resumed.folder / "bad_files.csv")


def test_more_broken_images_than_allowed_stop_the_run_and_leave_a_checkpoint(digits, quick):
    spoil(digits, "train", 1, 50, 99, 150)
    with pytest.raises(DataError, match=r"3 of 200 training images could not be read.*bad_files.csv.*atnet doctor"):
        train(**quick, out="run")
    assert len(read_rows(Path("run/bad_files.csv"))) == 3
    assert [path.name for path in Path("run/checkpoints").iterdir()]
    done = train(**{**quick, "data": {**quick["data"], "max_bad": 0.05}}, out="allowed")
    assert len(read_rows(done.folder / "bad_files.csv")) == 4


def test_no_broken_image_is_allowed_if_so_asked(digits, quick):
    spoil(digits, "train", 30)
    with pytest.raises(DataError, match="1 of 200 training images"):
        train(**{**quick, "data": {**quick["data"], "max_bad": 0.0}})


def test_validation_without_a_readable_image_is_an_error(digits, quick):
    spoil(digits, "val", *range(50))
    with pytest.raises(DataError, match="none of 50 images to evaluate on can be read; the first: .*png"):
        train(**quick)


def test_a_rare_class_weighs_as_much_in_small_parts_of_a_batch(digits, quick):
    for image in sorted((digits / "train" / "one").iterdir())[5:]:
        image.unlink()
    data = {**quick["data"], "balance": "loss"}
    state = State(settle(configure(**{**quick, "label_smoothing": 0.0, "data": data})))
    said = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 10
    whole = _loss(state, said, said, labels).item()
    parts = [_loss(state, said, said[i : i + 2], labels[i : i + 2]).item() for i in range(0, 40, 2)]
    assert sum(parts) / 20 == pytest.approx(whole)
    hot = torch.nn.functional.one_hot(labels, 10).float()  # as mixup has them
    assert _loss(state, said, said, hot).item() == pytest.approx(whole)
    assert state.class_weight[4] == pytest.approx(4 * state.class_weight[0])


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["loss", "sampler"])
def test_a_rare_class_counts_as_much_as_the_others(digits, quick, balance):
    for image in sorted((digits / "train" / "one").iterdir())[2:]:
        image.unlink()
    recall = {}
    for how in ("none", balance):
        data = {**quick["data"], "balance": how}
        run = train(**{**quick, "model": "xxxs", "weights": "none", "data": data, "epochs": 6, "optim": {"lr": 2e-3}})
        recall[how] = evaluate(run.folder / "last.safetensors").scores.recall[4]
    assert recall[balance] > recall["none"]
