"""Files made to do harm, opened in this process; `make proof-malicious` opens them, and others, by the commands."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "proof"))
import malicious

from atnet.errors import DataError, WeightsError
from atnet.exported.graph import write_onnx
from atnet.exported.onnx import MAX_BYTES, OnnxNetwork, require_finite
from atnet.exported.preprocessing import with_preprocessing
from atnet.exported.untrusted import MAX_MEGABYTES, require_harmless
from atnet.models.load import create_classifier

HARMFUL = [name for name, (_, says) in malicious.CASES.items() if name.startswith("ONNX") and "answer" not in says]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "sound.onnx"
    torch.manual_seed(0)
    size = malicious.SIZE
    write_onnx(create_classifier("xxxs", classes=10, size=size), (3, size, size), path, malicious.INFO)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_network_is_refused(name, sound, tmp_path, monkeypatch):
    monkeypatch.setattr(malicious, "SOUND", sound)
    make, says = malicious.CASES[name]
    make(tmp_path)
    path = tmp_path / "evil.onnx"
    with pytest.raises(WeightsError, match=r"evil\.onnx: ") as refused:
        tried(path, process=says in (malicious.SURVIVE, "not finite") or path.stat().st_size > MAX_BYTES)
    assert says in str(refused.value)


def tried(path: Path, process: bool) -> None:
    """Opens a file as a command does, and asks; what is told before it runs, without a process if it need not be."""
    if not process:
        require_harmless(path.read_bytes(), path)
    OnnxNetwork(path).answers(np.ones((1, 3, malicious.SIZE, malicious.SIZE), np.float32))


def test_a_sound_network_is_tried_once(sound, tmp_path, monkeypatch):
    """With each number of images that a batch may have; the next time its hash is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = OnnxNetwork(sound, batch=3)
    assert network(np.zeros((3, 3, malicious.SIZE, malicious.SIZE), np.float32)).shape == (3, 10)
    [note] = (tmp_path / "cache" / "atnet" / "onnx").iterdir()
    assert note.stat().st_size == 0

    def never(*args, **options):
        raise AssertionError("a second process")

    monkeypatch.setattr(subprocess, "run", never)
    OnnxNetwork(sound, batch=3)
    with pytest.raises(AssertionError, match="a second process"):
        OnnxNetwork(sound, batch=2)


def test_a_network_that_ends_the_process_at_one_number_of_images_is_not_served(sound, tmp_path, monkeypatch):
    """The least number divided by -1 for two images, and by others for one and three."""
    monkeypatch.setattr(malicious, "SOUND", sound)
    malicious.crash(
        "by the batch less three",
        "n = Shape <end = 1> (image) m = Sub (n, three) odd = Div (least, m)",
        malicious.SURVIVE,
        f"{malicious.LEAST}, int64[1] three = {{3}}",
    )
    make, _ = malicious.CASES.pop("ONNX: by the batch less three")
    make(tmp_path)
    assert OnnxNetwork(tmp_path / "evil.onnx").info == malicious.INFO
    with pytest.raises(WeightsError, match=r"evil\.onnx: a process that tried it did not survive"):
        OnnxNetwork(tmp_path / "evil.onnx", batch=4)


def test_a_network_that_takes_for_ever_is_ended(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("atnet.exported.trial.SECONDS", 0.01)
    with pytest.raises(WeightsError, match=r"sound\.onnx: takes more than 0\.1 s"):
        OnnxNetwork(sound)


def test_answers_that_are_no_numbers_are_refused_and_nothing_else_stops(sound, tmp_path, monkeypatch):
    monkeypatch.setattr(malicious, "SOUND", sound)
    make, _ = malicious.CASES["ONNX: answers that are no numbers"]
    make(tmp_path)
    network = OnnxNetwork(tmp_path / "evil.onnx")
    with pytest.raises(WeightsError, match=r"evil\.onnx: its answers are not finite"):
        network.ask(Image.new("RGB", (40, 50)))
    found = network(np.ones((1, 3, malicious.SIZE, malicious.SIZE), np.float32))
    with pytest.raises(DataError, match="not finite"):
        require_finite(found)
    with pytest.raises(DataError, match=r"evil\.onnx: does not run on "):
        network(np.ones((1, 3, 7, 7), np.float32))


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "step", ["Concat <axis = 0> (of_image, many)", "Slice (of_image, one, many)", "Add (of_image, many)"]
)
def test_numbers_that_a_file_claims_without_having_them_are_counted(step):
    """ONNX holds a place for each while it tells the sizes."""
    size = malicious.SIZE
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        graph (float[1, 3, {size}, {size}] image) => (float[1, 10] logits)
        <int64[1] one = {{1}}, int64[1] many = {{1}}> {{
            of_image = Shape (image)
            made = {step}
            logits = Reshape (image, made)
        }}"""
    )
    model.graph.initializer[1].dims[0] = 2**31 - 1
    onnx.helper.set_model_props(model, malicious.INFO.to_metadata())
    with pytest.raises(WeightsError, match="numbers may come together"):
        require_harmless(model.SerializeToString(), Path("many.onnx"))


def test_preprocessing_whose_steps_are_used_further_on_is_none(sound):
    model = with_preprocessing(onnx.load(sound), malicious.INFO.preprocess)
    last = model.graph.node[-1]
    last.input[0] = "preprocess.enlarged"
    with pytest.raises(WeightsError, match="not what its metadata say"):
        require_harmless(model.SerializeToString(), Path("odd.onnx"))
