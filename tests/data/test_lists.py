import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from atnet.data.classes import look_alikes
from atnet.data.lists import open_list
from atnet.data.shards import read_class_list
from atnet.data.sources import open_parts
from atnet.errors import DataError


@pytest.fixture
def rows(digits):
    """Of each digit its path from the folder's top, class and part."""
    train, val = open_parts(str(digits), 0.2)
    return [
        {"path": f"{part}/{name}", "label": images.classes[label], "split": part}
        for part, images in (("train", train), ("val", val))
        for name, label in zip(images.ids, images.labels, strict=True)
    ]


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        between = "\t" if path.suffix == ".tsv" else ","
        lines = [between.join(rows[0]), *(between.join(row.values()) for row in rows)]
        path.write_text("\ufeff" + "\r\n".join(lines))
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_a_list_gives_what_the_folder_gives(digits, rows, suffix):
    source = write(digits / f"list.{suffix}", rows[::-1])
    for listed, found in zip(open_parts(source, 0.2), open_parts(str(digits), 0.2), strict=True):
        assert listed.classes == found.classes
        assert [name.split("/", 1)[1] for name in listed.ids] == list(found.ids)
        assert listed.labels.tolist() == found.labels.tolist()
        assert listed.read_bytes(7) == found.read_bytes(7)


def test_a_list_without_splits_is_split(digits, rows):
    source = write(digits / "all.csv", [{"file_name": row["path"], "class": row["label"]} for row in rows])
    train, val = open_parts(source, 0.2)
    assert (len(train), len(val)) == (200, 50)
    assert np.bincount(val.labels).tolist() == [5] * 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a table|no rows"),
        ("path,label\n", "no rows in it"),
        ("name,label\na.png,one\n", "no column of paths among 'name', 'label'"),
        ("path,kind\na.png,one\n", "no column of labels"),
        ("path,file,label\na,b,c\n", "'path' and 'file' could both be"),
        ("path,label\na.png,one\nb.png\n", "row 2 has no label"),
        ("path,label\na.png,one\n,two\n", "row 2 has no path"),
        ('path,label\n"a.png,one\n', "not a table"),
        ("path,label,split\na.png,one,tarin\nb.png,two,val\n", "'tarin' names no part"),
        ("path,label\na.png,one\0\n", "null characters"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_parts(str(tmp_path / "list.csv"), 0.2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"path,label\n\xff\xfe.png,one\n"),
        ("a.json", b"{"),
        ("a.json", b'{"path": "a"}'),
        ("a.json", b"[" * 100_000),
        ("a.parquet", b"PAR1"),
        ("a.tar", b"no tar"),
        ("a.doc", b""),
    ],
)
def test_a_damaged_list_is_an_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        open_parts(str(tmp_path / name), 0.2)


def test_a_long_list_stays_small_in_memory(tmp_path):
    count = 100_000
    lines = [f"train/n{i % 1000:08}/n{i % 1000:08}_{i:08}.JPEG,n{i % 1000:08}" for i in range(count)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines))
    images = open_list(tmp_path / "list.csv")[""]
    assert len(images) == count
    assert len(images.classes) == 1000
    assert images.ids[0] == "train/n00000000/n00000000_00000000.JPEG"
    assert images.ids[-1] == "train/n00000999/n00000999_00099999.JPEG"
    # What worker processes get: no objects, whose counts of references would be written to, and so copied.
    assert {type(value) for value in vars(images.ids).values()} == {np.ndarray}


@pytest.mark.parametrize(("text", "other"), [(b"path", b"pa\x80h"), (b"train/", b"tr\x80in/")])
def test_a_parquet_list_with_names_or_values_that_are_no_text_is_refused(tmp_path, rows, text, other):
    path = tmp_path / "list.parquet"
    path.write_bytes(Path(write(path, rows)).read_bytes().replace(text, other))
    with pytest.raises(DataError, match="list.parquet: not a whole Parquet file"):
        open_list(path)


def test_blanks_around_labels_make_no_classes(tmp_path):
    labels = ["cat", "cat ", " cat", "\u00a0cat", "cat\u200b", "caf\u00e9", "cafe\u0301", "caf\u00e9\t"]
    (tmp_path / "list.csv").write_text("path, label\n" + "".join(f"{i}.png,{one}\n" for i, one in enumerate(labels)))
    images = open_list(tmp_path / "list.csv")[""]
    assert (images.classes, images.labels.tolist()) == (("caf\u00e9", "cat"), [0] * 3 + [1] * 5)
    (tmp_path / "classes.txt").write_text("cat \n caf\u00e9\n")
    assert read_class_list(tmp_path / "classes.txt") == ("cat", "caf\u00e9")


def test_labels_that_are_numbers_are_one_class_each_and_others_are_refused(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"path": "a", "label": 3}, {"path": "b", "label": 3.0}, {"path": "c", "label": "03"}]))
    assert open_list(path)[""].classes == ("03", "3")
    for label, message in ((None, "no label"), ([1], "row 1: a label is text or a number"), (" ", "no label")):
        path.write_text(json.dumps([{"path": "a", "label": label}]))
        with pytest.raises(DataError, match=message):
            open_list(path)


def test_parts_written_in_two_ways_are_one(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,split\na,x,Train\nb,y,train \nc,x,VAL\n")
    assert {part: len(images) for part, images in open_list(tmp_path / "list.csv").items()} == {
        "train": 2,
        "val": 1,
    }


def test_names_that_differ_little_are_found():
    assert look_alikes(["Cat", "cat", "dog", "polar bear", "polar_bear", "1", "01", "2", "x"]) == [
        ("Cat", "cat"), ("polar bear", "polar_bear"), ("1", "01"),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_a_list_without_end_is_refused_at_once(tmp_path, suffix, kind):
    path = tmp_path / f"list.{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1_900_000_000)
    with pytest.raises(DataError, match=path.name):
        open_list(path)


def test_a_parquet_list_of_more_rows_than_its_bytes_can_name_is_refused(tmp_path):
    rows = pyarrow.DictionaryArray.from_arrays(np.zeros(3_000_000, np.int32), ["a.jpg"]).cast("string")
    pyarrow.parquet.write_table(pyarrow.table({"path": rows, "label": rows}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match="3,000,000 rows in"):
        open_list(tmp_path / "list.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"path":"\\ud800.jpg","label":"a"}]', "row 1: .*half a letter"),
        ('[{"path":"a","label":"\\ud800"}]', "row 1: .*half a letter"),
        ('[{"path":"a","label":"b"}] x', "something follows"),
        ('[{"path":"a","label":"b"} {}]', "not JSON"),
        ('[{"path":"a","label":"b"},]', "not JSON"),
        ("[]", "no rows"),
        ('[{"path":"a","label":' + "9" * 5000 + "}]", "list.json"),
    ],
)
def test_a_json_list_that_cannot_be_used_says_why(tmp_path, text, message):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_list(tmp_path / "list.json")


def test_a_long_json_list_is_read_piece_by_piece(tmp_path, monkeypatch):
    rows = [{"path": f"{i}.jpg", "label": str(i % 7), "note": "x" * (i % 50)} for i in range(2000)]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    monkeypatch.setattr("atnet.data.lists.MAX_ROW", 200)
    assert len(open_list(tmp_path / "list.json")[""]) == 2000
    (tmp_path / "list.json").write_text(json.dumps([*rows, {"path": "x", "label": "y" * 1000}]))
    with pytest.raises(DataError, match="not JSON"):
        open_list(tmp_path / "list.json")


@pytest.mark.parametrize("between", [";", "|", ", "])
def test_several_labels_of_an_image_are_no_class(digits, rows, between):
    several = [row | {"label": f"{row['label']}{between}six"} if i % 3 == 0 else row for i, row in enumerate(rows)]
    with pytest.raises(DataError, match="looks like several classes, and an image has one here"):
        open_parts(write(digits / "list.json", several), 0.2)


def test_a_class_may_have_a_separator_in_its_name(digits, rows):
    named = [row | {"label": "tench, Tinca tinca" if row["label"] == "nine" else row["label"]} for row in rows]
    train, _ = open_parts(write(digits / "list.json", named), 0.2)
    assert "tench, Tinca tinca" in train.classes


@pytest.mark.parametrize("step", [1, 0.25])
def test_a_quantity_is_no_class(digits, rows, step):
    numbers = [row | {"label": f"{step * i:g}"} for i, row in enumerate(rows)]
    with pytest.raises(DataError, match=r"its 250 labels are numbers such as 0, 1\.0 images of each: a quantity"):
        open_parts(write(digits / "list.csv", numbers), 0.2)


def test_numbers_of_many_images_are_classes(digits, rows):
    numbers = [row | {"label": f"{0.5 * (i % 4):g}"} for i, row in enumerate(rows)]
    train, _ = open_parts(write(digits / "list.csv", numbers), 0.2)
    assert sorted(train.classes) == ["0", "0.5", "1", "1.5"]


def digits_of(digits):
    """Of each training digit its name and class, by the folder."""
    images, _ = open_parts(str(digits), 0.2)
    return [(str(name), images.classes[label]) for name, label in zip(images.ids, images.labels, strict=True)]


def same(found, digits):
    whole, _ = open_parts(str(digits), 0.2)
    assert found.classes == whole.classes
    assert [Path(found.locate(i)).resolve() for i in range(len(found))] == [
        Path(whole.locate(i)).resolve() for i in range(len(whole))
    ]
    assert found.labels.tolist() == whole.labels.tolist()


def test_a_coco_file_gives_what_the_folder_gives(digits):
    images = digits_of(digits)
    classes = sorted({label for _, label in images})
    made = {
        "images": [{"id": 100 + i, "file_name": name, "width": 32} for i, (name, _) in enumerate(images)],
        "categories": [{"id": 7 + i, "name": name} for i, name in enumerate(classes)],
        "annotations": [
            {"id": 2 * i + k, "image_id": 100 + i, "category_id": 7 + classes.index(label), "bbox": [0, 0, 9, 9]}
            for i, (_, label) in enumerate(images)
            for k in range(1 + i % 2)  # some have two objects of one class
        ],
    }
    (digits / "annotations").mkdir()
    where = digits / "annotations" / "instances.json"
    (digits / "train").rename(digits / "images")
    where.write_text(json.dumps(made))
    found = open_list(where)[""]
    (digits / "images").rename(digits / "train")
    assert sorted(Path(found.locate(i)).resolve().name for i in range(len(found))) == sorted(
        Path(name).name for name, _ in images
    )
    assert [found.classes[label] for label in found.labels] == sorted(label for _, label in images)
    made["annotations"].append({"image_id": 100, "category_id": 7 + (classes.index(images[0][1]) + 1) % 10})
    where.write_text(json.dumps(made))
    with pytest.raises(DataError, match=r"has 2 classes \(.*cut the objects out"):
        open_list(where)
    where.write_text(json.dumps(made | {"categories": []}))
    with pytest.raises(DataError, match="is not as COCO or FiftyOne have it"):
        open_list(where)


def test_a_fiftyone_export_gives_what_the_folder_gives(digits, tmp_path):
    images = digits_of(digits)
    classes = sorted({label for _, label in images})
    (tmp_path / "export" / "data").mkdir(parents=True)
    for name, _ in images:
        os.symlink(digits / "train" / name, tmp_path / "export" / "data" / Path(name).name)
    labels = {Path(name).stem: classes.index(label) for name, label in images}
    (tmp_path / "export" / "labels.json").write_text(json.dumps({"classes": classes, "labels": labels}))
    same(open_list(tmp_path / "export" / "labels.json")[""], digits)


@pytest.mark.parametrize("kind", ["json", "json-min", "csv"])
def test_label_studios_exports_give_what_the_folder_gives(digits, kind):
    images = [(f"/data/local-files/?d=train/{name}", label) for name, label in digits_of(digits)]
    if kind == "json":
        tasks = [
            {
                "id": i,
                "data": {"image": image},
                "annotations": [{"result": [{"type": "choices", "value": {"choices": [label]}}]}],
            }
            for i, (image, label) in enumerate(images)
        ]
        tasks.append({"id": 999, "data": {"image": "nobody.png"}, "annotations": []})
        (digits / "project.json").write_text(json.dumps(tasks))
    elif kind == "json-min":
        (digits / "project.json").write_text(json.dumps([{"image": i, "choice": c, "id": 1} for i, c in images]))
    else:
        (digits / "project.csv").write_text("image,id,choice\n" + "".join(f"{i},1,{c}\n" for i, c in images))
    same(open_list(digits / f"project.{'csv' if kind == 'csv' else 'json'}")[""], digits)


def test_an_object_that_is_no_tools_is_refused(tmp_path):
    (tmp_path / "list.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match="or an export of COCO, FiftyOne or Label Studio"):
        open_list(tmp_path / "list.json")
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [{"value": {"choices": ["a", "b"]}}]}]}
    (tmp_path / "list.json").write_text(json.dumps([task]))
    with pytest.raises(DataError, match=r"a.png has 2 classes \(a, b\)"):
        open_list(tmp_path / "list.json")
