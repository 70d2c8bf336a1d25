"""Files made to do harm, opened in this process; `make proof-malicious` opens them, and others, by the commands."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
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


def refused(body: str, initial: str = "", change=lambda graph: None) -> str:
    """What is said of a network of a few operations, from `image` to `logits`, in ONNX's own notation."""
    size, text = malicious.SIZE, f"{malicious.ANSWER} {body}"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> evil (float[batch, 3, {size}, {size}] image) => '
        f"(float[batch, 10] logits) <{malicious.TEN}{initial}> {{ {text} }}"
    )
    onnx.helper.set_model_props(model, malicious.INFO.to_metadata())
    change(model.graph)
    with pytest.raises(WeightsError, match=r"evil\.onnx: ") as error:
        require_harmless(model.SerializeToString(), Path("evil.onnx"))
    return str(error.value)


@pytest.mark.parametrize(
    ("first", "step", "count"),
    [
        ("c0 = Constant <value_ints = [1, 1]> ()", "Concat <axis = 0> (c{0}, c{0})", 18),
        ("c0 = Add (pair, pair)", "Concat <axis = 0> (c{0}, c{0})", 18),
        ("c0 = Shape (image)", "Concat <axis = 0> (c{0}, c{0})", 18),
        ("c0 = Unsqueeze (zero, pair)", "Gather (c{0}, c{0})", 18),
        ("c0 = Unsqueeze (one, pair)", "GatherND (c{0}, c{0})", 18),
        ("c0 = Identity (one)", "Unsqueeze (c{0}, thousand)", 20),
        ("c0 = Identity (one)", "Add (thousand, one)", 250),
    ],
    ids=["concat a constant", "concat", "concat a shape", "gather", "gather_nd", "unsqueeze", "add"],
)
def test_what_multiplies_while_sizes_are_told_is_refused(first, step, count):
    """Of a few KB, and a few operations more, such a file takes gigabytes before a limit of its run is looked at."""
    chain = " ".join(f"c{i + 1} = {step.format(i)}" for i in range(count))
    initial = f", int64[2] pair = {{1, 2}}, int64[1000] thousand = {{{', '.join(map(str, range(1, 1001)))}}}"
    said = refused(f"logits = Identity (few) {first} {chain}", initial)
    assert "more than 200,000 numbers may come together in its shapes" in said


def test_what_does_not_fit_together_is_said():
    def type_of_one(graph):
        next(tensor for tensor in graph.initializer if tensor.name == "one").data_type = 9999

    assert "an output 'logits' that nothing makes" in refused("")
    assert "an operation Clip on 'other', which nothing before it makes" in refused("logits = Clip (few, other)")
    assert "of an unknown type" in refused("logits = Identity (few)", change=type_of_one)
    assert "an operation Reshape on 1 tensors" in refused("logits = Reshape (few)")
    large = f", int64[20] large = {{{', '.join([str(10**18)] * 20)}}}"
    assert "MB beside its weights" in refused("logits = Identity (few) zeros = ConstantOfShape (large)", large)
    assert "how large 'text' gets is not known" in refused("logits = Identity (few) text = Cast <to = 8> (few)")


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
