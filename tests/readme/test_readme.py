"""Every command and Python block of the README, and of what it links to in docs/, is run, in order, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/data.md", "docs/explain.md", "docs/serve.md", "docs/web.md")
]
BLOCKS = [block for page in PAGES for block in re.findall(r"^```(\w+)\n(.*?)^```", page, re.M | re.S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("reader")
    for name in ("recipes", "studies"):
        (where / name).symlink_to(ROOT / name, target_is_directory=True)
    return where


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_does_what_it_says(number, folder):
    language, code = BLOCKS[number]
    if language == "bash" and code.startswith("make"):
        targets = re.findall(r"^make (\w+)", code, re.M)
        ci = re.search(r"^ci: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert ci is not None
        assert set(targets) <= set(ci[1].split()), "CI runs the README's make targets, one by one"
        return
    if language == "text":  # what a command says
        return
    if language == "sh":  # another package index, which CI does not reach, the reader's own photos, other machines
        known = (
            "download.pytorch.org",
            "atnet doctor my_photos ",
            "--host 0.0.0.0",
            "docker build ",
            "python -m http.server ",
        )
        assert any(words in code for words in known)
        return
    words = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(words, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_source_file_is_on_the_map():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files = [path for path in (ROOT / "src" / "atnet").rglob("*.py") if path.name not in {"__init__.py", "__main__.py"}]
    missing = [path.name for path in files if path.parent.name != "cli" and path.name not in text]
    assert missing == []
