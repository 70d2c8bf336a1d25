import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image, ImageOps

import atnet
from atnet.cli import main
from atnet.data.decode import decode
from atnet.errors import ConfigError, DataError
from atnet.export.export import export
from atnet.inference.output import folder_name
from atnet.inference.prediction import Prediction, Unread, iter_images, predict_each


@pytest.fixture
def album(digits, tmp_path):
    """Fifty digits in folders in a folder, of the same names in some, and one that cannot be read."""
    shutil.copytree(digits / "val", tmp_path / "album" / "deep" / "er")
    for image in sorted((digits / "val" / "seven").iterdir())[:3]:
        shutil.copy(image, tmp_path / "album")
    (tmp_path / "album" / "broken.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "album" / ".hidden").mkdir()
    shutil.copy(next((digits / "val" / "six").iterdir()), tmp_path / "album" / ".hidden")
    return tmp_path / "album"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_written_for_each_image_in_their_order(album, finished_run, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "album", "--weights", str(finished_run), "--csv", "a.csv", "--parquet", "a.parquet"])
    assert ended.value.code == 2
    found = rows(Path("a.csv"))
    assert [row["image"] for row in found] == [str(path) for path in iter_images("album")]
    assert len(found) == 54
    [broken] = [row for row in found if row["error"]]
    assert "broken.png" in broken["error"]
    assert broken["class"] == ""
    answers = atnet.predict("album", finished_run, failed=lambda _: None)
    good = [row for row in found if not row["error"]]
    assert [row["class"] for row in good] == [answer.top[0][0] for answer in answers]
    assert [float(row["probability2"]) for row in good] == pytest.approx([a.top[1][2] for a in answers], abs=1e-6)
    table = pyarrow.parquet.read_table("a.parquet").to_pylist()
    assert [row["image"] for row in table] == [row["image"] for row in found]
    assert [row["name"] or "" for row in table] == [row["name"] for row in found]
    said = capsys.readouterr()
    assert "Written: a.csv (54 rows)" in said.out
    assert "1 of 54 images could not be read; the first: album/broken.png" in said.err


def test_answers_are_those_of_an_evaluation(digits, finished_run):
    scores = atnet.evaluate(finished_run, str(digits)).scores
    names = sorted(path.name for path in (digits / "val").iterdir())
    answers = atnet.predict(
        [path for name in names for path in sorted((digits / "val" / name).iterdir())], finished_run
    )
    right = sum(Path(answer.image).parent.name == answer.top[0][0] for answer in answers)
    assert 100 * right / len(answers) == pytest.approx(scores.top1)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_any_batch_gives_the_same_answers(digits, finished_run, batch):
    images = sorted((digits / "val").rglob("*.png"))
    expected = atnet.predict(images, finished_run)
    found = atnet.predict(images, finished_run, batch=batch)
    assert [answer.image for answer in found] == [answer.image for answer in expected]
    assert [a.top[0][2] for a in found] == pytest.approx([a.top[0][2] for a in expected], abs=1e-5)


def test_few_images_are_ahead_of_what_was_taken(digits, finished_run, monkeypatch):
    from atnet.inference import prediction

    opened = []
    decode = prediction.decode
    monkeypatch.setattr(prediction, "decode", lambda path: (opened.append(path), decode(path))[1])
    images = sorted((digits / "val").rglob("*.png"))
    answers = predict_each(images, finished_run, batch=4)
    assert isinstance(next(answers), Prediction)
    assert len(opened) <= 16
    answers.close()


def test_an_image_that_cannot_be_read_is_said_in_its_place(album, finished_run):
    found = list(predict_each("album", finished_run))
    [place] = [i for i, one in enumerate(found) if isinstance(one, Unread)]
    assert found[place].image == str(album.relative_to(Path.cwd()) / "broken.png")
    with pytest.raises(DataError, match="broken.png"):
        atnet.predict("album", finished_run)


def test_images_are_sorted_into_folders_of_their_classes_and_none_is_lost(album, finished_run):
    (album / "broken.png").unlink()
    words = ["predict", "album", "--weights", str(finished_run), "--sort-into", "sorted", "--unsure-below", "0.4"]
    main(words)
    answers = atnet.predict("album", finished_run)
    unsure = [answer for answer in answers if answer.top[0][2] < 0.4]
    assert 0 < len(unsure) < len(answers)
    assert len(list(Path("sorted/_unsure").iterdir())) == len(unsure)
    files = [path for path in Path("sorted").rglob("*") if path.is_file()]
    assert len(files) == len(answers)
    assert sorted(path.read_bytes() for path in files) == sorted(Path(a.image).read_bytes() for a in answers)
    main([*words, "--link"])
    assert sum(path.is_file() for path in Path("sorted").rglob("*")) == 2 * len(answers), "nothing is overwritten"
    assert all(path.resolve().exists() for path in Path("sorted").rglob("*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sort-into", "album/sorted"], "in a folder whose images are asked about"),
        (["--link"], "are of --sort-into FOLDER"),
        (["--sort-into", "sorted", "--unsure-below", "1.5"], "use 0 to 1"),
        (["--csv", "there.csv"], "there.csv: exists"),
        (["--csv", "no/folder.csv"], "no: no such folder"),
        (["--batch", "0"], "use a batch of 1 or more"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_asked(album, finished_run, words, message, capsys):
    Path("there.csv").write_text("mine")
    with pytest.raises(SystemExit):
        main(["predict", "album", "--weights", str(finished_run), *words])
    assert message in capsys.readouterr().err
    assert Path("there.csv").read_text() == "mine"


def test_a_class_leads_nowhere_else():
    names = ["../../etc", "a/b", "..", "", "con:", "plain name", "x" * 500]
    assert [folder_name(name) for name in names[:6]] == ["_.._etc", "a_b", "_", "_", "con_", "plain name"]
    assert len(folder_name(names[6])) == 200


def test_json_of_many_is_one_list(album, finished_run, capsys):
    (album / "broken.png").unlink()
    main(["predict", "album", "--weights", str(finished_run), "--json", "--top", "2"])
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 53
    assert {len(one["top"]) for one in found} == {2}


def test_photos_of_formats_that_are_not_decoded_are_said(album, finished_run, caplog):
    (album / "IMG_1.CR2").write_bytes(b"II*\0")
    atnet.predict("album", finished_run, failed=lambda _: None)
    assert "left out, not decoded here: 1 .cr2" in caplog.text


@pytest.mark.parametrize("kind", ["run", "onnx"])
def test_an_image_and_its_mirror_image_answer_together(digits, finished_run, tmp_path, kind):
    weights = finished_run
    if kind == "onnx":
        weights = export(finished_run, to="onnx", out=tmp_path / "net.onnx").path
    image = min((digits / "val" / "seven").iterdir())
    ImageOps.mirror(decode(image)).save("mirrored.png")

    def shares(path, **options):
        [answer] = atnet.predict(path, weights, top=10, **options)
        return {name: share for name, _, share in answer.top}

    plain, turned, both = shares(image), shares("mirrored.png"), shares(image, tta="mirror")
    for name, share in both.items():
        assert share == pytest.approx((plain[name] + turned[name]) / 2, abs=1e-4)
    if kind == "run":
        scores = atnet.evaluate(finished_run, str(digits), tta="mirror").scores
        answers = atnet.predict(digits / "val", finished_run, tta="mirror")
        right = sum(Path(answer.image).parent.name == answer.top[0][0] for answer in answers)
        assert scores.top1 == pytest.approx(100 * right / len(answers))


@pytest.mark.parametrize("kind", ["run", "onnx"])
def test_ten_crops_answer_together(digits, finished_run, tmp_path, kind):
    weights = finished_run
    if kind == "onnx":
        weights = export(finished_run, to="onnx", out=tmp_path / "net.onnx").path
        whole = export(finished_run, to="onnx", out=tmp_path / "whole.onnx", preprocessing=True).path
        with pytest.raises(ConfigError, match=r"whole\.onnx: crops images by itself: use --tta mirror"):
            atnet.predict(digits / "val", whole, tta="crops")
    image = min((digits / "val" / "seven").iterdir())
    side = round(32 * 8 / 7)
    larger = decode(image).resize((side, side), Image.Resampling.BICUBIC)
    last = side - 32
    for number, (left, top) in enumerate([(last // 2, last // 2), (0, 0), (last, 0), (0, last), (last, last)]):
        crop = larger.crop((left, top, left + 32, top + 32))
        crop.save(f"{number}.png")
        ImageOps.mirror(crop).save(f"{number}-mirrored.png")
    each = atnet.predict(sorted(Path().glob("[0-4]*.png")), weights, top=10)
    assert len(each) == 10
    shares = [{name: share for _, name, share in answer.top} for answer in each]
    [together] = atnet.predict(image, weights, top=10, tta="crops")
    for _, name, share in together.top:
        assert share == pytest.approx(sum(one[name] for one in shares) / 10, abs=1e-4)
    if kind == "run":
        scores = atnet.evaluate(finished_run, str(digits), tta="crops").scores
        answers = atnet.predict(digits / "val", finished_run, tta="crops")
        right = sum(Path(answer.image).parent.name == answer.top[0][0] for answer in answers)
        assert scores.top1 == pytest.approx(100 * right / len(answers))


def test_what_fails_at_the_start_leaves_no_file(album, finished_run, tmp_path):
    (tmp_path / "spoilt.safetensors").write_bytes(b"spoilt")
    (tmp_path / "empty").mkdir()
    Path("there.parquet").write_text("mine")
    given = str(finished_run)
    for words in (
        ["album", "--weights", given, "--batch", "0"],
        ["album", "--weights", "spoilt.safetensors"],
        ["empty", "--weights", given],
        ["album", "--weights", given, "--parquet", "there.parquet"],
    ):
        with pytest.raises(SystemExit):
            main(["predict", *words, "--csv", "new.csv"])
        assert not Path("new.csv").exists()


def test_links_to_folders_are_followed_once(album, digits):
    (album / "linked").symlink_to(digits / "val" / "one", target_is_directory=True)
    (album / "linked" / "back").symlink_to(album, target_is_directory=True)
    found = list(iter_images("album"))
    assert len(found) == len(set(found)) == 54 + 5


def test_names_that_a_system_has_for_devices_are_no_folders():
    assert [folder_name(name) for name in ("con", "LPT1", "_unsure", "console")] == [
        "con_",
        "LPT1_",
        "_unsure_",
        "console",
    ]
    assert len(folder_name("\u4e2d" * 200).encode()) <= 200
