import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import atnet
from atnet.cli import main
from atnet.data.preprocess import CROP_MODES, Preprocess
from atnet.errors import ConfigError, WeightsError
from atnet.export.export import export, probabilities_apart
from atnet.export.web import write_web
from atnet.exported.onnx import OnnxNetwork
from atnet.exported.preprocessing import remove_preprocessing, with_preprocessing

PHOTOS = {
    "wide": Image.fromarray(load_sample_image("china.jpg")),
    "high": Image.fromarray(load_sample_image("flower.jpg").transpose(1, 0, 2)),
    "small": Image.fromarray(load_sample_image("flower.jpg")).resize((21, 33)),
    "square": Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 97, 97)),
}


@pytest.fixture
def run(quick, tmp_path):
    return atnet.train(**quick, out=tmp_path / "run").folder


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop_pct"), [(32, 0.95), (50, 1.0), (224, 0.875)])
@pytest.mark.parametrize("resize", CROP_MODES)
@pytest.mark.parametrize("name", PHOTOS)
def test_the_steps_in_the_graph_are_those_of_pillow(name, resize, size, crop_pct, interpolation):
    mean, std = (0.485, 0.456, 0.406), (0.2, 0.3, 0.4)
    preprocess = Preprocess(
        size=size, crop_pct=crop_pct, interpolation=interpolation, mean=mean, std=std, resize=resize
    )
    network = _identity(size)
    model = with_preprocessing(network, preprocess)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [[found]] = session.run(None, {"picture": np.asarray(PHOTOS[name])})
    expected = preprocess(PHOTOS[name])
    levels = np.abs(found - expected) * 255 * np.array(preprocess.std)[:, None, None]
    assert levels.max() < 1.01, "a level of 255 at most, where Pillow rounds otherwise"
    assert (levels > 0.5).mean() < 0.02


def test_taking_the_steps_out_gives_the_network_back_unless_they_were_changed():
    preprocess = Preprocess(size=40, crop_pct=0.9, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3)
    network = _identity(40)
    model = with_preprocessing(network, preprocess)
    spoilt = onnx.ModelProto.FromString(model.SerializeToString())
    next(node for node in spoilt.graph.node if node.op_type == "Resize").attribute.pop()
    assert not remove_preprocessing(spoilt, preprocess)
    assert remove_preprocessing(model, preprocess)
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in network.graph.node]
    assert not remove_preprocessing(model, preprocess), "there is nothing left to take out"


@pytest.mark.slow
def test_a_file_that_takes_images_answers_as_the_weights_do(run, digits):
    done = export(run, preprocessing=True)
    assert 0 <= done.difference < 1e-2
    network = OnnxNetwork(done.path)
    assert network.takes_images
    assert network.info.facts["input"].startswith("picture: uint8 (height, width, 3)")
    plain = OnnxNetwork(export(run, run / "plain.onnx").path)
    for photo in PHOTOS.values():
        assert probabilities_apart(network.answer(photo), plain.answer(photo)) < 1e-2
    images = sorted((digits / "val").rglob("*.png"))
    said, expected = ([answer.name for answer in atnet.predict(images, weights)] for weights in (done.path, run))
    assert said == expected


def test_what_prepares_images_itself_refuses_such_a_file(run, tmp_path, capsys):
    done = export(run, preprocessing=True)
    with pytest.raises(WeightsError, match=r"model\.onnx: takes whole images, and the page prepares them itself"):
        write_web(tmp_path / "site", done.path)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--weights", str(done.path), "--port", "0"])
    assert ended.value.code == 2
    assert "takes whole images, and the server prepares them itself" in capsys.readouterr().err


def test_steps_of_a_graph_are_of_onnx(run):
    with pytest.raises(ConfigError, match="--with-preprocessing makes steps of an ONNX graph"):
        export(run, to="safetensors", preprocessing=True)


def _identity(size):
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> network (float[N, 3, {size}, {size}] image) '
        f"=> (float[N, 3, {size}, {size}] same) {{ same = Identity (image) }}"
    )
