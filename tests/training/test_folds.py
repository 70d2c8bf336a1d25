import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atnet.cli import main
from atnet.config import make_config
from atnet.data.sources import open_labelled
from atnet.errors import ConfigError, Stopped
from atnet.training import folds as module
from atnet.training.folds import assign, copies, cross_validate


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def options(quick, five_digits):
    return quick | {"weights": "none", "data": quick["data"] | {"source": str(five_digits)}}


def test_copies_of_an_image_are_in_one_fold(few_photos):
    train = few_photos / "train"
    one = min((train / "n01440764").iterdir())
    shutil.copy(one, train / "n01440764" / "again.png")
    with Image.open(one) as image:
        image.convert("RGB").resize((image.width // 2, image.height // 2)).save(train / "n01440764" / "smaller.png")
    (train / "n03394916" / "broken.png").write_bytes(b"no image")
    samples = open_labelled(str(few_photos), "train")
    number, assigned = copies(samples), assign(samples, 4)
    same = [i for i, name in enumerate(samples.ids) if Path(name).name in (one.name, "again.png", "smaller.png")]
    assert len(same) == 3
    assert len(set(number[same])) == 1
    assert len(set(assigned[same])) == 1
    assert len(set(number)) == len(samples) - 2
    for label in range(3):
        assert np.ptp(np.bincount(assigned[samples.labels == label], minlength=4)) <= 3


def test_each_image_is_answered_by_a_network_that_has_not_seen_it(options, tmp_path):
    found = cross_validate(make_config(**options), 2, tmp_path / "out")
    answered = rows_of(tmp_path / "out" / "predictions.csv")
    assert len(answered) == 100
    right = [sum(row["class"] == row["called"] for row in answered if row["fold"] == fold) for fold in "12"]
    assert found.top1 == pytest.approx(sum(right))
    assert found.low < found.top1 < found.high
    for fold in "12":
        listed = rows_of(tmp_path / "out" / f"fold-{fold}-images.csv")
        held = {row["path"] for row in listed if row["split"] == "val"}
        assert held == {row["image"] for row in answered if row["fold"] == fold}
        assert held.isdisjoint(row["path"] for row in listed if row["split"] == "train")
        assert all("/train/" in row["path"] for row in listed), "the validation part is left alone"
    table = rows_of(tmp_path / "out" / "folds.csv")
    assert [float(row["top1"]) for row in table] == [pytest.approx(2 * count) for count in right]


def test_what_was_stopped_goes_on_and_other_options_are_refused(options, tmp_path, monkeypatch):
    config, taken = make_config(**options), []

    def stopping(one, out):
        taken.append(out.name)
        if len(taken) == 2:
            raise Stopped(out, 1, 2, 2)
        return train_config(one, out=out)

    train_config = module.train_config
    monkeypatch.setattr(module, "train_config", stopping)
    with pytest.raises(Stopped):
        cross_validate(config, 2, tmp_path / "out")
    cross_validate(config, 2, tmp_path / "out")
    assert taken == ["fold-1", "fold-2", "fold-2"]
    with pytest.raises(ConfigError, match=r"fold-1: of other images, folds or options"):
        cross_validate(make_config(**options, seed=1), 2, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"fold-1: of other images, folds or options"):
        cross_validate(config, 3, tmp_path / "out")


def test_the_command_prints_the_table(five_digits, capsys):
    given = ["--data.size", "32", "--data.workers", "0", "--weights", "none", "--epochs", "1", "--batch", "20"]
    main(["train", str(five_digits), *given, "--model", "xxxs+depths=1,1,1", "--folds", "2"])
    said = capsys.readouterr().out
    assert "each answered by a network that was not trained on it" in said
    assert "runs/folds/predictions.csv" in said


def test_more_folds_than_images_of_a_class_are_refused(options):
    with pytest.raises(ConfigError, match=r"--folds 21: use 2 to 20, the images of eight, which has the fewest"):
        cross_validate(make_config(**options), 21, "out")
