import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from scipy.io import savemat

from atnet.data import shards
from atnet.data.pack import pack
from atnet.data.shards import expand
from atnet.data.sources import open_labelled, open_parts, open_whole
from atnet.errors import ConfigError, DataError
from atnet.run.record import read_rows
from atnet.training.loop import train


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATNET_CACHE", str(tmp_path / "cache"))


def packed(source, out, **options):
    return pack(open_whole(str(source)), out, **options)


def same(one, other):
    return all(
        (a.classes, list(a.ids), a.labels.tolist()) == (b.classes, list(b.ids), b.labels.tolist())
        and [a.read_bytes(i) for i in range(len(a))] == [b.read_bytes(i) for i in range(len(b))]
        for a, b in zip(one, other, strict=True)
    )


def webdataset(path, samples, **options):
    """A tar file of samples: key, and of each what is under it by extension."""
    with tarfile.open(path, "w", **options) as tar:
        for key, parts in samples:
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def png(shade=0):
    stream = io.BytesIO()
    Image.new("L", (8, 8), shade).save(stream, "PNG")
    return stream.getvalue()


def test_a_pack_gives_the_images_it_was_made_of(digits, tmp_path):
    done = packed(digits, tmp_path / "pack", shard=64)
    assert (done.images, done.shards, done.bad) == (250, 5, ())
    assert same(open_parts(str(digits), 0.2), open_parts(str(tmp_path / "pack"), 0.2))
    sums = [line.split("  ") for line in (tmp_path / "pack" / "SHA256SUMS").read_text().splitlines()]
    assert [name for _, name in sums] == sorted(path.name for path in (tmp_path / "pack").glob("*.tar"))
    for digest, name in sums:
        assert hashlib.sha256((tmp_path / "pack" / name).read_bytes()).hexdigest() == digest


def test_a_pack_without_parts_is_split_like_its_source(digits, tmp_path):
    packed(digits / "train", tmp_path / "pack")
    assert same(open_parts(str(digits / "train"), 0.2), open_parts(str(tmp_path / "pack"), 0.2))


def test_a_pack_is_smaller_and_shows_the_same(few_photos, tmp_path):
    done = packed(few_photos, tmp_path / "pack", size=96, quality=90)
    assert done.bytes < sum(path.stat().st_size for path in few_photos.rglob("*.*")) * 0.6
    one, other = open_parts(str(few_photos), 0.2)[0], open_parts(str(tmp_path / "pack"), 0.2)[0]
    for i in range(0, len(one), 9):
        small = one.read(i).resize(other.read(i).size, Image.Resampling.BICUBIC)
        assert min(small.size) == 96
        assert np.abs(np.asarray(small, float) - np.asarray(other.read(i), float)).mean() < 6


def test_a_pack_broken_off_goes_on_to_the_same_files(digits, tmp_path, monkeypatch):
    packed(digits, tmp_path / "whole", shard=50)
    calls = []

    def full(path, samples):
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        calls.append(path)
        return shards.write_shard(path, samples)

    monkeypatch.setattr("atnet.data.pack.write_shard", full)
    with pytest.raises(OSError, match="No space left"):
        packed(digits, tmp_path / "pack", shard=50)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").glob("*.tar")}
    assert len(before) == 2
    packed(digits, tmp_path / "pack", shard=50)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    for path in (tmp_path / "whole").rglob("*.*"):
        if path.is_file():
            assert (tmp_path / "pack" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_a_pack_goes_nowhere_where_something_else_is(digits, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        packed(digits, tmp_path / "pack")
    (tmp_path / "pack" / "thesis.txt").unlink()
    packed(digits, tmp_path / "pack")
    with pytest.raises(ConfigError, match="other images or settings"):
        packed(digits, tmp_path / "pack", size=64)


def test_a_broken_image_is_not_packed_but_listed(digits, tmp_path):
    first = min((digits / "train" / "one").iterdir())
    first.write_bytes(first.read_bytes()[:60])
    for _ in range(2):
        done = packed(digits, tmp_path / "pack")
        assert done.images == 249
        [row] = read_rows(tmp_path / "pack" / "bad_files.csv")
        assert row["image"] == f"one{os.sep}{first.name}"
        assert "not a whole" in row["reason"]


@pytest.mark.parametrize("label", ["cls", "json", "txt"])
def test_webdataset_shards_of_others(tmp_path, label):
    folder = tmp_path / "data"
    folder.mkdir()
    for part in ("train", "val"):
        for shard in range(2):
            samples = []
            for i in range(6):
                name = f"{i % 3}" if label == "cls" else ("cat", "dog", "eel")[i % 3]
                said = json.dumps({"label": name, "width": 8}) if label == "json" else name
                samples.append((f"a/{shard}{i:03}", {"png": png(40 * i), label: said.encode()}))
            webdataset(folder / f"own-{part}-{shard:03}.tar", samples)
    for source in (folder, f"{folder}/own-{{train,val}}-{{000..001}}.tar", f"{folder}/*.tar"):
        train_part, val_part = open_parts(str(source), 0.2)
        assert train_part.classes == (("0", "1", "2") if label == "cls" else ("cat", "dog", "eel"))
        assert train_part.labels.tolist() == val_part.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert train_part.read(0).getpixel((0, 0)) == (0, 0, 0)
        assert train_part.read(11).getpixel((0, 0)) == (200, 200, 200)


def test_numbers_that_are_classes_are_not_taken_for_positions(digits, tmp_path):
    for part in ("train", "val"):
        for number, folder in enumerate(sorted((digits / part).iterdir()), 1):
            folder.rename(folder.with_name(str(number)))
    packed(digits, tmp_path / "pack")
    whole = open_parts(str(tmp_path / "pack"), 0.2)
    shutil.rmtree(tmp_path / "pack" / "index")
    for with_index, without in zip(whole, open_parts(str(tmp_path / "pack"), 0.2), strict=True):
        assert sorted(with_index.classes, key=int) == sorted(without.classes, key=int) == [*"123456789", "10"]
        labelled = [
            {found.read_bytes(i): found.classes[found.labels[i]] for i in range(len(found))}
            for found in (with_index, without)
        ]
        assert labelled[0] == labelled[1]


def test_keys_that_begin_anew_in_each_shard_are_told_apart(tmp_path):
    for number in range(2):
        samples = [(f"{i:03}", {"png": png(60 * i + 20 * number), "cls": str(i % 2).encode()}) for i in range(4)]
        webdataset(tmp_path / f"own-{number}.tar", samples)
    found = open_whole(str(tmp_path / "own-*.tar"))[""]
    assert sorted(found.ids) == [f"own-{number}/{i:03}.png" for number in range(2) for i in range(4)]
    shades = {found.ids[i]: found.read(i).getpixel((0, 0))[0] for i in range(8)}
    assert shades == {f"own-{number}/{i:03}.png": 60 * i + 20 * number for number in range(2) for i in range(4)}


def test_a_stray_tar_beside_class_folders_is_no_data_set(digits, tmp_path):
    before = open_parts(str(digits), 0.2)
    for part in ("train", "val"):
        with tarfile.open(digits / part / "left_over.tar", "w"):
            pass
    assert same(before, open_parts(str(digits), 0.2))


def test_processes_that_begin_at_once_unpack_parquet_files_once(few_photos, tmp_path):
    photos = sorted((few_photos / "train").rglob("*.JPEG"))
    rows = [
        {"image": {"bytes": photo.read_bytes(), "path": photo.name}, "label": photo.parent.name} for photo in photos
    ]
    folder = tmp_path / "parquet"
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "many.parquet")
    code = f'from atnet.data.sources import open_whole; print(len(open_whole({str(folder)!r})[""]))'
    together = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in together:
        said, wrong = process.communicate()
        assert (process.returncode, said.strip()) == (0, str(len(photos))), wrong
    assert len(list((tmp_path / "cache").rglob("images.tar"))) == 1
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_shards_at_an_address(digits, tmp_path):
    packed(digits, tmp_path / "pack", shard=100)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "pack") + "/", "/bucket/", recursive=True)
    source = "memory://bucket/{train-000000,train-000001,val-000000}.tar"
    assert same(open_parts(str(digits), 0.2), open_parts(source, 0.2))
    memory.rm("/bucket/index", recursive=True)
    assert [len(part) for part in open_parts(source, 0.2)] == [200, 50]
    assert list((tmp_path / "cache" / "index").glob("*.parquet"))
    with pytest.raises(DataError, match="train-000002.tar: cannot be reached"):
        open_parts("memory://bucket/train-00000{0..7}.tar", 0.2)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a", {"png": b"1"}), ("b", {"png": b"2", "cls": b"1"})], "a.png has no label"),
        ([("a", {"png": b"1", "jpg": b"1", "cls": b"1"})], "two images have the key 'a'"),
        ([("a", {"cls": b"1"})], "no images"),
        ([("a", {"png": b"1", "json": b"{"})], "not a label"),
        ([("a", {"png": b"1", "cls": b"\xff"})], "not a label"),
        ([("a", {"png": b"1", "json": b'{"size": 3}'})], "has no label"),
    ],
)
def test_a_shard_without_what_it_needs_says_so(tmp_path, samples, message):
    webdataset(tmp_path / "a.tar", samples)
    with pytest.raises(DataError, match=message):
        open_parts(str(tmp_path / "a.tar"), 0.2)


def test_a_truncated_shard_is_an_error_not_a_smaller_data_set(tmp_path):
    path = webdataset(
        tmp_path / "a.tar", [(f"{i}", {"png": os.urandom(4000), "cls": str(i % 2).encode()}) for i in range(9)]
    )
    whole = path.read_bytes()
    for length in (700, 4096 + 512, 20_000, 5 * 5120 + 513):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="truncated|not a whole tar|has no label"):
            open_parts(str(path), 0.2)


def test_a_shard_cut_after_it_was_indexed_is_noticed(digits, tmp_path):
    packed(digits, tmp_path / "pack")
    shard = tmp_path / "pack" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-20_000])
    with pytest.raises(DataError, match=r"train-000000.tar: truncated"):
        open_parts(str(tmp_path / "pack"), 0.2)


def test_links_and_paths_in_a_tar_lead_nowhere(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind, target in (
            ("a.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("b.png", tarfile.LNKTYPE, "/etc/passwd"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        for i in range(4):
            for extension, content in (("png", png()), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"../../up{i}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    images = open_labelled(str(tmp_path / "a.tar"))
    assert [images.read(i).size for i in range(len(images))] == [(8, 8)] * 4
    assert not list(tmp_path.parent.glob("up*"))


def test_braces_are_those_of_the_shell():
    assert expand("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand("{train,val}-{0..1}.tar") == ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]
    with pytest.raises(DataError, match="too many"):
        expand("a-{0..99999999}.tar")


@pytest.mark.parametrize("names", [None, ["tench", "horn", "ball"]])
def test_parquet_files_of_hugging_face(few_photos, tmp_path, names):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    parts = open_parts(str(few_photos), 0.2)
    for part, images in zip(("train", "validation"), parts, strict=True):
        rows = [
            {"image": {"bytes": images.read_bytes(i), "path": None}, "label": int(images.labels[i])}
            for i in range(len(images))
        ]
        table = pyarrow.Table.from_pylist(rows)
        if names:
            noted = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(noted)})
        for number, some in enumerate((table.slice(0, 20), table.slice(20))):
            pyarrow.parquet.write_table(some, folder / f"{part}-{number:05}-of-00002.parquet", row_group_size=7)
    for _ in range(2):  # unpacked, and from the cache
        found = open_parts(str(tmp_path / "hub"), 0.2)
        for ours, theirs in zip(found, parts, strict=True):
            assert ours.classes == (tuple(names) if names else ("0", "1", "2"))
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert [ours.read_bytes(i) for i in range(len(ours))] == [theirs.read_bytes(i) for i in range(len(theirs))]


def kaggle(photos, root, truth=False):
    """The photos as Kaggle lays ImageNet, or with the devkit's numbers in place of Kaggle's list."""
    inner = root / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(photos / "train", inner / "train")
    (inner / "val").mkdir()
    labels = {}
    images = sorted((photos / "val").rglob("*.*"), key=lambda path: path.name)
    for number, image in enumerate(images, 1):
        name = f"ILSVRC2012_val_{number:08}"
        labels[name] = image.parent.name
        shutil.copy(image, inner / "val" / f"{name}.JPEG")
    if truth:
        wordnet = ["n03445777", "n01440764", "n03394916"]
        kit = root / "ILSVRC2012_devkit_t12" / "data"
        kit.mkdir(parents=True)
        kind = np.dtype([("ILSVRC2012_ID", "O"), ("WNID", "O")])
        savemat(kit / "meta.mat", {"synsets": np.array([(i + 1, name) for i, name in enumerate(wordnet)], kind)})
        lines = [str(wordnet.index(label) + 1) for label in labels.values()]
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(lines))
    else:
        rows = [f"{name},{label} 1 2 3 4 {label} 5 6 7 8" for name, label in sorted(labels.items(), reverse=True)]
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))
    return root, labels


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_imagenets_flat_validation_is_labelled(few_photos, tmp_path, truth, inner):
    root, labels = kaggle(few_photos, tmp_path / "kaggle", truth)
    if inner:
        root = root / "ILSVRC" / "Data" / "CLS-LOC"
    training, val = open_parts(str(root), 0.2)
    assert training.classes == val.classes == ("n01440764", "n03394916", "n03445777")
    assert {name.removesuffix(".JPEG"): val.classes[i] for name, i in zip(val.ids, val.labels, strict=True)} == labels


def test_a_flat_validation_without_its_list_is_an_error(few_photos, tmp_path):
    root, _ = kaggle(few_photos, tmp_path / "kaggle")
    listed = root / "LOC_val_solution.csv"
    listed.write_text("\n".join(listed.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000001.JPEG: .*LOC_val_solution.csv does not say"):
        open_parts(str(root), 0.2)
    listed.write_text("Id,Label\n1,2\n")
    with pytest.raises(DataError, match="not Kaggle's list"):
        open_parts(str(root), 0.2)
    listed.unlink()
    with pytest.raises(DataError, match="put LOC_val_solution.csv or the devkit's"):
        open_parts(str(root), 0.2)


@pytest.mark.slow
def test_imagenets_layout_its_shards_and_a_folder_train_to_the_same_losses(few_photos, tmp_path):
    root, _ = kaggle(few_photos, tmp_path / "kaggle")
    packed(root, tmp_path / "pack", size=0, shard=20)
    losses = []
    for source in (few_photos, root, tmp_path / "pack"):
        run = train(
            model="xxxs",
            weights="none",
            epochs=2,
            batch=12,
            augment={"randaugment": 2, "erasing": 0.5, "mixup": 0.2},
            data={"source": str(source), "size": 32, "workers": 0},
        )
        rows = read_rows(run.folder / "metrics.csv")
        losses.append([(row["train_loss"], row["val_loss"], row["ema_val_top1"]) for row in rows])
    assert len(losses[0]) == 2
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    "name", ["a-{0..999999}{0..999999}.tar", "{a,b}" * 26, "a-{0..999999999999999999}{5..1}.tar", "*{0..99999}.tar"]
)
def test_braces_that_stand_for_too_many_are_refused_before_they_are_written_out(name):
    with pytest.raises(DataError, match="too many"):
        expand(name)


@pytest.mark.parametrize("which", ["a.tar", "classes.txt", "index/a.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_shard_or_what_lies_beside_it_that_is_no_file_is_refused_at_once(tmp_path, which, kind):
    webdataset(tmp_path / "a.tar", [(f"{i}", {"png": png(i), "cls": b"%d" % (i % 2)}) for i in range(4)])
    path = tmp_path / which
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=path.name):
        open_whole(str(tmp_path))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("size", [3_000_000_000, -512])
def test_a_head_of_a_tar_file_that_is_too_long_is_not_read(tmp_path, kind, size):
    head = tarfile.TarInfo("x")
    head.type, head.size = kind, size
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(head.tobuf(tarfile.GNU_FORMAT))
        file.truncate(3_000_010_240)
    with pytest.raises(DataError, match=r"a.tar: "):
        open_whole(str(tmp_path))


def test_a_tar_file_that_leads_back_to_itself_ends(tmp_path):
    head = tarfile.TarInfo("a.png")
    head.size = -1024
    (tmp_path / "a.tar").write_bytes(head.tobuf(tarfile.GNU_FORMAT) * 4 + bytes(10_240))
    with pytest.raises(DataError, match="less than no bytes"):
        open_whole(str(tmp_path))


def test_images_in_a_tar_file_that_are_not_read_are_named(tmp_path, caplog):
    samples = [(f"{i}", {"png": png(i), "cls": b"%d" % (i % 2)}) for i in range(4)]
    webdataset(tmp_path / "a.tar", [*samples, ("4", {"heic": b"x", "cls": b"1"})])
    assert len(open_whole(str(tmp_path))[""]) == 4
    assert "4.heic" in caplog.text


INDEX = {"id": ["0.png", "1.png"], "label": ["0", "1"], "offset": [512, 512], "length": [10, 10]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ["0.png", None]}, "without a value"),
        ({"id": [1, 2]}, "'id' is of another kind"),
        ({"label": [0.5, 1.5]}, "'label' is of another kind"),
        ({"offset": ["x", "y"]}, "'offset' is of another kind"),
        ({"length": [[1], [2]]}, "'length' is of another kind"),
        ({"offset": [512, -512]}, "before the beginning"),
        ({"offset": [512, 2**63 - 5]}, "truncated"),
        ({"length": None}, "no column 'length'"),
        ({name: values * 1000 for name, values in INDEX.items()}, "2,000 images cannot be in a shard"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path, changes, message):
    webdataset(tmp_path / "a.tar", [(f"{i}", {"png": png(i), "cls": b"%d" % (i % 2)}) for i in range(4)])
    (tmp_path / "index").mkdir()
    columns = {name: values for name, values in {**INDEX, **changes}.items() if values is not None}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "index" / "a.parquet")
    with pytest.raises(DataError, match=message):
        open_whole(str(tmp_path))


def test_a_damaged_index_in_the_cache_is_made_anew(tmp_path, caplog):
    webdataset(tmp_path / "a.tar", [(f"{i}", {"png": png(i), "cls": b"%d" % (i % 2)}) for i in range(4)])
    first = open_whole(str(tmp_path / "a.tar"))[""]
    [kept] = (tmp_path / "cache" / "index").glob("*.parquet")
    sound = kept.read_bytes()
    kept.write_bytes(sound[:100])
    assert same([first], [open_whole(str(tmp_path / "a.tar"))[""]])
    assert "scanned anew" in caplog.text
    assert kept.read_bytes() == sound


def test_names_that_are_not_utf8_are_packed(digits, tmp_path):
    folder = digits / "train" / "one"
    min(folder.iterdir()).rename(folder / os.fsdecode(b"not-utf8-\xff.png"))
    packed(digits, tmp_path / "pack")
    assert same(open_parts(str(digits), 0.2), open_parts(str(tmp_path / "pack"), 0.2))


def hugging_face(path, images, labels, names=None, **options):
    noted = {"info": {"features": {"label": {"names": names}}}}
    table = pyarrow.table({"image": images, "label": labels})
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(noted)}) if names else table, path, **options
    )


def test_a_parquet_file_that_unpacks_to_far_more_than_it_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("atnet.data.parquet.FREE_GROWTH", 5_000_000)
    content = pyarrow.DictionaryArray.from_arrays(np.zeros(24, np.int32), pyarrow.array([bytes(1_000_000)]))
    path = tmp_path / "train.parquet"
    hugging_face(
        path, content, [i % 2 for i in range(24)], compression="zstd", use_dictionary=["image"], store_schema=False
    )
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match="too many for its size"):
        open_whole(str(tmp_path))
    hugging_face(path, [bytes(1_000_000)] * 24, [0] * 24, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match="too many for"):
        open_whole(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a\nb", "c"], "not a name of one line"), (["a", " "], "not a name of one line"), ([1, 2], "are none")],
)
def test_names_of_classes_that_would_shift_the_labels_are_refused(tmp_path, names, message):
    hugging_face(tmp_path / "train.parquet", [png(i) for i in range(4)], [0, 1, 0, 1], names)
    with pytest.raises(DataError, match=message):
        open_whole(str(tmp_path))


def test_names_of_classes_under_numbers_are_in_their_order(tmp_path):
    hugging_face(tmp_path / "train.parquet", [png(i) for i in range(4)], [0, 1, 0, 1], {"1": "b", "0": "c"})
    assert open_whole(str(tmp_path))[""].classes == ("c", "b")
