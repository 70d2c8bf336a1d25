import json
import os
import struct
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import atnet
from atnet.data.preprocess import Preprocess
from atnet.errors import WeightsError
from atnet.models.load import read_info, to_safetensors
from atnet.weights.info import HASHES, WeightsInfo, note_hashes, read_unchanged

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
        ({"model": "atnet_xxxs+heads=0"}, "weights.safetensors: atnet_xxxs.heads=0: heads=0: no whole number"),
        ({"model": "gcvit_xxtiny", "preprocess": asdict(replace(INFO.preprocess, size=8))}, "cannot be built with"),
        ({"model": "atnet_xxxs+convmixer=foo"}, "weights.safetensors: .*neither true nor false"),
        ({"model": "atnet_xxxs" + "+kernel=5" * 1000}, "weights.safetensors: .*more than 1,000 characters"),
        ({"class_names": ["x" * 9_000, "b", "c"]}, "weights.safetensors: .*more than 1,000 characters"),
        ({"class_names": ["\ud800", "b", "c"]}, "weights.safetensors: .*surrogates not allowed"),
        ({"classes": list(range(200_000)), "class_names": list(range(200_000))}, "more than 100,000 classes"),
        ({"facts": {"many": ["x"] * 100_000}}, "facts of more than 100,000 characters"),
    ],
)
def test_metadata_that_cannot_be_right_or_point_elsewhere_are_refused(saved, change, message):
    _, path = saved
    values = json.loads(INFO.to_metadata()["atnet"]) | change
    save_file(load_file(path), path, metadata={"atnet": json.dumps(values)})
    with pytest.raises(WeightsError, match=message):
        atnet.load(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensor: tensor.index_fill(1, torch.tensor([7]), float("nan")), "head.weight has numbers that are not"),
        (lambda tensor: tensor.half().fill_(float("inf")), "head.weight has numbers that are not"),
        (lambda tensor: tensor.short(), "head.weight has numbers of type I16 instead of F32 or F16 or BF16"),
        (lambda tensor: tensor.double(), "head.weight has numbers of type F64"),
        (lambda tensor: tensor.bool(), "head.weight has numbers of type BOOL"),
    ],
    ids=["nan", "inf", "int16", "float64", "bool"],
)
def test_numbers_that_are_none_or_of_another_type_are_refused(saved, spoil, message):
    _, path = saved
    state = load_file(path)
    path.write_bytes(to_safetensors(state | {"head.weight": spoil(state["head.weight"])}, INFO))
    with pytest.raises(WeightsError, match=f"weights.safetensors: {message}"):
        atnet.load(path)


def test_numbers_of_16_bits_are_taken(saved):
    model, path = saved
    for kind in (torch.float16, torch.bfloat16):
        state = {name: t.to(kind) if t.is_floating_point() else t for name, t in model.state_dict().items()}
        path.write_bytes(to_safetensors(state, INFO))
        loaded, _ = atnet.load(path)
        assert torch.equal(loaded.head.weight, model.head.weight.to(kind).float())


def test_facts_that_json_does_not_have_are_left_out_with_a_line(saved, caplog):
    _, path = saved
    facts = {"val_top1": float("nan"), "deep": {"er": [1e999]}, "text": "\udc80", "data": "digits", "val_top5": 99.5}
    for text in (json.dumps(asdict(INFO) | {"facts": facts}), replace(INFO, facts=facts).to_metadata()["atnet"]):
        save_file(load_file(path), path, metadata={"atnet": text})
        _, info = atnet.load(path)
        assert info.facts == {"data": "digits", "val_top5": 99.5}
    assert "weights.safetensors: what it says of 'val_top1' is no finite number" in caplog.text


def test_every_changed_bit_is_noticed_where_there_are_hashes(saved):
    _, path = saved
    content = path.read_bytes()
    note_hashes(path.parent, {path.name: content})
    atnet.load(path)
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(8 * len(content), (10,), generator=generator).tolist():
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=r"weights\.safetensors: "):
            atnet.load(path)


def test_hashes_pass_what_is_replaced_whenever_the_process_is_killed(tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"first")
    (tmp_path / HASHES).write_text("damaged")
    for killed, content in ((True, b"second"), (True, b"third"), (False, b"fourth"), (False, b"fifth")):
        note_hashes(tmp_path, {path.name: content})
        read_unchanged(path)
        if not killed:
            path.write_bytes(content)
            assert read_unchanged(path) == content
    note_hashes(tmp_path, {"ema.safetensors": b"other"})
    assert read_unchanged(path) == b"fifth"
    for changed in (b"first", b"third", b"changed"):
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=r"last\.safetensors: damaged or changed, for sha256\.json"):
            read_unchanged(path)
    note_hashes(tmp_path, {path.name: b"sixth"})
    with pytest.raises(WeightsError, match=r"last\.safetensors: damaged"):
        read_unchanged(path)


@pytest.mark.parametrize(
    "content", ["[1, 2", "[]x", '{"last.safetensors": [1]}', '{"last.safetensors": 7}', "[" * 9999]
)
def test_damaged_hashes_are_said(tmp_path, content):
    (tmp_path / "last.safetensors").write_bytes(b"weights")
    (tmp_path / HASHES).write_text(content)
    with pytest.raises(WeightsError, match=rf"{HASHES}: damaged .* delete it"):
        read_unchanged(tmp_path / "last.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_weights_that_are_no_file_are_refused_before_they_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    (tmp_path / "folder.safetensors").mkdir()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(5_000_000_000)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(WeightsError, match=path.name):
            atnet.load(path)
        with pytest.raises(WeightsError, match=path.name):
            read_info(path)
    (tmp_path / HASHES).symlink_to("/dev/zero")
    (tmp_path / "last.safetensors").write_bytes(b"weights")
    with pytest.raises(WeightsError, match=rf"{HASHES}: a device"):
        read_unchanged(tmp_path / "last.safetensors")
