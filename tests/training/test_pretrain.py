import shutil

import numpy as np
import pytest

import atnet
from atnet.cli import main
from atnet.data.sources import open_parts
from atnet.errors import ConfigError
from atnet.training.plan import configure
from atnet.training.pretrain import group, prepare

pytestmark = pytest.mark.usefixtures("cache")


def test_groups_are_the_clouds_and_the_classifier_gives_them():
    chance = np.random.default_rng(0)
    truth = np.arange(400) % 4
    vectors = (5 * np.eye(4, 16)[truth] + chance.normal(scale=0.3, size=(400, 16))).astype(np.float32)
    found = group(vectors, 4)
    assert len(set(zip(truth.tolist(), found.labels.tolist(), strict=True))) == 4
    logits = vectors @ found.weight.T + found.bias
    assert (logits.argmax(1) == found.labels).all()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    assert (shares.max(1) / shares.sum(1)).mean() == pytest.approx(0.7, abs=0.02)


@pytest.fixture
def album(digits, tmp_path):
    """The digits' training images in one folder, without labels."""
    folder = tmp_path / "album"
    folder.mkdir()
    for image in sorted((digits / "train").rglob("*.png")):
        shutil.copy(image, folder / f"{image.parent.name}-{image.name}")
    return folder


def test_a_network_learns_from_images_without_labels(album, digits, quick, finished_run, tmp_path):
    options = {name: value for name, value in quick.items() if name != "data"}
    data = quick["data"] | {"source": str(album)}
    run = atnet.pretrain(data, str(finished_run), groups=10, out=tmp_path / "run", **options | {"epochs": 4})
    assert run.record["classes"] <= 10
    assert run.record["train_images"] + run.record["val_images"] == 200
    chance = 100 / run.record["classes"]
    assert run.record["top1"]["last"] > 2 * chance
    known = atnet.probe(quick["data"], run.folder, batch=20, out=tmp_path / "probe").record
    random = {"model": options["model"], "epochs": 1, "optim": {"lr": 1e-9}}
    drawn = atnet.train(**quick | random, out=tmp_path / "drawn")
    nothing = atnet.probe(quick["data"], drawn.folder, batch=20, out=tmp_path / "nothing").record
    assert known["probe"]["cross_validated_top1"] > nothing["probe"]["cross_validated_top1"]


def test_the_images_of_a_group_are_alike(album, finished_run, quick):
    options = {name: value for name, value in quick.items() if name != "data"}
    config = configure(teacher=[str(finished_run)], data=quick["data"] | {"source": str(album)}, **options)
    train, val = open_parts(prepare(config, 10).data.source, 0.05)
    pairs = [
        (int(label), name.rpartition("/")[2].partition("-")[0])
        for part in (train, val)
        for label, name in zip(part.labels, part.ids, strict=True)
    ]
    right = sum(
        max([one for label, one in pairs if label == number].count(name) for name in {name for _, name in pairs})
        for number in range(len(train.classes))
    )
    assert right / len(pairs) > 0.4, "of ten digits; the teacher knows them from 200 images"


def test_what_cannot_be_grouped_is_said(album, digits, finished_run, capsys):
    with pytest.raises(ConfigError, match="--groups 100 of 200 images: use 2 to 50"):
        atnet.pretrain(str(album), str(finished_run), groups=100)
    with pytest.raises(ConfigError, match="unpack them into a folder"):
        atnet.pretrain("digits", str(finished_run))
    with pytest.raises(SystemExit):
        main(["pretrain", "--data", str(album)])
    assert "give one --teacher NAME" in capsys.readouterr().err
