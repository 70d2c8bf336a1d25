import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from atnet.data.classes import display_names
from atnet.data.sources import open_labelled, open_parts
from atnet.errors import DataError

NAMES = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")


def test_folders_become_classes_by_name(digits):
    train, val = open_parts(str(digits), 0.2)
    assert train.classes == val.classes == NAMES
    assert (len(train), len(val)) == (200, 50)
    assert all(
        name.split(os.sep)[0] == train.classes[label] for name, label in zip(train.ids, train.labels, strict=True)
    )


@pytest.mark.parametrize("spelling", ["valid", "validation", "test", "Testing", "VAL"])
def test_usual_spellings_of_the_parts(digits, spelling):
    (digits / "val").rename(digits / spelling)
    (digits / "train").rename(digits / "Training")
    assert [len(part) for part in open_parts(str(digits), 0.2)] == [200, 50]


def test_a_part_is_no_class(digits):
    (digits / "train").rename(digits / "images")
    with pytest.raises(DataError, match="val/ without a training part"):
        open_parts(str(digits), 0.2)
    shutil.rmtree(digits / "val")
    (digits / "images").rename(digits / "train")
    with pytest.raises(DataError, match="no val part"):
        open_labelled(str(digits))
    assert [len(part) for part in open_parts(str(digits), 0.2)] == [160, 40]


def test_one_picture_a_class_is_too_few(digits):
    for name in NAMES:
        for picture in sorted((digits / "train" / name).iterdir())[1:]:
            picture.unlink()
    with pytest.raises(DataError, match="leaves none to validate on"):
        open_parts(str(digits / "train"), 0.2)


def test_a_missing_class_in_validation_does_not_shift_labels(digits, caplog):
    shutil.rmtree(digits / "val" / "four")
    _, val = open_parts(str(digits), 0.2)
    assert {NAMES[label] for label in val.labels} == set(NAMES) - {"four"}
    assert all(name.startswith(val.classes[label] + os.sep) for name, label in zip(val.ids, val.labels, strict=True))
    assert "no pictures of 'four'" in caplog.text


def test_an_empty_class_in_validation_does_not_shift_labels(digits):
    for picture in (digits / "val" / "eight").iterdir():
        picture.unlink()
    _, val = open_parts(str(digits), 0.2)
    assert all(name.startswith(val.classes[label] + os.sep) for name, label in zip(val.ids, val.labels, strict=True))


def test_a_class_that_training_lacks_is_an_error(digits):
    (digits / "val" / "four").rename(digits / "val" / "fuor")
    with pytest.raises(DataError, match="'fuor' not among the 10 known classes"):
        open_parts(str(digits), 0.2)


def test_hidden_folders_are_no_classes(digits):
    shutil.copytree(digits / "train" / "one", digits / "train" / ".ipynb_checkpoints")
    shutil.copytree(digits / "train" / "one", digits / "train" / "two" / ".thumbs")
    train, _ = open_parts(str(digits), 0.2)
    assert (train.classes, len(train)) == (NAMES, 200)


def test_a_link_loop_counts_each_picture_once(digits):
    (digits / "train" / "one" / "again").symlink_to(digits / "train" / "one", target_is_directory=True)
    assert len(open_parts(str(digits), 0.2)[0]) == 200


def test_other_files_are_left_out_and_said(digits, caplog):
    (digits / "train" / "one" / "notes.txt").write_text("no picture")
    assert len(open_parts(str(digits), 0.2)[0]) == 200
    assert "1 .txt" in caplog.text


def test_a_flat_folder_is_split_by_class_and_always_alike(digits):
    first = open_parts(str(digits / "train"), 0.25)
    second = open_parts(str(digits / "train"), 0.25)
    assert [np.bincount(part.labels).tolist() for part in first] == [[15] * 10, [5] * 10]
    assert first[1].ids == second[1].ids
    assert not set(first[0].ids) & set(first[1].ids)


@pytest.mark.parametrize("folder", ["nowhere", "val/one", "empty"])
def test_no_classes_is_an_error_that_says_what_was_expected(digits, folder):
    (digits / "empty").mkdir()
    with pytest.raises(DataError, match="no such folder|CLASS/PICTURE|a folder for each class"):
        open_parts(str(digits / folder), 0.2)


def test_one_class_is_an_error(digits):
    for name in NAMES[1:]:
        shutil.rmtree(digits / "train" / name)
    with pytest.raises(DataError, match="1 class folder"):
        open_parts(str(digits), 0.2)


def test_any_labelled_folder_can_be_opened(digits):
    assert len(open_labelled(str(digits))) == 50
    assert len(open_labelled(str(digits / "train"))) == 200


def test_a_broken_picture_names_its_file(digits):
    train, _ = open_parts(str(digits), 0.2)
    path = digits / "train" / train.ids[3]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=path.name):
        train.read(3)


def test_embedded_digits_are_mnists():
    train, val = open_parts("digits", 0.2)
    assert (len(train), len(val), train.classes) == (4000, 1000, tuple("0123456789"))
    assert np.bincount(val.labels).tolist() == [100] * 10
    assert train.read(0).size == (28, 28)


def test_wordnet_ids_get_imagenets_names():
    assert display_names(("n03394916", "n01440764", "own")) == ("French horn", "tench", "own")
    assert display_names(("cats", "dogs")) == ("cats", "dogs")
    assert display_names(("n02012849", "n03126707")) == ("crane (n02012849)", "crane (n03126707)")


def test_the_studies_hold_out_the_pictures_that_are_listed(photos):
    listed = (Path(__file__).parents[2] / "studies" / "held_out.txt").read_text().split()
    train, held_out = open_parts(str(photos / "train"), 0.15)
    assert sorted(held_out.ids) == listed
    assert not set(listed) & set(train.ids)
    assert len(listed) == pytest.approx(0.15 * (len(listed) + len(train)), rel=0.001)
