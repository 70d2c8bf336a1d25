import csv
import shutil

import numpy as np
import pytest

from atnet.cli import main
from atnet.errors import ConfigError
from atnet.training.labels import choose_next, doubt_labels
from atnet.training.probe import Features

pytestmark = pytest.mark.usefixtures("cache")

CLASSES = ("n01440764", "n03394916", "n03445777")


def clouds(count=600, classes=4, apart=2.5, seed=0):
    """Features of classes that are normal clouds, so far apart that a few images look like another class."""
    chance = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    middles = apart * np.eye(classes, 16)
    vectors = middles[labels] + chance.normal(size=(count, 16))
    return Features(vectors=vectors.astype(np.float32)[:, None, None], labels=labels, bad=())


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_labels_that_were_changed_are_found(share):
    features = clouds()
    chance = np.random.default_rng(1)
    changed = chance.choice(600, int(600 * share), replace=False)
    labels = features.labels.copy()
    labels[changed] = (labels[changed] + chance.integers(1, 4, len(changed))) % 4
    found = doubt_labels(Features(vectors=features.vectors, labels=labels, bad=()), 4)
    right = set(found.doubtful) & set(changed.tolist())
    assert len(right) >= 0.75 * len(found.doubtful)
    assert len(right) >= 0.65 * len(changed)
    assert found.rate == pytest.approx(share, rel=0.6)
    assert (found.likely[found.doubtful] == features.labels[found.doubtful]).mean() > 0.8


def test_few_are_doubted_where_all_are_right():
    found = doubt_labels(clouds(apart=5), 4)
    assert found.rate < 0.02
    assert len(found.doubtful) < 12


def test_a_class_of_few_images_is_not_judged():
    features = clouds(count=62)
    labels = features.labels.copy()
    labels[labels == 3] = 2
    labels[:3] = 3
    found = doubt_labels(Features(vectors=features.vectors, labels=labels, bad=()), 5)
    assert found.wrong[:3].tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="classes of 5 images or more"):
        doubt_labels(Features(vectors=features.vectors[:6], labels=np.arange(6) % 3, bad=()), 3)


def test_what_is_labelled_next_is_between_classes_and_not_all_alike():
    known, far = clouds(), clouds(count=100, apart=8, seed=2)
    between = np.zeros((30, 1, 1, 16), np.float32)
    between[:15, ..., 0] = between[:15, ..., 1] = between[15:, ..., 2] = between[15:, ..., 3] = 1.25
    between[..., 5:] += np.random.default_rng(3).normal(scale=0.1, size=(30, 1, 1, 11))
    unknown = Features(vectors=np.concatenate([far.vectors, between]), labels=np.zeros(130, np.int64), bad=())
    found = [one.place for one in choose_next(known, unknown, 4, 2)]
    assert min(found) >= 100
    assert {place < 115 for place in found} == {True, False}
    assert len(choose_next(known, unknown, 4, 500)) == 130


def test_the_doctor_lists_wrong_labels_and_what_to_label_next(photos, tmp_path, capsys):
    moved = set()
    for part, count in (("train", 120), ("val", 20)):
        for place, name in enumerate(CLASSES):
            for number, image in enumerate(sorted((photos / part / name).iterdir())[:count]):
                wrong = number % 10 == 0
                folder = tmp_path / "photos" / part / CLASSES[(place + wrong) % 3]
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, folder)
                moved |= {image.name} if wrong else set()
    (tmp_path / "new").mkdir()
    for name in CLASSES:
        for image in sorted((photos / "train" / name).iterdir())[110:140]:
            shutil.copy(image, tmp_path / "new")
    main(["doctor", "photos", "--labels", "--unlabelled", "new", "--count", "6"])
    said = capsys.readouterr().out
    listed = rows(tmp_path / "doctor-labels.csv")
    right = [row for row in listed if row["image"].rpartition("/")[2] in moved]
    assert len(right) >= 0.7 * len(listed)
    assert len(right) >= 0.5 * len(moved)
    assert all(row["label"] != row["looks_like"] for row in right)
    following = rows(tmp_path / "doctor-next.csv")
    assert len({row["image"] for row in following}) == 6
    known = {image.name for image in (tmp_path / "photos" / "train").rglob("*.*")}
    assert not known & {row["image"].rpartition("/")[2] for row in following}, "what has a label is left out"
    assert "doctor-labels.csv, doctor-next.csv" in said
    assert "Label these next" in (tmp_path / "doctor.html").read_text()
