import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atnet.data.classes import display_names
from atnet.data.decode import READS_HEIF
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
    with pytest.raises(DataError, match="val without a training part"):
        open_parts(str(digits), 0.2)
    shutil.rmtree(digits / "val")
    (digits / "images").rename(digits / "train")
    with pytest.raises(DataError, match="no val part"):
        open_labelled(str(digits))
    assert [len(part) for part in open_parts(str(digits), 0.2)] == [160, 40]


def test_one_image_a_class_is_too_few(digits):
    for name in NAMES:
        for image in sorted((digits / "train" / name).iterdir())[1:]:
            image.unlink()
    with pytest.raises(DataError, match="leaves none to validate on"):
        open_parts(str(digits / "train"), 0.2)


def test_a_missing_class_in_validation_does_not_shift_labels(digits, caplog):
    shutil.rmtree(digits / "val" / "four")
    with pytest.raises(DataError, match="no images of 'four'.*--data.mismatch ignore"):
        open_parts(str(digits), 0.2)
    _, val = open_parts(str(digits), 0.2, mismatch="ignore")
    assert {NAMES[label] for label in val.labels} == set(NAMES) - {"four"}
    assert all(name.startswith(val.classes[label] + os.sep) for name, label in zip(val.ids, val.labels, strict=True))
    assert "no images of 'four'" in caplog.text


def test_an_empty_class_in_validation_does_not_shift_labels(digits):
    for image in (digits / "val" / "eight").iterdir():
        image.unlink()
    _, val = open_parts(str(digits), 0.2, mismatch="ignore")
    assert len(val) == 45
    assert all(name.startswith(val.classes[label] + os.sep) for name, label in zip(val.ids, val.labels, strict=True))


def test_a_class_that_training_lacks_is_an_error(digits):
    (digits / "val" / "four").rename(digits / "val" / "fuor")
    with pytest.raises(DataError, match="'fuor' not among the 10 known classes"):
        open_parts(str(digits), 0.2)
    _, val = open_parts(str(digits), 0.2, mismatch="ignore")
    assert (val.classes, len(val)) == (NAMES, 45)
    assert NAMES.index("four") not in val.labels


def test_hidden_folders_are_no_classes(digits):
    shutil.copytree(digits / "train" / "one", digits / "train" / ".ipynb_checkpoints")
    shutil.copytree(digits / "train" / "one", digits / "train" / "two" / ".thumbs")
    train, _ = open_parts(str(digits), 0.2)
    assert (train.classes, len(train)) == (NAMES, 200)


def test_a_link_loop_counts_each_image_once(digits):
    (digits / "train" / "one" / "again").symlink_to(digits / "train" / "one", target_is_directory=True)
    assert len(open_parts(str(digits), 0.2)[0]) == 200


def test_other_files_are_left_out_and_said(digits, caplog):
    (digits / "train" / "one" / "notes.txt").write_text("no image")
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
    with pytest.raises(DataError, match="no such folder|CLASS/IMAGE|a folder for each class"):
        open_parts(str(digits / folder), 0.2)


def test_one_class_is_an_error(digits):
    for name in NAMES[1:]:
        shutil.rmtree(digits / "train" / name)
    with pytest.raises(DataError, match="1 class folder"):
        open_parts(str(digits), 0.2)


def test_any_labelled_folder_can_be_opened(digits):
    assert len(open_labelled(str(digits))) == 50
    assert len(open_labelled(str(digits / "train"))) == 200


def test_a_broken_image_names_its_file(digits):
    train, _ = open_parts(str(digits), 0.2)
    path = Path(train.locate(3))
    assert path == digits / "train" / train.ids[3]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=path.name):
        train.read(3)


def test_one_name_of_two_classes_keeps_them_apart(digits):
    for name in ("one", "two"):
        (digits / "train" / name / "small").mkdir()
        shutil.copy(
            digits / "train" / name / sorted(os.listdir(digits / "train" / name))[0], digits / "train" / name / "small"
        )
    train, _ = open_parts(str(digits), 0.2)
    small = [
        (train.classes[label], name) for name, label in zip(train.ids, train.labels, strict=True) if "small" in name
    ]
    assert [label for label, _ in small] == ["one", "two"]
    assert (train.classes, len(train)) == (NAMES, 202)


def test_accents_written_in_two_ways_are_one_class(digits):
    (digits / "train" / "four").rename(digits / "train" / "caf\u00e9")
    (digits / "val" / "four").rename(digits / "val" / "cafe\u0301")
    train, val = open_parts(str(digits), 0.2)
    assert train.classes == val.classes
    assert "caf\u00e9" in train.classes
    assert len(val) == 50
    assert train.read(0).size == val.read(0).size == (28, 28)
    shutil.copytree(digits / "train" / "one", digits / "train" / "cafe\u0301")
    with pytest.raises(DataError, match="two folders are called 'caf\u00e9'"):
        open_parts(str(digits), 0.2)


def test_any_character_may_stand_in_an_images_name(digits):
    folder = digits / "train" / "one"
    names = ["new\nline.png", 'a,b;c"d.png', "=1+1.png", os.fsdecode(b"not-utf8-\xff.png"), "-rf.png"]
    for name, path in zip(names, sorted(folder.iterdir()), strict=False):
        path.rename(folder / name)
    train, _ = open_parts(str(digits), 0.2)
    assert {os.path.join("one", name) for name in names} <= set(train.ids)
    assert all(train.read(i).size == (28, 28) for i in range(len(train)))
    assert pickle.loads(pickle.dumps(train)).digest == train.digest


def test_what_is_no_file_is_left_out_and_said(digits, caplog):
    os.mkfifo(digits / "train" / "one" / "pipe.png")
    (digits / "train" / "one" / "folder.png").mkdir()
    assert len(open_parts(str(digits), 0.2)[0]) == 200
    assert "1 that is no file" in caplog.text


def test_a_link_to_nothing_or_to_a_device_is_an_image_that_cannot_be_read(digits):
    (digits / "train" / "one" / "gone.png").symlink_to(digits / "nowhere.png")
    (digits / "train" / "one" / "zero.png").symlink_to("/dev/zero")
    train, _ = open_parts(str(digits), 0.2)
    for name, reason in (("gone.png", "no such image"), ("zero.png", "a device or socket")):
        with pytest.raises(DataError, match=reason):
            train.read(list(train.ids).index(os.path.join("one", name)))


def test_a_folder_without_permission_is_an_error_and_no_missing_class(digits):
    (digits / "train" / "two").chmod(0)
    code = (
        "import os; from atnet.data.sources import open_parts; os.geteuid() or os.setuid(65534); "
        f"print(len(open_parts({str(digits)!r}, 0.2)[0]))"
    )
    for path in (digits, *digits.parents):
        path.chmod(path.stat().st_mode | 0o555)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (digits / "train" / "two").chmod(0o755)
    assert "cannot be read (Permission denied)" in done.stderr


def test_one_folder_for_both_parts_is_an_error(digits):
    shutil.rmtree(digits / "val")
    (digits / "val").symlink_to(digits / "train", target_is_directory=True)
    with pytest.raises(DataError, match="are the same folder"):
        open_parts(str(digits), 0.2)


@pytest.mark.parametrize("place", ["classes.txt", "elsewhere.txt"])
def test_a_class_list_gives_the_order_of_the_labels(digits, place):
    order = list(NAMES[::-1])
    (digits / place).write_text("".join(f"{name}\n" for name in order))
    train, val = open_parts(str(digits), 0.2, "" if place == "classes.txt" else str(digits / place))
    assert train.classes == val.classes == tuple(order)
    assert all(name.startswith(order[label]) for name, label in zip(train.ids, train.labels, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n\ntwo\n", "line 2 is empty"),
        ("one\ntwo\none\n", "'one' stands on line 1 and on line 3"),
        ("", "no classes in it"),
        ("one\ntwo\n", "'eight', 'five', 'four', 'nine', 'seven' and 3 more not among the 2 known"),
        ("\n".join([*NAMES, "eleven"]), "no images of 'eleven'"),
    ],
)
def test_a_class_list_that_does_not_fit_is_an_error(digits, text, message):
    (digits / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_parts(str(digits), 0.2)


def test_numbers_are_classes_in_the_order_of_their_value(digits):
    for i, name in enumerate(NAMES):
        (digits / "train" / name).rename(digits / "train" / str(i * 5))
        (digits / "val" / name).rename(digits / "val" / str(i * 5))
    assert open_parts(str(digits), 0.2)[0].classes == tuple(str(i * 5) for i in range(10))


def test_embedded_digits_are_mnists():
    train, val = open_parts("digits", 0.2)
    assert (len(train), len(val), train.classes) == (4000, 1000, tuple("0123456789"))
    assert np.bincount(val.labels).tolist() == [100] * 10
    assert train.read(0).size == (28, 28)


def test_wordnet_ids_get_imagenets_names():
    assert display_names(("n03394916", "n01440764", "own")) == ("French horn", "tench", "own")
    assert display_names(("cats", "dogs")) == ("cats", "dogs")
    assert display_names(("n02012849", "n03126707")) == ("crane (n02012849)", "crane (n03126707)")


def test_the_studies_hold_out_the_images_that_are_listed(photos):
    listed = (Path(__file__).parents[2] / "studies" / "held_out.txt").read_text().split()
    train, held_out = open_parts(str(photos / "train"), 0.15)
    assert sorted(held_out.ids) == listed
    assert not set(listed) & set(train.ids)
    assert len(listed) == pytest.approx(0.15 * (len(listed) + len(train)), rel=0.001)


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".pjpeg", ".dib", ".apng", ".TIFF"])
def test_relatives_of_the_usual_suffixes_are_images(digits, suffix):
    for path in (digits / "train" / "one").iterdir():
        path.rename(path.with_suffix(suffix))
    assert len(open_parts(str(digits), 0.2)[0]) == 200


@pytest.mark.parametrize("name", ["a.JXL", "a.ppm", "scan.svg", "a", "a.jpg_large", "a.png.bak"])
def test_what_looks_like_an_image_but_is_not_read_is_named(digits, caplog, name):
    shutil.copy(min((digits / "train" / "one").iterdir()), digits / "train" / "one" / name)
    assert len(open_parts(str(digits), 0.2)[0]) == 200
    assert f"1 of these look like images ({os.path.join('one', name)!r})" in caplog.text


@pytest.mark.skipif(READS_HEIF, reason="pillow-heif is installed")
def test_photos_of_an_iphone_are_never_left_out_in_silence(digits):
    (digits / "train" / "one" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(DataError, match=r"one: 1 image in HEIC, .*: pip install pillow-heif"):
        open_parts(str(digits), 0.2)


def test_images_beside_the_class_folders_are_named(digits, caplog):
    shutil.copy(min((digits / "train" / "one").iterdir()), digits / "train" / "stray.png")
    assert len(open_parts(str(digits), 0.2)[0]) == 200
    assert "stray.png" in caplog.text


def test_the_order_of_classes_is_no_matter_of_chance():
    code = (
        "from atnet.data.classes import class_order; "
        "print(class_order({'1', '01', '001', '2', '10', '02'}), class_order({'b', 'B', 'a', '1'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
        ).stdout
        for seed in range(4)
    }
    assert found == {"('001', '01', '1', '02', '2', '10') ('1', 'B', 'a', 'b')\n"}


@pytest.mark.parametrize(
    ("train", "val"),
    [("seg_train", "seg_test"), ("train_images", "test_images"), ("Training Set", "Validation Set"),
     ("train2017", "val2017"), ("TrainingSet", "testset"), ("train", "my_val")],
)  # fmt: skip
def test_parts_are_told_by_a_word_of_their_names(digits, train, val, caplog):
    (digits / "train").rename(digits / train)
    (digits / "val").rename(digits / val)
    (digits / "seg_pred").mkdir()
    assert [(len(part), part.classes) for part in open_parts(str(digits), 0.2)] == [(200, NAMES), (50, NAMES)]
    assert val in caplog.text


def test_parts_one_folder_below_are_found(digits):
    (digits / "images").mkdir()
    for part in ("train", "val"):
        (digits / part).rename(digits / "images" / part)
    assert [len(part) for part in open_parts(str(digits), 0.2)] == [200, 50]


def test_two_folders_for_one_part_are_an_error(digits):
    (digits / "train").rename(digits / "a_train")
    shutil.copytree(digits / "a_train", digits / "b_train")
    with pytest.raises(DataError, match="'a_train' and 'b_train' could both be"):
        open_parts(str(digits), 0.2)


def test_a_class_called_like_a_part_is_a_class(digits):
    (digits / "train" / "one").rename(digits / "train" / "training_shoe")
    (digits / "train" / "two").rename(digits / "train" / "test_tube")
    train, _ = open_parts(str(digits / "train"), 0.2)
    assert {"training_shoe", "test_tube"} < set(train.classes)


def test_folders_that_repeat_themselves_are_named(digits, caplog):
    (digits / "train").rename(digits / "first")
    (digits / "val").rename(digits / "second")
    assert open_parts(str(digits), 0.2)[0].classes == ("first", "second")
    assert "all hold the same folders" in caplog.text


def test_links_that_lead_nowhere_are_named_and_no_hang(digits):
    (digits / "train" / "one" / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="loop: this link cannot be followed"):
        open_parts(str(digits), 0.2)
    with pytest.raises(DataError, match="cannot be opened"):
        open_parts(str(digits / "train" / "one" / "loop"), 0.2)


@pytest.mark.parametrize("source", ["a\0b", "x" * 5000, "~nobody_of_this_name/x", "/dev/zero", "/dev/null"])
def test_a_source_that_is_none_is_an_error(source):
    with pytest.raises(DataError, match=r"cannot be opened|neither a folder|no such folder"):
        open_parts(source, 0.2)


def test_a_folder_reached_in_two_ways_has_the_same_names_always(digits):
    (digits / "train" / "one" / "a").symlink_to(digits / "train" / "one" / "z", target_is_directory=True)
    (digits / "train" / "one" / "z").mkdir()
    shutil.copy(min((digits / "train" / "two").iterdir()), digits / "train" / "one" / "z" / "x.png")
    assert os.path.join("one", "z", "x.png") in set(open_parts(str(digits), 0.2)[0].ids)
