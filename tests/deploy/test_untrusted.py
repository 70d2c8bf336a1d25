"""Files made to do harm, opened in this process; `make proof-malicious` opens them, and others, by the commands."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "proof"))
import malicious

from atnet.deploy.export import write_onnx
from atnet.deploy.onnx import OnnxNetwork
from atnet.deploy.untrusted import MAX_MEGABYTES, require_harmless
from atnet.errors import WeightsError
from atnet.model.load import create_classifier

HARMFUL = [name for name, (_, says) in malicious.CASES.items() if name.startswith("ONNX") and "answer" not in says]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "sound.onnx"
    torch.manual_seed(0)
    size = malicious.SIZE
    write_onnx(create_classifier("xxxs", classes=10, size=size), (3, size, size), path, malicious.INFO)
    return path


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_network_is_refused(name, sound, tmp_path, monkeypatch):
    monkeypatch.setattr(malicious, "SOUND", sound)
    make, says = malicious.CASES[name]
    make(tmp_path)
    with pytest.raises(WeightsError, match=r"evil\.onnx: ") as refused:
        OnnxNetwork(tmp_path / "evil.onnx")
    assert says in str(refused.value)


@pytest.mark.parametrize("name", ["xxxs", "xxxs_star", "xs_star", "seed_s", "mobilenetv3_small_100"])
def test_a_sound_network_is_not(name, tmp_path):
    path = tmp_path / "sound.onnx"
    size = 64
    preprocess = replace(malicious.INFO.preprocess, size=size)
    info = replace(malicious.INFO, model=name if "mobile" in name else f"atnet_{name}", preprocess=preprocess)
    write_onnx(create_classifier(name, classes=10, size=size).eval(), (3, size, size), path, info)
    require_harmless(path.read_bytes(), path, batch=64)


def test_a_network_has_more_memory_than_any_of_ours_needs_and_not_more(sound, tmp_path):
    """A tensor that a run would hold, a little smaller than the limit, and one a little larger."""
    for share, allowed in ((0.9, True), (1.1, False)):
        model = onnx.load(sound)
        count = int(share * MAX_MEGABYTES * 1e6 / 4)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([count]), "count"))
        model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["count"], ["much"]))
        content = model.SerializeToString()
        if allowed:
            require_harmless(content, tmp_path / "much.onnx")
        else:
            with pytest.raises(WeightsError, match=r"much\.onnx: needs \d+ MB beside its weights, more than 400 MB"):
                require_harmless(content, tmp_path / "much.onnx")
