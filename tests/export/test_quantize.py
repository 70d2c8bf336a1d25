import csv
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import atnet
from atnet.cli import main
from atnet.data.sources import open_labelled
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.eval.selective import fit_trust
from atnet.export import quantize as quantizing
from atnet.export.export import export
from atnet.export.quantize import part_of, quantize
from atnet.exported.onnx import OnnxNetwork
from atnet.weights.info import WEIGHTS

TEN = "xxxs.imagenette"


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """Times are not what is tested."""
    monkeypatch.setattr(quantizing, "ROUNDS", 1)
    monkeypatch.setattr(quantizing, "SECONDS", 0.01)


@pytest.fixture
def run(quick, tmp_path):
    return atnet.train(**quick | {"epochs": 3}, out=tmp_path / "run").folder


def test_a_network_in_8_bits_holds_its_accuracy_and_tells_what_it_did(run, digits, capsys):
    main(["export", "--weights", str(run), "--int8", "--max-drop", "10", "--licence", "CC0-1.0"])
    said = capsys.readouterr().out
    file = run / "model.int8.onnx"
    for path in (file, run / "model.int8.csv", run / "model.int8.png"):
        assert str(path) in said
        assert path.is_file()
    assert f"Next: atnet predict IMAGE --weights {file}" in said
    whole = export(run, run / "whole.onnx").path
    assert file.stat().st_size < 0.35 * whole.stat().st_size
    images = sorted((digits / "val").rglob("*.png"))
    small, large = OnnxNetwork(file), OnnxNetwork(whole)
    asked = [(small.answer(Image.open(p).convert("RGB")), large.answer(Image.open(p).convert("RGB"))) for p in images]
    assert max(np.abs(one - other).max() for one, other in asked) > 0, "8 bits change the logits"
    right = [
        [small.info.class_names[answer[0].argmax()] == path.parent.name for answer in pair]
        for path, pair in zip(images, asked, strict=True)
    ]
    top1, top1_fp32 = 100 * np.mean(right, axis=0)
    agreement = 100 * np.mean([one[0].argmax() == other[0].argmax() for one, other in asked])
    facts = small.info.facts
    assert facts["int8"] == {
        "top1": pytest.approx(top1), "top1_fp32": pytest.approx(top1_fp32), "agreement": pytest.approx(agreement),
        "images": 50, "float": facts["int8"]["float"],
    }  # fmt: skip
    assert top1 >= top1_fp32 - 10
    assert facts["licence"] == "CC0-1.0"
    with (run / "model.int8.csv").open() as report:
        rows = list(csv.DictReader(report))
    assert [row["network"] for row in rows[:3]] == ["fp32", "fp16", "int8"]
    assert float(rows[0]["agreement"]) == 100
    assert float(rows[0]["top1"]) == pytest.approx(top1_fp32)
    alone = [float(row["logit_error"]) for row in rows if row["logit_error"]]
    assert len(alone) > 5
    assert alone == sorted(alone, reverse=True)
    assert alone[-1] > 0


@pytest.mark.slow
def test_weights_in_8_bits_have_a_scale_a_channel_and_parts_left_are_float(quick, tmp_path, monkeypatch):
    """With one part after the other in float, until the budget holds."""
    run = atnet.train(**quick, out=tmp_path / "run").folder
    scores = iter([(90.0, 100.0), (90.0, 100.0), (80.0, 88.0), (85.0, 92.0), (89.9, 98.0)])
    monkeypatch.setattr(quantizing._Exam, "score", lambda self, network: next(scores))
    done = quantize(run, max_drop=0.5)
    assert [trial.name for trial in done.trials][:3] == ["fp32", "fp16", "int8"]
    kept = list(done.costs)[:2]
    assert done.trials[-1].kept == tuple(kept)
    assert [trial.name for trial in done.trials][3:] == [f"and {part} in float" for part in kept]
    model = onnx.load(done.path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        source = next((one for one in model.graph.node if node.input[1] in one.output), None)
        if part_of(node.name) in kept or part_of(node.name) not in done.costs:
            assert source is None or source.op_type == "Cast", node.name
        else:
            assert source.op_type == "DequantizeLinear", node.name
            assert weights[source.input[0]].data_type == onnx.TensorProto.INT8
            channels = weights[source.input[0]].dims
            assert list(weights[source.input[1]].dims) in ([channels[0]], [channels[-1]])


@pytest.mark.slow
def test_nothing_is_written_where_accuracy_is_not_held(quick, tmp_path, monkeypatch):
    """Each part is left in float but the last, here of a network of few parts."""
    run = atnet.train(**quick, out=tmp_path / "run").folder
    before = sorted(path.name for path in run.iterdir())
    turn = iter([(90.0, 100.0), *[(20.0, 20.0)] * 200])
    monkeypatch.setattr(quantizing._Exam, "score", lambda self, network: next(turn))
    with pytest.raises(WeightsError, match=r"8 bits still cost 70\.00 points of top-1, .*: nothing was exported"):
        quantize(run)
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.slow
def test_several_heads_and_a_file_that_takes_images(quick_star, digits, tmp_path):
    run = atnet.train(**quick_star, out=tmp_path / "star").folder
    few = Path(shutil.copytree(digits, tmp_path / "few"))
    for folder in (few / "val").iterdir():
        next(folder.iterdir()).unlink()
    done = quantize(run, max_drop=50, preprocessing=True, data=str(few))
    network = OnnxNetwork(done.path)
    assert atnet.load(run)[1].facts["trust"]["images"] == 50
    assert network.info.facts["trust"]["images"] == 40, "it is fitted to the answers in 8 bits"
    assert network.takes_images
    image = Image.open(next((digits / "val").rglob("*.png"))).convert("RGB")
    said = network.answer(image)
    assert said.shape == (1 + network.info.facts["heads"], 10)
    plain = OnnxNetwork(export(run).path).answer(image)
    assert np.abs(said - plain).max() < 0.3 * np.abs(plain).max()


def test_how_sure_answers_have_to_be_is_fitted_to_those_of_the_network_in_question(few_photos):
    network = OnnxNetwork(WEIGHTS / f"{TEN}.onnx")
    paths = sorted((few_photos / "val").rglob("*.JPEG"))
    paths[0].with_name("spoilt.JPEG").write_bytes(b"spoilt")
    images = open_labelled(str(few_photos), "val").relabel(network.info.classes)
    answers = [answer.top[0] for answer in atnet.predict(paths, network.path)]
    right = np.array([name == path.parent.name for (name, _, _), path in zip(answers, paths, strict=True)])
    expected = fit_trust(np.array([share for *_, share in answers]), right)
    found = quantizing._Exam(network, images).trust(network)
    assert found["images"] == 30
    assert found["levels"]
    assert np.array(found["levels"]) == pytest.approx(np.array(expected["levels"]), abs=1e-6)


def test_what_cannot_be_is_said_before_any_work(run, digits, tmp_path, capsys):
    for words in (["--half"], ["--to", "safetensors"]):
        with pytest.raises(SystemExit) as ended:
            main(["export", "--weights", str(run), "--int8", *words])
        assert ended.value.code == 2
        assert "leave --half and --to out" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--max-drop -1 is out of range: use 0 to 100"):
        quantize(run, max_drop=-1)
    (run / "model.int8.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"model\.int8\.csv: exists; choose another --out"):
        quantize(run)
    assert (run / "model.int8.csv").read_text() == "mine"
    for path in (digits / "val").rglob("*.png"):
        path.write_bytes(b"spoilt")
    with pytest.raises(DataError, match=r"none of .* images"):
        quantize(run, tmp_path / "other.onnx", data=str(digits))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".partial", "other"))]
