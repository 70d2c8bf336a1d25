import json

import pytest

import atnet
from atnet.cli import main
from atnet.errors import ConfigError, DataError


def test_photos_are_trained_on_evaluated_and_named(few_photos, tmp_path):
    run = atnet.train(
        model="xxxs",
        epochs=1,
        batch=24,
        data={"source": str(few_photos), "size": 64, "cache": "ram", "cache_size": 96, "workers": 0},
        out=tmp_path / "run",
    )
    assert run.record["classes"] == 3
    scores = atnet.evaluate(run.folder).scores
    assert scores.count == 30
    assert round(scores.top1, 4) == run.record["top1"]["ema"]
    picture = next((few_photos / "val" / "n03394916").iterdir())
    [answer] = atnet.predict(picture, run.folder)
    assert {name for _, name, _ in answer.top} == {"tench", "French horn", "golf ball"}
    assert sum(p for _, _, p in answer.top) == pytest.approx(1, abs=1e-5)


def test_a_peer_of_timms_is_trained_by_the_same_code(quick, tmp_path):
    run = atnet.train(**quick | {"model": "mobilenetv3_small_050"}, out=tmp_path / "run")
    assert run.record["model"] == "mobilenetv3_small_050"
    assert round(atnet.evaluate(run.folder).scores.top1, 4) == run.record["top1"]["ema"]


def test_a_peer_without_stochastic_depth_says_so(quick, tmp_path):
    with pytest.raises(ConfigError, match="vgg11 cannot be built with drop_path_rate=0.1"):
        atnet.train(**quick | {"model": "vgg11", "drop_path": 0.1}, out=tmp_path / "run")


def test_a_broken_picture_is_named(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    (tmp_path / "not_a_picture.jpg").write_text("text")
    with pytest.raises(DataError, match=r"not_a_picture.jpg: text, not a whole JPEG"):
        atnet.predict([tmp_path / "not_a_picture.jpg"], run.folder)
    with pytest.raises(DataError, match=r"gone.jpg: no such picture"):
        atnet.predict(tmp_path / "gone.jpg", run.folder)


def test_a_folders_pictures_are_named_and_one_bad_picture_keeps_the_others(quick, digits, tmp_path, capsys):
    run = atnet.train(**quick, out=tmp_path / "run")
    folder = digits / "val" / "seven"
    whole = sorted(map(str, folder.iterdir()))
    (folder / "broken.png").write_text("text")
    (folder / "notes.txt").write_text("text")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(folder), "--json", "--weights", str(run.folder)])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "broken.png: text, not a whole JPEG" in said.err
    assert [answer["picture"] for answer in json.loads(said.out)] == whole
