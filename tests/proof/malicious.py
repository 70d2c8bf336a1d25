"""`make proof-malicious`: files made to do harm, each opened by the command that opens such a file.

python malicious.py [WORD ...]: all cases, or those whose names have one of the words in them. Each runs in a folder
of its own, beside which there is bait. It fails if the command ends otherwise than with one clear line and exit code 2
(or, where a file is sound and only its names are odd, with a harmless answer), changes anything, runs code of the file,
takes more than 1 GB or 60 s. A line a case; exit code 1 if one fails.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import torch
from onnx import TensorProto, helper, numpy_helper

from atnet.data.preprocess import Preprocess
from atnet.data.sources import write_digits
from atnet.exported.graph import write_onnx
from atnet.exported.preprocessing import with_preprocessing
from atnet.models.load import create_classifier, to_safetensors
from atnet.weights.info import METADATA, WeightsInfo, note_hashes

MEGABYTES, SECONDS = 1000, 60
SIZE = 32
HARM = "\x1b]0;harm\x07\x1b[31m<img src=x onerror=alert(1)>../../etc\u202e"
Case = Callable[[Path], list[str]]
CASES: dict[str, tuple[Case, str]] = {}


def case(name: str, message: str) -> Callable[[Case], Case]:
    """Registers a function that puts files into a folder and gives the command.

    message: words of the error; of the answer, if it begins with "answer: ".
    """

    def register(function: Case) -> Case:
        CASES[name] = (function, message)
        return function

    return register


class Payload:
    """What a pickle runs when it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch RAN ../RAN",)


INFO = WeightsInfo(
    model="atnet_xxxs",
    classes=tuple("0123456789"),
    class_names=tuple("0123456789"),
    preprocess=Preprocess(size=SIZE, crop_pct=1.0, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3),
    epoch=1,
    moving_average=False,
    facts={},
)
PREDICT = ["predict", "image.png", "--weights"]
EVAL = ["eval", "--data", "data", "--weights"]
TRAIN = ["train", "recipe.yaml", "--data", "data", "--epochs", "1", "--check"]


# Weights: safetensors, and what is called so.


def header(length: int, content: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + content + rest


def described(info: dict[str, Any] | str, tensors: dict[str, Any] | None = None, rest: bytes = b"") -> bytes:
    """A safetensors file of these metadata and tensors, each (shape, begin, end)."""
    head: dict[str, Any] = {"__metadata__": {METADATA: info if isinstance(info, str) else json.dumps(info)}}
    for name, (shape, begin, end) in (tensors or {}).items():
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(head).encode()
    return header(len(text), text, rest)


def told(**changes: Any) -> dict[str, Any]:
    """The metadata of a sound file, changed."""
    values: dict[str, Any] = json.loads(INFO.to_metadata()[METADATA])
    for name, value in changes.items():
        where = values["preprocess"] if name in values["preprocess"] else values
        where[name] = value
    return values


def weights(name: str, content: Callable[[], bytes], message: str, command: list[str] = EVAL) -> None:
    def make(folder: Path) -> list[str]:
        (folder / "evil.safetensors").write_bytes(content())
        return [*command, "evil.safetensors"]

    CASES[f"safetensors: {name}"] = (make, message)


def sound_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return create_classifier("xxxs", classes=10, size=SIZE).state_dict()


def spoilt(spoil: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
    """A sound file, but for its classifier's weights."""
    state = sound_state()
    return to_safetensors(state | {"head.weight": spoil(state["head.weight"])}, INFO)


def zipped() -> bytes:
    with tempfile.TemporaryFile() as file:
        torch.save({"weights": Payload()}, file)
        file.seek(0)
        return file.read()


def overlapping() -> bytes:
    """All tensors of the network in the same bytes: a small file, a large network."""
    shapes = {name: list(tensor.shape) for name, tensor in sound_state().items()}
    most = 4 * max(int(np.prod(shape)) for shape in shapes.values())
    tensors = {name: (shape, 0, 4 * int(np.prod(shape))) for name, shape in shapes.items()}
    return described(told(), tensors, bytes(most))


DAMAGED = "not a safetensors file, or a damaged one"
UNKNOWN = "without AT-Net's metadata"
LARGE = {"w": ([1 << 20, 1 << 20], 0, 1 << 42)}
weights("a header of 2^63 bytes", lambda: header(1 << 63, b"{}"), DAMAGED)
weights("a header longer than the file", lambda: header(20_000_000, b"{}"), DAMAGED)
weights("nested 100,000 deep", lambda: header(200_008, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}  "), DAMAGED)
weights("offsets beyond the file", lambda: described(told(), LARGE, b"1234"), DAMAGED)
weights("overlapping offsets", overlapping, DAMAGED)
weights("a shape whose size overflows", lambda: described(told(), {"w": ([1 << 40, 1 << 40], 0, 4)}, b"1234"), DAMAGED)
weights("metadata nested 100,000 deep", lambda: described("[" * 100_000 + "]" * 100_000), UNKNOWN)
weights("metadata of other types", lambda: described(told(classes=7, epoch=[1])), UNKNOWN)
weights(
    "a million classes",
    lambda: described(told(classes=list(range(10**6)), class_names=list(range(10**6)))),
    UNKNOWN,
)
weights("a number of 100,000 digits", lambda: described('{"epoch": ' + "9" * 100_000 + "}"), UNKNOWN)
weights(
    "a network of 4,096 layers",
    lambda: described(told(model="atnet_xxxs+depths=4096,4096,4096")),
    "no whole number from 0 to 256",
)
weights(
    "the largest network that a name may ask for",
    lambda: described(
        told(
            model="atnet_xxxs+depths=256,256,256+attention_depths=0,256+decision_heads=256+registers=256"
            "+dims=4096,4096,4092"
        )
    ),
    "not weights of",
)
weights("a network with a path for a name", lambda: described(told(model="../../evil")), "no model is called")
weights("a network from the net", lambda: described(told(model="hf-hub:evil/evil")), "no model is called")
weights(
    "images of 40,960 pixels",
    lambda: described(told(size=2048, crop_pct=0.05)),
    UNKNOWN,
    PREDICT,
)
weights("a name of 900,000 characters", lambda: described(told(model="atnet_xxxs" + "+kernel=5" * 100_000)), UNKNOWN)
weights(
    "a class called with nine million letters",
    lambda: described(told(class_names=["x" * 9_000_000, *"123456789"])),
    UNKNOWN,
)
weights("half a letter", lambda: described(told(class_names=["\ud800", *"123456789"])), UNKNOWN)
weights("numbers that are none", lambda: spoilt(lambda tensor: tensor.fill_(float("nan"))), "not finite")
weights("whole numbers", lambda: spoilt(lambda tensor: tensor.short()), "numbers of type I16")
weights("numbers of 64 bits", lambda: spoilt(lambda tensor: tensor.double()), "numbers of type F64")
weights("numbers that get too large", lambda: spoilt(lambda tensor: tensor.fill_(1e38)), "not finite", PREDICT)
weights("images of no size", lambda: described(told(size=float("nan"))), UNKNOWN)
weights("torch's own format, with code", zipped, DAMAGED)
weights(
    "a pickle, with code",
    lambda: pickle.dumps(Payload()),
    DAMAGED,
    ["train", "--data", "data", "--epochs", "1", "--check", "--weights"],
)
weights(
    "class names that a terminal obeys",
    lambda: to_safetensors(
        sound_state(),
        WeightsInfo.from_metadata(
            {METADATA: json.dumps(told(class_names=[f"{HARM}{i}" for i in range(10)]))}, Path("x")
        ),
    ),
    "answer: harm",
    PREDICT,
)


@case("safetensors: a pipe that no one writes to", "no such run, folder or weights file")
def pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "evil.safetensors")
    return [*EVAL, "evil.safetensors"]


@case("safetensors: a run's, one bit of which is another", "damaged or changed")
def flipped(folder: Path) -> list[str]:
    content = to_safetensors(sound_state(), INFO)
    (folder / "run").mkdir()
    note_hashes(folder / "run", {"last.safetensors": content})
    (folder / "run" / "last.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return [*EVAL, "run"]


@case("a checkpoint with code", "every checkpoint in it is damaged")
def checkpoint(folder: Path) -> list[str]:
    content = zipped()
    (folder / "run" / "checkpoints").mkdir(parents=True)
    digest = hashlib.sha256(content).hexdigest()[:16]
    (folder / "run" / "checkpoints" / f"step-0000000001-epoch-000001-{digest}.pt").write_bytes(content)
    (folder / "run" / "config.yaml").write_text("data: data\nepochs: 2\n")
    return ["train", "--resume", "run"]


@case("a teacher with code", "would run code that it brings")
def teacher(folder: Path) -> list[str]:
    (folder / "teacher").mkdir()
    (folder / "teacher" / "config.json").write_text('{"architecture": "resnet10t", "num_classes": 10}')
    (folder / "teacher" / "pytorch_model.bin").write_bytes(zipped())
    (folder / "recipe.yaml").write_text("teacher: local-dir:teacher\n")
    return TRAIN


# Exported networks.


def network(name: str, spoil: Callable[[onnx.ModelProto, Path], None], message: str) -> None:
    """A sound exported network, spoilt."""

    def make(folder: Path) -> list[str]:
        model = onnx.load(SOUND)
        spoil(model, folder)
        (folder / "evil.onnx").write_bytes(model.SerializeToString())
        return [*PREDICT, "evil.onnx"]

    CASES[f"ONNX: {name}"] = (make, message)


def graph(name: str, body: str, message: str, opset: int = 20, initial: str = "") -> None:
    """A network of a few operations, from `image` to `logits`, in ONNX's own notation."""

    def spoil(model: onnx.ModelProto, folder: Path) -> None:
        made = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "evil" : 1]>\n'
            f"evil (float[batch, 3, {SIZE}, {SIZE}] image) => (float[batch, 10] logits) <{initial}> {{ {body} }}"
        )
        made.metadata_props.extend(model.metadata_props)
        model.CopyFrom(made)

    network(name, spoil, message)


ANSWER = "flat = Flatten (image) few = Slice (flat, zero, ten, one)"
TEN = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] ten = {10}"
NOT_RUN = "it is not run"


def outside(path: str) -> Callable[[onnx.ModelProto, Path], None]:
    def spoil(model: onnx.ModelProto, folder: Path) -> None:
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=path)

    return spoil


def tell(model: onnx.ModelProto, **changes: Any) -> None:
    [entry] = [one for one in model.metadata_props if one.key == METADATA]
    entry.value = json.dumps(told(**changes))


def claim(model: onnx.ModelProto, folder: Path) -> None:
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.dims[:] = [1 << 20, 1 << 20, 1, 1]


def take_images(model: onnx.ModelProto, folder: Path) -> None:
    model.CopyFrom(with_preprocessing(model, INFO.preprocess))
    [side] = [tensor for tensor in model.graph.initializer if tensor.name.endswith("side")]
    side.CopyFrom(numpy_helper.from_array(np.array(1_000_000), side.name))


def many(model: onnx.ModelProto, folder: Path) -> None:
    name = model.graph.input[0].name
    nodes = [helper.make_node("Identity", [f"n{i}" if i else name], [f"n{i + 1}"]) for i in range(300_000)]
    model.graph.node.extend(nodes)


def recursive(model: onnx.ModelProto, folder: Path) -> None:
    call = helper.make_node("F", ["x"], ["y"], domain="evil")
    model.functions.append(helper.make_function("evil", "F", ["x"], ["y"], [call], [helper.make_opsetid("", 20)]))
    model.opset_import.append(helper.make_opsetid("evil", 1))


def twice(model: onnx.ModelProto, folder: Path) -> None:
    tensor = model.graph.initializer.add()
    tensor.CopyFrom(model.graph.initializer[0])


network("numbers in /etc/passwd", outside("/etc/passwd"), NOT_RUN)
network("numbers in ../bait", outside("../bait"), NOT_RUN)
network("a tensor that claims 4 TB", claim, "evil.onnx: ")
network("a tensor twice", twice, NOT_RUN)
network("a function that calls itself", recursive, NOT_RUN)
network("300,000 operations", many, NOT_RUN)
network("an image made a million pixels wide", take_images, "its input is not what its metadata say")
network("metadata of other types", lambda model, _: tell(model, classes={"a": 1}, preprocess=[]), UNKNOWN)
network(
    "a million classes",
    lambda model, _: tell(model, classes=list(map(str, range(10**6))), class_names=list(map(str, range(10**6)))),
    UNKNOWN,
)
network("images of 2,048 pixels", lambda model, _: tell(model, size=2048), "its input is not what its metadata say")
network(
    "class names that a terminal obeys",
    lambda model, _: tell(model, class_names=[f"{HARM}{i}" for i in range(10)]),
    "answer: harm",
)
graph("an operation of its own", f"{ANSWER} logits = evil.Run (few)", NOT_RUN, initial=TEN)
graph("an operation of Microsoft's", f"{ANSWER} logits = com.microsoft.Gelu (few)", NOT_RUN, initial=TEN)
graph("another opset", f"{ANSWER} logits = Identity (few)", NOT_RUN, opset=9, initial=TEN)
graph(
    "a loop without end",
    f"""{ANSWER} logits = Loop <body = b (int64 i, bool go, float[N, 10] x)
    => (bool on, float[N, 10] y) {{ on = Identity (go) y = Add (x, x) }}> (most, true, few)""",
    NOT_RUN,
    initial=f"{TEN}, int64 most = {{9223372036854775807}}, bool true = {{1}}",
)
graph(
    "zeros of 4 TB",
    f"{ANSWER} zeros = ConstantOfShape (huge) sum = ReduceSum <keepdims = 0> (zeros) logits = Add (few, sum)",
    "MB beside its weights",
    initial=f"{TEN}, int64[2] huge = {{1000000, 1000000}}",
)
graph(
    "a few numbers repeated to 4 TB",
    f"{ANSWER} wide = Expand (few, huge) logits = ReduceSum (wide, zero)",
    "evil.onnx: ",
    initial=f"{TEN}, int64[3] huge = {{100000000000, 1, 10}}",
)
graph(
    "numbers reshaped to more than there are",
    f"{ANSWER} odd = Reshape (few, huge) logits = ReduceSum (odd, zero)",
    "evil.onnx: ",
    initial=f"{TEN}, int64[3] huge = {{100000000000, 1, 10}}",
)
graph(
    "doubled forty times",
    "n0 = Flatten (image)"
    + "".join(f" n{i + 1} = Concat <axis = 1> (n{i}, n{i})" for i in range(40))
    + " logits = Slice (n40, zero, ten, one)",
    "MB beside its weights",
    initial=TEN,
)
graph(
    "each number with each",
    "flat = Flatten (image) line = Reshape (flat, column) all = Mul (flat, line) "
    "more = Reshape (all, column) row = Transpose (more) most = Mul (more, row) few = Slice (most, zero, ten, one) "
    "logits = Slice (few, zero, one, zero)",
    "MB beside its weights",
    initial=f"{TEN}, int64[2] column = {{-1, 1}}",
)
graph(
    "as large as a pixel says",
    f"{ANSWER} first = ReduceMax <keepdims = 0> (few) large = Mul (first, big) "
    "end = Cast <to = 7> (large) count = Range (start, end, step) sum = ReduceSum <keepdims = 0> (count) "
    "whole = Cast <to = 1> (sum) logits = Add (few, whole)",
    "is not known before it runs",
    initial=f"{TEN}, float big = {{1e12}}, int64 start = {{0}}, int64 step = {{1}}",
)
graph(
    "products for years",
    "flat = Flatten (image) line = Reshape (flat, column) row = Transpose (line) "
    "n0 = MatMul (line, row)"
    + "".join(f" n{i + 1} = MatMul (n{i}, n{i})" for i in range(2000))
    + " few = Slice (n2000, zero, ten, one) logits = Slice (few, zero, one, zero)",
    "billion operations",
    initial=f"{TEN}, int64[2] column = {{-1, 1}}",
)
graph(
    "the largest of all, for each",
    'big = Resize <mode = "nearest"> (image, , , wide) n0 = MaxPool <kernel_shape = [2047, 2047], '
    "pads = [1023, 1023, 1023, 1023]> (big) flat = Flatten (n0) logits = Slice (flat, zero, ten, one)",
    "billion operations",
    initial=f"{TEN}, int64[4] wide = {{1, 3, 2048, 2048}}",
)


SURVIVE = "did not survive"
WHOLE = "makes whole numbers of what the image says"
NOTHING = "zero_float = Constant <value_float = 0.0> () "


def crash(name: str, body: str, message: str, initial: str = "") -> None:
    """A graph whose `odd` ends a process, and is needed for the answer."""
    graph(
        name,
        f"{ANSWER} {body} odd_float = Cast <to = 1> (odd) most = ReduceMax <keepdims = 0> (odd_float) "
        f"{NOTHING} nothing = Mul (most, zero_float) logits = Add (few, nothing)",
        message,
        initial=f"{TEN}{initial}",
    )


LEAST = ", int64[1] least = {-9223372036854775808}, int64[1] minus = {-1}"
PIXEL = f"first = ReduceMax <keepdims = 0> (few) {NOTHING.replace('zero_float', 'none')} nil = Mul (first, none) "
crash("the least number divided by -1", "odd = Div (least, minus)", SURVIVE, LEAST)
crash("divided by zero", "odd = Div (ten, zero)", "evil.onnx: ")
crash("divided by the batch less one", "n = Shape <end = 1> (image) m = Sub (n, one) odd = Div (ten, m)", "evil.onnx: ")
crash("divided by a pixel", f"{PIXEL} whole = Cast <to = 7> (nil) odd = Div (ten, whole)", WHOLE)
crash("a pixel for an index", f"{PIXEL} whole = Cast <to = 7> (nil) odd = Gather (ten, whole)", WHOLE)
crash("the likeliest class's rest", "best = ArgMax <axis = 1> (few) odd = Mod (ten, best)", WHOLE)
crash("bytes of pixels, divided", f"{PIXEL} byte = QuantizeLinear (nil, scale) odd = Div (byte, byte)", WHOLE,
      ", float scale = {1}")  # fmt: skip
crash(
    "the norm of nothing",
    "none = Slice (image, zero, zero, two) norm = InstanceNormalization (none, ones, ones) "
    "odd = Concat <axis = 2> (norm, image)",
    SURVIVE,
    ", int64[1] two = {2}, float[3] ones = {1, 1, 1}",
)
crash("a convolution of no groups", "odd = Conv <group = 0> (image, kernel)", "evil.onnx: ",
      f", float[1, 3, 1, 1] kernel = {{{', '.join('1' * 3)}}}")  # fmt: skip
crash("an index beyond all", "odd = Gather (ten, far)", "evil.onnx: ", ", int64[1] far = {1000000000}")
crash("a mirror larger than what it shows", 'odd = Pad <mode = "reflect"> (image, far)', "evil.onnx: ",
      ", int64[8] far = {0, 0, 500, 500, 0, 0, 500, 500}")  # fmt: skip
graph(
    "answers that are no numbers",
    f"{ANSWER} less = Sub (few, few) logits = Div (less, less)",
    "not finite",
    initial=TEN,
)
network(
    "facts that are no numbers",
    lambda model, _: tell(model, facts={"val_top1": float("nan")}),
    "answer: ",
)


@case("ONNX: a pickle, with code", "not an ONNX file, or a damaged one")
def pickled(folder: Path) -> list[str]:
    (folder / "evil.onnx").write_bytes(zipped())
    return [*PREDICT, "evil.onnx"]


@case("ONNX: 3 GB of nothing", "bytes are more than the")
def sparse(folder: Path) -> list[str]:
    with (folder / "evil.onnx").open("wb") as file:
        file.truncate(3_000_000_000)
    return [*PREDICT, "evil.onnx"]


# Recipes.


def recipe(name: str, text: str | bytes, message: str) -> None:
    def make(folder: Path) -> list[str]:
        (folder / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return TRAIN

    CASES[f"recipe: {name}"] = (make, message)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(40))
NO_YAML, TOO_LONG = "recipe.yaml: not a YAML file", "recipe.yaml: {} bytes are more than the 200,000 allowed"
recipe("aliases of aliases", BOMB, NO_YAML)
recipe("nested 100,000 deep", "a: " + "[" * 100_000, NO_YAML)
recipe("mappings nested 100,000 deep", "a: " + "{b: " * 100_000, TOO_LONG.format("400,003"))
recipe("mappings nested 40,000 deep", "a: " + "{b: " * 40_000, NO_YAML)
recipe("code to call", "epochs: !!python/object/apply:os.system ['touch RAN ../RAN']\n", NO_YAML)
recipe("code to make", "epochs: !!python/object/new:os.system ['touch RAN ../RAN']\n", NO_YAML)
recipe("a number of 100,000 digits", f"seed: {'9' * 100_000}\n", "is not a whole number")
recipe("a day that is none", "seed: 2001-99-99\n", "'2001-99-99' is not a whole number")
recipe("a key that is a list", "? [a, b]\n: 1\n", NO_YAML)
recipe("zeros and control characters", b"epochs: 1\0\x1b[31m\n", NO_YAML)
recipe("no names", "1: 2\n3: 4\n", "is no name; one of digits")
recipe("pages of it", "#" * 3_000_000, TOO_LONG.format("3,000,000"))
recipe("a run elsewhere", "out: ../elsewhere\n", "is not for a recipe to say")
recipe("no check", "check: false\n", "is not for a recipe to say")
recipe("weights elsewhere", "weights: /etc/passwd\n", DAMAGED)
recipe("a list of classes that never ends", "data: {classes: /dev/zero}\n", "/dev/zero: a device or socket, not a file")


def classes(name: str, content: bytes, message: str) -> None:
    def make(folder: Path) -> list[str]:
        (folder / "data" / "classes.txt").write_bytes(content)
        (folder / "recipe.yaml").write_text("epochs: 1\n")
        return TRAIN

    CASES[f"class list: {name}"] = (make, message)


classes("names that a terminal obeys", f"{HARM}\nother\n".encode(), "known classes")
classes("paths for names", b"../../escaped\n/etc/passwd\n", "known classes")
classes("two million names", b"".join(b"%d\n" % i for i in range(2_000_000)), "more than the 10,000,000 allowed")
classes("a pickle", zipped(), "not UTF-8")


# Running them.


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, what it said, seconds, and its most memory."""

    code: int
    out: str
    err: str
    seconds: float
    megabytes: float


def run(words: list[str], folder: Path, home: Path) -> Ended:
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    with (home / "out").open("w+") as out, (home / "err").open("w+") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "atnet", *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip
        most = 0.0
        while process.poll() is None:
            most = max(most, held(process.pid))
            time.sleep(0.01)
            if time.monotonic() - began > 3 * SECONDS:
                process.kill()
        out.seek(0)
        err.seek(0)
        return Ended(process.returncode, out.read(), err.read(), time.monotonic() - began, most)


def held(process: int) -> float:
    """The most memory that a process of Linux has had since it became what it runs, megabytes; 0 if it has ended.

    Not `ru_maxrss`, in which there is the memory of the process that started it.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)
    return int(found[1]) / 1000 if found else 0.0


def snapshot(folder: Path) -> dict[str, str]:
    """What lies below a folder, with hashes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.stat().st_size < 1e9
        else ""
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    } | {str(path.relative_to(folder)): "" for path in sorted(folder.rglob("*")) if not path.is_file()}


def wrong(ended: Ended, message: str, changed: set[str]) -> str:
    """What is wrong with how a command ended; "" if nothing."""
    expected, words = (0, message.removeprefix("answer: ")) if message.startswith("answer: ") else (2, message)
    said = ended.out if expected == 0 else (ended.err.strip().splitlines() or [""])[-1]
    if ended.code != expected:
        return f"exit code {ended.code}: {(ended.err.strip().splitlines() or ['nothing said'])[-1]}"
    if words not in said:
        return f"said: {said}"
    if expected == 2 and not said.startswith("atnet: "):
        return f"said without its name: {said}"
    if "Traceback" in ended.err or any(not one.isprintable() and one != "\n" for one in ended.out + ended.err):
        return "a traceback, or what a terminal obeys"
    if changed:
        return f"files were changed: {changed}"
    if ended.megabytes > MEGABYTES or ended.seconds > SECONDS:
        return "too much memory or time"
    return ""


def main(words: list[str]) -> None:
    global SOUND
    failed = 0
    most = [0.0, 0.0]
    chosen = {name: one for name, one in CASES.items() if not words or any(word in name for word in words)}
    with tempfile.TemporaryDirectory() as place:
        SOUND = Path(place, "sound.onnx")
        torch.manual_seed(0)
        write_onnx(create_classifier("xxxs", classes=10, size=SIZE), (3, SIZE, SIZE), SOUND, INFO)
        write_digits(Path(place, "digits"))
        for number, (name, (make, message)) in enumerate(chosen.items()):
            home = Path(place, f"home-{number}")
            (home / "tmp").mkdir(parents=True)
            arena = Path(place, f"case-{number}")
            folder = arena / "work"
            folder.mkdir(parents=True)
            (arena / "bait").write_bytes(bytes(10_000_000))
            for part in ("train", "val"):
                for image in sorted(Path(place, "digits", part).rglob("*.png"))[::40]:
                    copied = folder / "data" / part / image.parent.name / image.name
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(image, copied)
            shutil.copy(image, folder / "image.png")
            command = make(folder)
            before = snapshot(arena)
            ended = run(command, folder, home)
            after = snapshot(arena)
            changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
            changed |= {str(path) for path in (home / "tmp").iterdir()}
            changed.discard("work/run/checkpoints/.lock")  # by which a process holds the run that it reads
            fault = wrong(ended, message, changed)
            failed += bool(fault)
            most = [max(most[0], ended.megabytes), max(most[1], ended.seconds)]
            lines = (ended.err if ended.code else ended.out).strip().splitlines() or [""]
            print(
                f"{'FAILED' if fault else 'ok'}  {name}: {fault or lines[-1 if ended.code else 1]}  "
                f"({ended.megabytes:.0f} MB, {ended.seconds:.1f} s)", flush=True,
            )  # fmt: skip
            shutil.rmtree(arena)
            shutil.rmtree(home)
    print(f"{len(chosen)} cases, {failed} failed; at most {most[0]:.0f} MB and {most[1]:.0f} s")
    sys.exit(1 if failed else 0)


SOUND = Path()

if __name__ == "__main__":
    main(sys.argv[1:])
