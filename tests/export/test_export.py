import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

import atnet
from atnet.cli import main
from atnet.errors import ConfigError, WeightsError
from atnet.export import export as exporting
from atnet.export.export import export
from atnet.exported.onnx import OnnxNetwork
from atnet.weights.info import WEIGHTS

TEN = "xxxs.imagenette"


@pytest.fixture
def run(quick, tmp_path):
    return atnet.train(**quick, out=tmp_path / "run").folder


def test_an_exported_network_gives_the_same_answers_without_torch(run, digits):
    done = export(run)
    assert done.path == run / "model.onnx"
    assert done.images == 50
    assert 0 < done.difference < 1e-4
    samples = [str(path) for path in sorted((digits / "val").rglob("*.png"))[:7]]
    code = (
        "import json, sys, atnet\n"
        f"answers = atnet.predict({samples}, {str(done.path)!r}, top=10)\n"
        "print(json.dumps([[a.image, a.top] for a in answers]), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith(" False")
    there = json.loads(said.rpartition(" ")[0])
    here = atnet.predict(samples, run, top=10)
    for (image, top), answer in zip(there, here, strict=True):
        assert image == answer.image
        assert [name for name, _, _ in top] == [name for name, _, _ in answer.top]
        assert [p for _, _, p in top] == pytest.approx([p for _, _, p in answer.top], abs=1e-5)


def test_the_file_says_what_it_is_and_takes_any_batch(run):
    network = OnnxNetwork(export(run, licence="CC0-1.0").path)
    info = atnet.load(run)[1]
    digest = hashlib.sha256((run / "ema.safetensors").read_bytes()).hexdigest()
    told = {"licence": "CC0-1.0", "weights_sha256": digest, "numbers": "float32", "heads": 1, "opset": 20}
    facts = info.facts | told | {"input": "images: float32 (N, 3, 32, 32), RGB, resized, cropped and normalised"}
    assert network.info == dataclasses.replace(info, facts=facts)
    images = np.random.default_rng(0).standard_normal((5, 3, 32, 32), np.float32)
    together = network(images)
    assert together.shape == (5, 10)
    assert together[3:4] == pytest.approx(network(images[3:4]), abs=1e-5)
    model = onnx.load(run / "model.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer), "all in one file"
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 20


def test_nothing_is_sent_or_noted_by_onnx_runtime(run, digits, tmp_path):
    """It reports the files it opens, unless told not to before it starts, and leaves files where it did."""
    place = tmp_path / "tmp"
    place.mkdir()
    image = str(next((digits / "val").rglob("*.png")))
    words = [sys.executable, "-m", "atnet", "predict", image, "--weights", str(export(run).path)]
    where = {"TMPDIR": str(place), "HOME": str(place), "ATNET_CACHE": str(tmp_path / "cache"), "CI": ""}
    subprocess.run(words, check=True, env=os.environ | where)
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_a_peer_of_timms_is_exported_too(quick, tmp_path):
    run = atnet.train(**quick | {"model": "mobilenetv3_small_050"}, out=tmp_path / "run").folder
    assert export(run, tmp_path / "peer.onnx").difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "safetensors"])
def test_half_as_large_says_the_same(run, digits, to):
    whole, half = (export(run, run / f"{half}.{to}", to=to, half=half).path for half in (False, True))
    assert 0.45 < half.stat().st_size / whole.stat().st_size < (0.65 if to == "onnx" else 0.52)
    samples = sorted((digits / "val").rglob("*.png"))
    one, other = (atnet.predict(samples, path) for path in (whole, half))
    assert [answer.name for answer in one] == [answer.name for answer in other]
    apart = max(abs(a.top[0][2] - b.top[0][2]) for a, b in zip(one, other, strict=True))
    assert 0 < apart < 0.01
    same = atnet.predict(samples, run)
    assert max(abs(a.top[0][2] - b.top[0][2]) for a, b in zip(one, same, strict=True)) < 1e-4


def test_exports_into_one_folder_at_once_are_each_of_their_own_weights(finished_run, tmp_path):
    names = ("last", "ema")
    alone = {
        name: export(finished_run / f"{name}.safetensors", tmp_path / f"{name}.safetensors", to="safetensors").path
        for name in names
    }
    assert alone["last"].read_bytes() != alone["ema"].read_bytes()
    with ThreadPoolExecutor(2) as threads:
        made = [
            (
                name,
                threads.submit(
                    export, finished_run / f"{name}.safetensors", tmp_path / f"{name}-{i}", to="safetensors"
                ),
            )
            for i in range(4)
            for name in names
        ]
        for name, one in made:
            assert one.result().path.read_bytes() == alone[name].read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_differs_from_torch_never_gets_its_name(run, monkeypatch):
    written = exporting.write_onnx

    def spoil(model, *rest):
        with exporting.torch.no_grad():
            bias = model.head.bias.clone()
            model.head.bias += 0.5 * exporting.torch.arange(10)
            written(model, *rest)
            model.head.bias.copy_(bias)

    monkeypatch.setattr(exporting, "write_onnx", spoil)
    with pytest.raises(WeightsError, match=r"the file says \w+, torch \w+, .*: nothing was exported"):
        export(run)
    assert not [path.name for path in run.iterdir() if "onnx" in path.name or path.name.startswith(".")]


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "mine.onnx").write_text("mine")
    with pytest.raises(ConfigError, match=r"mine.onnx: exists; choose another --out"):
        export(run, tmp_path / "mine.onnx")
    with pytest.raises(ConfigError, match=r"nowhere: no such folder"):
        export(run, tmp_path / "nowhere" / "mine.onnx")


def test_of_what_comes_with_atnet_the_file_has_its_name_and_lies_here(digits):
    before = sorted(WEIGHTS.iterdir())
    done = export(TEN, to="safetensors", data=str(digits))
    assert done.path == Path(f"{TEN}.safetensors")
    assert done.path.is_file()
    assert sorted(WEIGHTS.iterdir()) == before
    with pytest.raises(ConfigError, match=rf"^{TEN}.safetensors: exists; choose another --out"):
        export(WEIGHTS / f"{TEN}.safetensors", to="safetensors", data=str(digits))


def test_a_file_that_is_no_such_file_is_named(run, digits, tmp_path):
    image = next((digits / "val").rglob("*.png"))
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(WeightsError, match=r"text.onnx: not an ONNX file, or a damaged one"):
        atnet.predict(image, tmp_path / "text.onnx")
    whole = export(run).path
    model = onnx.load(whole)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(WeightsError, match=r"bare.onnx: without AT-Net's metadata"):
        atnet.predict(image, tmp_path / "bare.onnx")
    with pytest.raises(ConfigError, match="an ONNX file runs on the CPU here"):
        atnet.predict(image, whole, device="cuda")
    with pytest.raises(WeightsError, match=r"model.onnx: an exported network; give the run"):
        atnet.evaluate(whole, str(digits))


def test_the_commands_work_together(run, digits, capsys):
    main(["export", "--weights", str(run)])
    said = capsys.readouterr().out
    assert f"Written: {run / 'model.onnx'}" in said
    assert f"Next: atnet predict IMAGE --weights {run / 'model.onnx'}" in said
    image = str(next(Path(digits / "val" / "six").iterdir()))
    main(["predict", image, "--weights", str(run / "model.onnx"), "--json"])
    assert json.loads(capsys.readouterr().out)[0]["image"] == image


def test_the_file_names_no_folder_of_the_machine_that_wrote_it(quick, tmp_path):
    content = export(atnet.train(**quick, out=tmp_path / "run").folder).path.read_bytes()
    assert b"site-packages" not in content
    assert b"site-packages" not in (WEIGHTS / f"{TEN}.onnx").read_bytes()
