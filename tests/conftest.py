"""Real images for the tests: handwritten digits as files, and Imagenette's photos where they are."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atnet
from atnet.data.sources import open_parts
from atnet.errors import Stopped
from atnet.training import loop
from hub_stand_in import StandIn, stand_in


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in a folder of its own, where runs/last appears."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Python's own answer to Ctrl-C, also where the shell that started the tests in its background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photos() -> Path:
    """Imagenette: train/ and val/ with ten class folders of photos."""
    where = os.environ.get("ATNET_IMAGENETTE")
    if not where:
        pytest.skip("no photos: set ATNET_IMAGENETTE to a folder with Imagenette's train/ and val/")
    return Path(where)


@pytest.fixture(scope="session")
def _digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    for part, images in zip(("train", "val"), open_parts("digits", 0.2), strict=True):
        for i in range(0, len(images), 20):
            name = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"][images.labels[i]]
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            images.read(i).save(folder / f"{images.ids[i]}.png")
    return root


@pytest.fixture
def digits(_digits: Path, tmp_path: Path) -> Path:
    """A folder of its own with train/ (200 digits) and val/ (50), a class folder each, that a test may spoil."""
    return Path(shutil.copytree(_digits, tmp_path / "digits"))


@pytest.fixture
def few_photos(photos: Path, tmp_path: Path) -> Path:
    """Three classes of photos: 24 to train on and 10 to validate on each."""
    for part, count in (("train", 24), ("val", 10)):
        for name in ("n01440764", "n03394916", "n03445777"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for image in sorted((photos / part / name).iterdir())[:count]:
                shutil.copy(image, folder)
    return tmp_path / "photos"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """An empty hub that this process asks, as alice, with a cache of its own, large files by LFS."""
    import huggingface_hub

    with stand_in() as server:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        yield server


QUICK = {
    "model": "xxxs+depths=1,1,1",  # each part of XXXS, once
    "epochs": 1,
    "batch": 20,
    "data": {"size": 32, "crop_pct": 1.0, "workers": 0},
    "augment": {"flip": 0.0, "crop_scale": 0.6},
}


@pytest.fixture(scope="session")
def finished_run(_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs, to be read and copied, never changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = {**QUICK["data"], "source": str(_digits)}
        run = atnet.train(**QUICK | {"epochs": 3, "data": data}, out=folder / "run").folder
        atnet.render_run(run)
        return run


@pytest.fixture
def five_digits(digits: Path) -> Path:
    """Five of the ten digits, 20 images of each to train on."""
    for part in ("train", "val"):
        for name in ("zero", "one", "two", "three", "four"):
            shutil.rmtree(digits / part / name)
    return digits


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("ATNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def train_until(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trains with these options until Ctrl-C in a step of the epoch, the first being 1."""

    def train(epoch: int, **options: Any) -> None:
        take, steps = loop.train_step, itertools.count()

        def stopping(state: Any, *given: Any) -> Any:
            if next(steps) == state.steps_per_epoch * (epoch - 1) + 3:
                signal.raise_signal(signal.SIGINT)
            return take(state, *given)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", stopping)
            with pytest.raises(Stopped):
                atnet.train(**options)

    return train


@pytest.fixture
def quick(digits: Path) -> dict:
    """Options of a training that takes seconds."""
    return {**QUICK, "data": {**QUICK["data"], "source": str(digits)}}


@pytest.fixture
def quick_star(quick: dict) -> dict:
    """The same of a network with five decision heads."""
    return quick | {"model": quick["model"].replace("xxxs", "xxxs_star")}
