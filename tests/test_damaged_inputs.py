"""Commands on damaged runs, weights and data: they do what they can, or say why not in a line; never a traceback."""

import io
import json
import os
import random
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import atnet
from atnet.cli import main

TRIES = 240
ODD = [
    None,
    True,
    "",
    "x" * 3000,
    "\x1b[31m\u202e",
    "\0",
    -1,
    0,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
]
COMMANDS = {
    "compare run other --json": ["record.json", "config.yaml", "predictions.csv", "metrics.csv"],
    "report run": ["environment.yaml", "predictions.csv", "metrics.csv", "record.json"],
    "table --add run --results results --readme README.md --plot table.png": ["record.json", "README.md"],
    "predict photo.png --weights run --json": ["ema.safetensors", "sha256.json", "photo.png"],
    "predict photo.png --weights xxxs.imagenette --json": ["photo.png"],
    "eval --weights run --workers 0": ["config.yaml", "sha256.json"],
    "train recipe.yaml --check --data nowhere": ["recipe.yaml"],
    "train --resume run": ["config.yaml", "environment.yaml"],
    "study study.yaml --check": ["study.yaml", "recipe.yaml"],
    "plan recipe.yaml": ["recipe.yaml"],
    "pack list.csv packed": ["list.csv"],
    "pack list.json packed": ["list.json"],
    "replay run 3": ["config.yaml"],
}
"""Each with the files of which one is damaged: the run's own, or others."""


@pytest.fixture(scope="module")
def sound(_digits, tmp_path_factory):
    """A folder with a finished run of two, and what else the commands name."""
    place = tmp_path_factory.mktemp("sound")
    before = Path.cwd()
    os.chdir(place)
    try:
        data = {"source": str(_digits), "size": 32, "crop_pct": 1.0, "workers": 0}
        options = {
            "model": "xxxs+dims=16,32,32+heads=2+depths=1,1,1",
            "batch": 50,
        }
        atnet.train(**options, epochs=1, data=data, out="run")
    finally:
        os.chdir(before)
    shutil.rmtree(place / "runs", ignore_errors=True)
    shutil.copytree(place / "run", place / "other")
    shutil.copy(place / "run" / "config.yaml", place / "recipe.yaml")
    (place / "study.yaml").write_text("recipe: recipe.yaml\nseeds: [0]\nvariants: {one: {}, two: {drop_path: 0.1}}\n")
    (place / "README.md").write_text("<!-- table: begin, made by `make table` -->\n<!-- table: end -->\n")
    images = sorted(_digits.rglob("*.png"))
    shutil.copy(images[0], place / "photo.png")
    rows = [{"path": str(one), "label": one.parent.name} for one in images[::40]]
    (place / "list.json").write_text(json.dumps(rows))
    (place / "list.csv").write_text("path,label\n" + "".join(f"{row['path']},{row['label']}\n" for row in rows))
    return place


def damaged(rng, path):
    """The file's content with a few bytes, or a value of it, changed."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".json" and rng.random() < 0.7:
        values = json.loads(content)
        holder = values
        while True:
            key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if not (isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.5):
                break
            holder = holder[key]
        holder[key] = rng.choice(ODD)
        return json.dumps(values).encode()
    if path.suffix in (".yaml", ".csv") and rng.random() < 0.7:
        words = list(re.finditer(rb"(?<=[:, ])[^\s:,]+", content))
        word = rng.choice(words)
        odd = rng.choice(
            [b"-1", b"1e999", b".nan", b"nan", b"", b"[]", b"{a: 1}", b"9" * 400, b"\xff", b"\0", b"&a", b"*a", b"'"]
        )
        content[word.start() : word.end()] = odd
        return bytes(content)
    for _ in range(rng.choice((1, 2, 5))):
        at = int(rng.random() ** 3 * len(content))
        content[at : at + rng.choice((0, 1, 4))] = rng.randbytes(rng.choice((0, 1, 4)))
    return bytes(content[: rng.choice((len(content), len(content), at))])


def spoil(rng, path):
    """Damages a file, or puts another kind of file in its place."""
    content = damaged(rng, path)
    path.unlink()
    change = rng.randrange(20)
    if change == 0:
        os.mkfifo(path)
    elif change == 1:
        path.mkdir()
    elif change == 2:
        path.symlink_to("nowhere")
    elif change == 3:
        path.symlink_to(path.name)
    elif change > 4:  # else it is gone
        path.write_bytes(content)


def answer(words):
    """What a command ends with, and what it says."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(words)
        except SystemExit as ended:
            return ended.code, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def refuse(name):
    raise AssertionError(f"{name} in JSON")


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
@pytest.mark.parametrize("line", COMMANDS)
def test_a_damaged_input_is_no_traceback(line, sound, tmp_path, monkeypatch):
    count = TRIES // len(COMMANDS)
    if line.startswith(("report", "table", "train --resume", "replay")):
        count //= 4  # those that draw or build a network
    for number in range(count):
        rng = random.Random(f"{line} {number}")
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        words = line.split()
        needed = {*words, *COMMANDS[line], "recipe.yaml"}
        for one in sound.iterdir():
            if one.name in needed:
                shutil.copytree(one, one.name) if one.is_dir() else shutil.copy(one, one.name)
        target = Path(rng.choice(COMMANDS[line]))
        inside = Path("run") / target
        target = inside if inside.exists() else target
        if target.suffix == ".safetensors":
            Path("run/sha256.json").unlink()
        spoil(rng, target)
        code, out, err = answer(words)
        told = f"try {number} of {line}, {target}: exit code {code}, {err[-500:]}"
        assert code in (0, 2), told
        assert "Traceback" not in err, told
        assert code == 0 or re.search(r"^atnet: ", err, re.MULTILINE), told
        if code == 0 and "--json" in words:
            json.loads(out, parse_constant=refuse)
