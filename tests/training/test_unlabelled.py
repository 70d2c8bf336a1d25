"""Images without labels beside those with: a teacher alone tells of them."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import atnet
from atnet.config import make_config
from atnet.data.sources import open_parts
from atnet.data.unlabelled import UNLABELLED, with_unlabelled
from atnet.errors import ConfigError, DataError
from atnet.training.state import State, train_step


@pytest.fixture
def teacher(finished_run) -> str:
    """A run on the digits."""
    return str(finished_run)


@pytest.fixture
def good_teacher(_digits, tmp_path) -> str:
    """A run on the digits that knows them well."""
    data = {"source": str(_digits), "size": 32, "crop_pct": 1.0, "workers": 0}
    options = {"epochs": 30, "batch": 20, "data": data, "augment": {"flip": 0.0, "crop_scale": 0.6}}
    return str(atnet.train(**options, out=tmp_path / "teacher").folder)


@pytest.fixture
def parted(digits, tmp_path):
    """Two labelled images of each class, and a folder of the other 180 without classes."""
    (tmp_path / "more").mkdir()
    for folder in (digits / "train").iterdir():
        for image in sorted(folder.iterdir())[2:]:
            shutil.move(image, tmp_path / "more" / f"{folder.name}-{image.name}")
    return digits, tmp_path / "more"


@pytest.fixture
def options(quick, parted, teacher):
    labelled, more = parted
    data = quick["data"] | {"source": str(labelled), "unlabelled": str(more)}
    return quick | {"data": data, "teacher": teacher, "epochs": 2, "batch": 20}


def test_what_is_validated_on_is_left_out_of_what_has_no_label(photos, few_photos, tmp_path):
    train, val = open_parts(str(few_photos), 0.2)
    more = tmp_path / "more"
    more.mkdir()
    others = sorted((photos / "train" / "n03888257").iterdir())[:6]
    for image in others:
        shutil.copy(image, more)
    shutil.copy(val.locate(0), more / "same.jpg")
    Image.open(val.locate(1)).convert("RGB").save(more / "saved anew.jpg", quality=60)
    Image.open(train.locate(2)).convert("RGB").resize((200, 150)).save(more / "smaller.png")
    (more / "broken.jpg").write_bytes(b"no image")
    joined = with_unlabelled(train, (str(more),), val)
    assert len(joined) == len(train) + 7  # the broken one is found when it is shown
    assert joined.classes == train.classes
    np.testing.assert_array_equal(joined.labels[: len(train)], train.labels)
    assert (joined.labels[len(train) :] == UNLABELLED).all()
    assert {joined.locate(i) for i in range(len(train), len(joined))} == {
        *(str(more / image.name) for image in others), str(more / "broken.jpg"),
    }  # fmt: skip
    assert joined.read_bytes(3) == train.read_bytes(3)
    assert joined.read_bytes(len(train)) in {image.read_bytes() for image in others}
    assert len(set(joined.ids)) == len(joined)
    assert joined.only([2, len(train) + 1]).locate(1) == joined.locate(len(train) + 1)


@pytest.mark.slow
def test_a_teacher_and_images_without_labels_are_worth_more_than_few_labels(options, good_teacher, tmp_path):
    options = options | {"epochs": 12, "teacher": good_teacher}
    taught = atnet.train(**options, out=tmp_path / "taught")
    assert (taught.record["train_images"], taught.record["unlabelled_images"]) == (20, 180)
    assert taught.record["config"]["data"]["unlabelled"] == ("more",)
    alone = options | {"teacher": (), "epochs": 120, "data": options["data"] | {"unlabelled": ()}}  # as many images
    alone = atnet.train(**alone, eval_every=40, out=tmp_path / "alone")
    assert taught.record["top1"]["ema"] > alone.record["top1"]["ema"] + 5


def test_of_an_image_without_a_label_the_label_has_no_say(options, monkeypatch):
    state = State(make_config(**options, precision="fp32"))
    state.train_mode()
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}

    def gradient(labels, share):
        monkeypatch.setattr(state, "config", make_config(**options | {"distill": {"share": share}}, precision="fp32"))
        state.model.load_state_dict(before)
        monkeypatch.setattr(state.optimizers[-1], "step", lambda: None)
        found = train_step(state, pixels, labels)
        return found

    known = torch.arange(20) % 10
    none = torch.full((20,), UNLABELLED)
    assert gradient(none, 0.5).loss == gradient(none, 0.0).loss == gradient(known, 1.0).loss
    mixed = torch.cat([known[:10], none[10:]])
    found = gradient(mixed, 0.5)
    assert (found.seen, found.labelled, found.holes) == (20, 10, 0)


@pytest.mark.parametrize("cache", ["none", "ram", "device"])
def test_a_killed_run_ends_with_the_bits_of_the_unbroken_one(options, tmp_path, train_until, cache):
    options = options | {"data": options["data"] | {"cache": cache}, "distill": {"views": 1}}
    whole = atnet.train(**options, out=tmp_path / "whole")
    train_until(2, **options, out=tmp_path / "broken")
    resumed = atnet.train(resume=tmp_path / "broken")
    first, second = (load_file(run.folder / "last.safetensors") for run in (whole, resumed))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"teacher": ()}, "data.unlabelled are images that a teacher tells of"),
        ({"augment": {"mixup": 0.2}}, "no labels to be mixed"),
    ],
)
def test_what_images_without_labels_do_not_go_with_is_refused(options, more, said):
    with pytest.raises(ConfigError, match=said):
        make_config(**options | more)


def test_a_folder_without_images_is_named(options, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        atnet.train(**options | {"data": options["data"] | {"unlabelled": str(tmp_path / "empty")}})
