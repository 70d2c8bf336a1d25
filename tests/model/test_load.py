import json
import struct
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import atnet
from atnet.data.preprocess import Preprocess
from atnet.errors import WeightsError
from atnet.model.info import WeightsInfo
from atnet.model.load import to_safetensors

INFO = WeightsInfo(
    model="atnet_xxxs",
    classes=("n03394916", "b", "c"),
    class_names=("French horn", "b", "c"),
    preprocess=Preprocess(size=64, crop_pct=0.9, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3),
    epoch=3,
    moving_average=True,
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = atnet.create_model("xxxs", num_classes=3).eval()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_safetensors(model.state_dict(), INFO))
    return model, path


def test_weights_come_back_with_what_they_are(saved):
    model, path = saved
    loaded, info = atnet.load(path)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(image), model(image))
    assert info == INFO
    assert not loaded.training


def test_weights_of_another_shape_name_the_first_tensor(saved, tmp_path):
    _, path = saved
    state = load_file(path) | {"head.weight": torch.zeros(5, 192)}
    path.write_bytes(to_safetensors(state, INFO))
    with pytest.raises(WeightsError, match=r"head.weight is \(5, 192\) in the file and \(3, 192\) in the model"):
        atnet.load(path)


def test_weights_of_another_architecture_are_refused(saved):
    _, path = saved
    state = load_file(path)
    del state["cls_token"]
    path.write_bytes(to_safetensors(state, INFO))
    with pytest.raises(WeightsError, match="cls_token is absent in the file"):
        atnet.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\x80\x04pickle", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"{}"],
    ids=["empty", "short", "pickle", "header of an exabyte", "no tensors"],
)
def test_what_is_no_weights_file_is_refused(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="bad.safetensors"):
        atnet.load(tmp_path / "bad.safetensors")


def test_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    torch.save(Trap(), tmp_path / "trap.safetensors")
    with pytest.raises(WeightsError):
        atnet.load(tmp_path / "trap.safetensors")
    assert not (tmp_path / "trapped").exists()


def test_other_peoples_safetensors_are_told_apart(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="without AT-Net's metadata"):
        atnet.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["a", "a", "b"]}, "weights.safetensors"),
        ({"classes": ["a"]}, "weights.safetensors"),
        ({"epoch": float("inf")}, "weights.safetensors"),
        ({"preprocess": {"size": 1}}, "weights.safetensors"),
        ({"model": "../../etc"}, "no model is called"),
        ({"model": "hf-hub:x/y"}, "no model is called"),
        ({"model": "local-dir:/x"}, "no model is called"),
        ({"model": "atnet_xxxs+heads=0"}, "weights.safetensors: atnet_xxxs.heads=0: 'heads=0': no whole number"),
        ({"model": "gcvit_xxtiny", "preprocess": asdict(replace(INFO.preprocess, size=8))}, "cannot be built with"),
        ({"model": "atnet_xxxs+stem=foo"}, "weights.safetensors: .*none of patch, overlap"),
    ],
)
def test_metadata_that_cannot_be_right_or_point_elsewhere_are_refused(saved, change, message):
    _, path = saved
    values = json.loads(INFO.to_metadata()["atnet"]) | change
    save_file(load_file(path), path, metadata={"atnet": json.dumps(values)})
    with pytest.raises(WeightsError, match=message):
        atnet.load(path)
