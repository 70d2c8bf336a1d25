"""Every command and Python block of the README, and of what it links to in docs/, is run, in order, in two folders.

Each of two groups of pages has a folder, so that two processes can run them at once.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
TUTORIAL = "docs/tutorial.md"
FIRST = ("README.md", "docs/guide.md", "docs/data.md", "docs/export.md", "docs/serve.md", TUTORIAL)
"""The server's port is used here alone."""

SECOND = (
    *("docs/web.md", "docs/publish.md", "docs/weights.md", "docs/explain.md", "docs/architecture.md"),
    "docs/howto.md",
)


def blocks_of(pages: tuple[str, ...]) -> list[Any]:
    """Page, language and code of each block."""
    found = [
        (page, *block)
        for page in pages
        for block in re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    ]
    return [pytest.param(*block, id=f"{block[0]}-{number}") for number, block in enumerate(found)]


@pytest.fixture(scope="class")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where: Path = tmp_path_factory.mktemp("reader")
    for name in ("recipes", "studies"):
        (where / name).symlink_to(ROOT / name, target_is_directory=True)
    return where


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(words, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)


def lay_photos(photos: Path, where: Path) -> None:
    """What the tutorial's reader has: five classes of 70 photos, and some new ones."""
    for code, name in {
        "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03445777": "golf ball",
        "n03888257": "parachute",
    }.items():  # fmt: skip
        (where / "my_photos" / name).mkdir(parents=True)
        for image in sorted((photos / "train" / code).iterdir())[:70]:
            shutil.copy(image, where / "my_photos" / name)
        (where / "new_photos").mkdir(exist_ok=True)
        shutil.copy(sorted((photos / "val" / code).iterdir())[0], where / "new_photos")


def check(page: str, language: str, code: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """Runs a block; one that is for other places than this is known."""
    if page == TUTORIAL and not (folder / "my_photos").exists():
        lay_photos(request.getfixturevalue("photos"), folder)
    if language == "bash" and code.startswith("make"):
        targets = re.findall(r"^make (\w+)", code, re.M)
        ci = re.search(r"^ci: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert ci is not None
        made = {*ci[1].split(), "test"}  # of which all-tests is more
        assert set(targets) <= made, "CI runs the README's make targets, one by one"
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
            "--to user/name",
            "hf-hub:user/name",
            "--weights checkpoint.pth",
            "hf download timm/",
            "python -m atnet.timm train.py",
            "atnet replay runs/last 1234",
            "--weights timm:tf_efficientnet_lite0",
            "--teacher timm:tf_efficientnet_lite0",
            "python recipes/general_data.py ",
            "make dev ",
            "tensorboard --logdir ",  # a server that does not end; tests/run/test_loggers.py reads what it shows
        )
        assert any(words in code for words in known)
        return
    words = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    done = run(words, folder)
    assert done.returncode == 0, done.stderr


class TestReadme:
    @pytest.mark.parametrize(("page", "language", "code"), blocks_of(FIRST))
    def test_a_block_does_what_it_says(self, page, language, code, folder, request):
        check(page, language, code, folder, request)


@pytest.fixture(scope="class")
def first_training(folder: Path) -> None:
    """The guide's, which the other pages go on from."""
    code = next(block.values[2] for block in blocks_of(FIRST) if "--out runs/first" in block.values[2])
    assert run(["bash", "-euo", "pipefail", "-c", code], folder).returncode == 0


@pytest.mark.usefixtures("first_training")
class TestOtherPages:
    @pytest.mark.parametrize(("page", "language", "code"), blocks_of(SECOND))
    def test_a_block_does_what_it_says(self, page, language, code, folder, request):
        check(page, language, code, folder, request)
