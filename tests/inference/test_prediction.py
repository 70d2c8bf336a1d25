import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import atnet
from atnet.cli import main
from atnet.data.preprocess import Preprocess
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.eval.selective import least_confidence
from atnet.export.export import export, of_onnx
from atnet.exported.onnx import OnnxNetwork
from atnet.inference.prediction import Prediction, weights_to_ask
from atnet.models.load import read_info, to_safetensors
from atnet.weights.find import find_weights
from atnet.weights.info import SHIPPED, WEIGHTS, WeightsInfo

TEN = "xxxs.imagenette"


def test_photos_are_trained_on_evaluated_and_named(few_photos, tmp_path):
    run = atnet.train(
        model="xxxs",
        weights="none",
        epochs=1,
        batch=24,
        data={"source": str(few_photos), "size": 64, "cache": "ram", "cache_size": 96, "workers": 0},
        out=tmp_path / "run",
    )
    assert run.record["classes"] == 3
    scores = atnet.evaluate(run.folder).scores
    assert scores.count == 30
    assert round(scores.top1, 4) == run.record["top1"]["ema"]
    image = next((few_photos / "val" / "n03394916").iterdir())
    [answer] = atnet.predict(image, run.folder)
    assert {name for _, name, _ in answer.top} == {"tench", "French horn", "golf ball"}
    assert sum(p for _, _, p in answer.top) == pytest.approx(1, abs=1e-5)


def test_a_peer_of_timms_is_trained_by_the_same_code(quick, tmp_path):
    run = atnet.train(**quick | {"model": "mobilenetv3_small_050"}, out=tmp_path / "run")
    assert run.record["model"] == "mobilenetv3_small_050"
    assert round(atnet.evaluate(run.folder).scores.top1, 4) == run.record["top1"]["ema"]


def test_a_peer_without_stochastic_depth_says_so(quick, tmp_path):
    with pytest.raises(ConfigError, match="vgg11 cannot be built with drop_path_rate=0.1"):
        atnet.train(**quick | {"model": "vgg11", "drop_path": 0.1}, out=tmp_path / "run")


def test_a_broken_image_is_named(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    (tmp_path / "not_a_image.jpg").write_text("text")
    with pytest.raises(DataError, match=r"not_a_image.jpg: text, not a whole JPEG"):
        atnet.predict([tmp_path / "not_a_image.jpg"], run.folder)
    with pytest.raises(DataError, match=r"gone.jpg: no such image"):
        atnet.predict(tmp_path / "gone.jpg", run.folder)


def test_a_folders_images_are_named_and_one_bad_image_keeps_the_others(quick, digits, tmp_path, capsys):
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
    answers = json.loads(said.out)
    assert [answer["image"] for answer in answers if "top" in answer] == whole
    [unread] = [answer for answer in answers if "top" not in answer]
    assert unread["image"].endswith("broken.png")
    assert "not a whole JPEG" in unread["error"]


def test_the_network_that_comes_with_the_package_names_photos_without_torch(photos, tmp_path):
    names = {"n01440764": "tench", "n03394916": "French horn", "n03445777": "golf ball"}
    folder = tmp_path / "asked"
    folder.mkdir()
    for code in names:
        shutil.copy(sorted((photos / "val" / code).iterdir())[1], folder / f"{code}.JPEG")
    said = subprocess.run(
        [sys.executable, "-c", f"import sys, atnet.cli; atnet.cli.main(['predict', {str(folder)!r}, '--json'])\n"
         "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers = {Path(answer["image"]).stem: answer["top"][0] for answer in json.loads(said.stdout)}
    assert {code: top["name"] for code, top in answers.items()} == names
    assert {code: top["class"] for code, top in answers.items()} == {code: code for code in names}
    said = subprocess.run(
        [sys.executable, "-m", "atnet", "predict", str(folder)], capture_output=True, text=True, check=True
    )
    assert (
        "comes with AT-Net and knows 385 kinds of things and nothing else: `atnet weights xxxs.general`" in said.stdout
    )


def test_what_comes_with_the_package_is_small_and_its_card_says_what_its_files_say():
    card = " ".join((WEIGHTS / f"{SHIPPED}.md").read_text(encoding="utf-8").split())
    files = [WEIGHTS / f"{SHIPPED}{suffix}" for suffix in (".safetensors", ".onnx")]
    assert max(file.stat().st_size for file in files) <= 4_000_000
    info = read_info(files[0])
    assert OnnxNetwork(files[1]).info == of_onnx(info, preprocessing=False)
    assert f"{info.facts['val_top1']:.2f}" in card
    assert f"{info.facts['val_top5']:.2f}" in card
    assert all(name in card for name in info.class_names)


def test_its_two_files_answer_alike_and_a_file_of_ones_own_goes_before_it(tmp_path):
    model, info = atnet.load(SHIPPED)
    images = np.random.default_rng(0).normal(size=(3, 3, info.preprocess.size, info.preprocess.size))
    images = images.astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    assert OnnxNetwork(WEIGHTS / f"{SHIPPED}.onnx")(images) == pytest.approx(expected, abs=1e-2)
    assert find_weights(f"atnet_{SHIPPED}").path == WEIGHTS / f"{SHIPPED}.safetensors"
    (tmp_path / SHIPPED).write_text("mine")
    assert find_weights(SHIPPED).path == Path(SHIPPED)


def test_the_newest_run_is_asked_before_the_network_that_comes_with_the_package(quick, digits):
    assert weights_to_ask(None).path == WEIGHTS / f"{SHIPPED}.onnx"
    assert weights_to_ask(None, "cuda").path == WEIGHTS / f"{SHIPPED}.safetensors"
    run = atnet.train(**quick)
    assert weights_to_ask(None).path.resolve() == (run.folder / "ema.safetensors").resolve()


@pytest.mark.slow
def test_several_heads_answer_and_abstain_alike_in_torch_and_onnx(quick_star, digits, tmp_path, capsys):
    options = quick_star | {"epochs": 8, "optim": {"lr": 3e-3}}
    run = atnet.train(**options, out=tmp_path / "run").folder
    exported = export(run).path
    samples = sorted((digits / "val").rglob("*.png"))[:12]
    here, there = (atnet.predict(samples, weights, abstain=0.5) for weights in (run, exported))
    least, share = least_confidence(atnet.load(run)[1].facts, 0.5)
    assert 0 < share <= 1
    for one, other in zip(here, there, strict=True):
        assert len(one.heads) == 5
        assert [head[0] for head in one.heads] == [head[0] for head in other.heads]
        assert [p for _, _, p in one.heads] == pytest.approx([p for _, _, p in other.heads], abs=1e-5)
        assert one.top[0][2] == pytest.approx(other.top[0][2], abs=1e-5)
        assert one.ask_a_person == (one.top[0][2] < least)
    main(["predict", str(samples[0]), "--weights", str(exported), "--abstain", "0.5", "--json"])
    [said] = json.loads(capsys.readouterr().out)
    assert len(said["heads"]) == 5
    assert said["ask_a_person"] == here[0].ask_a_person
    main(["predict", str(samples[0]), "--weights", str(exported)])
    assert "of 5 heads agree" in capsys.readouterr().out
    main(["eval", "--weights", str(run)])
    told = capsys.readouterr().out
    assert all(name in told for name in ("class token", "register 4", "together", "answer differently"))


def test_weights_that_can_promise_nothing_say_so(quick, digits, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run").folder
    image = next((digits / "val").rglob("*.png"))
    with pytest.raises(ConfigError, match=r"--abstain 0.999 was not reached"):
        atnet.predict(image, run, abstain=0.999)
    assert not atnet.predict(image, run)[0].ask_a_person


def test_a_newest_run_that_is_gone_is_said_and_nothing_else_answers(quick, digits, capsys):
    run = atnet.train(**quick, out="run").folder
    image = next((digits / "val").rglob("*.png"))
    main(["predict", str(image)])
    assert "Answered by the newest run, run\n" in capsys.readouterr().out
    shutil.rmtree(run)
    with pytest.raises(WeightsError, match="last: the run that it points to is gone; name another by --weights"):
        atnet.predict(image)


def test_answers_that_are_no_numbers_are_refused_and_never_printed(digits, tmp_path, capsys):
    """Of weights that are finite, each by itself: a prediction, an evaluation, JSON."""
    classes = tuple(sorted(folder.name for folder in (digits / "val").iterdir()))
    preprocess = Preprocess(size=32, crop_pct=1.0, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    info = WeightsInfo(
        model="atnet_xxxs", classes=classes, class_names=classes, preprocess=preprocess, epoch=1, moving_average=False
    )
    state = atnet.create_model("xxxs", num_classes=10).state_dict()
    state["head.weight"].fill_(3e38)
    path, image = tmp_path / "large.safetensors", next((digits / "val").rglob("*.png"))
    path.write_bytes(to_safetensors(state, info))
    with pytest.raises(WeightsError, match=r"large\.safetensors: its answers are not finite"):
        atnet.predict(image, path)
    with pytest.raises(WeightsError, match=r"large\.safetensors: its answers are not finite"):
        atnet.evaluate(path, str(digits), workers=0)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(image), "--weights", str(path), "--json"])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert not said.out
    assert said.err.count("large.safetensors: its answers are not finite") == 1


def test_in_a_notebook_an_answer_is_a_table_and_names_do_nothing():
    found = Prediction(image="<b>.png", top=(("a", "<script>", 0.75), ("b", "b", 0.25)), milliseconds=1, needs=0.8)
    page = found._repr_html_()
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;.png" in page
    assert "<script>" not in page
    assert ("75.0%" in page, "ask a person" in page, page.count("<tr>")) == (True, True, 2)
