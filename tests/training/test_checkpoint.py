import errno
import hashlib
import io
import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import atnet
from atnet.errors import AtnetError, ConfigError, TrainingError
from atnet.run.record import checkpoints, open_run
from atnet.training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from atnet.training.state import State


def state_of(step: int) -> dict:
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(step))
    return {"step": step, "epoch": 0, "networks": {"last": {"weight": numbers}}, "sums": {"loss": 0.5}}


@pytest.fixture
def run(tmp_path) -> Path:
    for step in (1, 20, 300):
        save_checkpoint(tmp_path, state_of(step), keep=2)
    return tmp_path


def test_the_newest_are_kept_and_come_back_as_they_were(run):
    assert [path.name[:15] for path in checkpoints(run)] == ["step-0000000300", "step-0000000020"]
    found = load_checkpoint(run)
    assert found["step"] == 300
    assert torch.equal(found["networks"]["last"]["weight"], state_of(300)["networks"]["last"]["weight"])


def test_every_flipped_bit_and_lost_end_is_noticed_and_the_one_before_is_taken(run, caplog):
    newest = checkpoints(run)[0]
    whole = newest.read_bytes()
    chosen = random.Random(0)
    for number in range(60):
        spoilt = bytearray(whole)
        place = chosen.randrange(len(whole))
        if number % 3 == 0:
            del spoilt[place:]
        elif number % 3 == 1:
            spoilt[place] ^= 1 << chosen.randrange(8)
        else:
            page = slice(place, place + 512)
            if not any(spoilt[page]):
                continue
            spoilt[page] = bytes(len(spoilt[page]))
        newest.write_bytes(spoilt)
        with pytest.raises(ConfigError, match="damaged"):
            read_checkpoint(newest)
        assert load_checkpoint(run)["step"] == 20
    assert "step-0000000020" in caplog.messages[-1]


def test_saving_after_a_damaged_one_never_removes_the_only_sound_one(run):
    newest = checkpoints(run)[0]
    newest.write_bytes(newest.read_bytes()[:100])
    save_checkpoint(run, state_of(25), keep=1)
    assert load_checkpoint(run)["step"] == 25


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_disk_that_takes_nothing_leaves_the_earlier_one(run, monkeypatch, call, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        save_checkpoint(run, state_of(400), keep=2)
    monkeypatch.undo()
    assert load_checkpoint(run)["step"] == 300
    assert len(list((run / "checkpoints").iterdir())) == 3  # two, and the list of them


def test_what_is_not_finite_is_never_written(run):
    state = state_of(400)
    state["networks"]["last"]["weight"][7] = float("inf")
    with pytest.raises(TrainingError, match="not saved after step 400: networks.last.weight is not finite"):
        save_checkpoint(run, state, keep=2)
    assert load_checkpoint(run)["step"] == 300


def test_a_bomb_and_code_are_refused(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()

    def named(content: bytes) -> Path:
        path = folder / f"step-0000000001-epoch-000000-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        path.write_bytes(content)
        return path

    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(ConfigError, match="packed, which no checkpoint is"):
        read_checkpoint(named((tmp_path / "bomb").read_bytes()))
    torch.save({"step": 1, "code": os.system}, tmp_path / "code")
    with pytest.raises(ConfigError, match="no checkpoint"):
        read_checkpoint(named((tmp_path / "code").read_bytes()))
    with pytest.raises(ConfigError, match="no checkpoint"):
        read_checkpoint(named(b"years of work"))


def test_a_run_whose_newest_is_damaged_ends_with_the_same_weights(quick, tmp_path):
    options = quick | {"epochs": 3, "augment": {"randaugment": 1}, "save_minutes": 0.0}
    whole = atnet.train(**options, out=tmp_path / "whole").folder
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    (broken / "record.json").unlink()
    newest, before = checkpoints(broken)
    assert (newest.name[:28], before.name[:28]) == ("step-0000000030-epoch-000003", "step-0000000030-epoch-000002")
    newest.write_bytes(newest.read_bytes()[:-1])
    atnet.train(resume=broken)
    for name in ("last.safetensors", "ema.safetensors", "best.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_full_disk_in_a_training_is_named_and_the_checkpoint_before_is_sound(quick, tmp_path, monkeypatch):
    real, calls = os.replace, 0

    def fail(source, target):
        nonlocal calls
        calls += "step-" in str(target)
        if calls == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(
        TrainingError, match=r"cannot be written \(No space left on device\).*saved after step 10, go on"
    ):
        atnet.train(**quick | {"epochs": 3}, out=tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint(tmp_path / "run")["step"] == 10
    whole = atnet.train(**quick | {"epochs": 3}, out=tmp_path / "whole").folder
    again = atnet.train(resume=tmp_path / "run").folder
    assert (again / "ema.safetensors").read_bytes() == (whole / "ema.safetensors").read_bytes()


@pytest.fixture
def stopped(finished_run, tmp_path) -> tuple[Path, Path]:
    """A whole run of three epochs, and one like it that was stopped before its record, with two checkpoints."""
    broken = Path(shutil.copytree(finished_run, tmp_path / "broken"))
    (broken / "record.json").unlink()
    return finished_run, broken


def as_named(folder: Path, content: bytes) -> None:
    """A checkpoint of a later step than any, whose name has the hash of its content."""
    name = f"step-0000000999-epoch-000009-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    (folder / name).write_bytes(content)


def pickled(value: object) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def zipped(code: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("archive/data.pkl", code)
        file.writestr("archive/version", "3\n")
    return content.getvalue()


LATER = f"step-0000000999-epoch-000009-{'a' * 16}.pt"


def changed(folder: Path, **change: object) -> None:
    as_named(folder, pickled(torch.load(checkpoints(folder.parent)[-1], weights_only=True) | change))


ODD = {
    "a folder": lambda folder: (folder / LATER).mkdir(),
    "a link to nowhere": lambda folder: (folder / LATER).symlink_to("nowhere"),
    "a pipe": lambda folder: os.mkfifo(folder / LATER),
    "a device": lambda folder: (folder / LATER).symlink_to("/dev/zero"),
    "a terabyte": lambda folder: os.truncate(os.open(folder / LATER, os.O_CREAT | os.O_WRONLY), 10**12),
    "none": lambda folder: as_named(folder, pickled(None)),
    "an empty pickle": lambda folder: as_named(folder, zipped(b"")),
    "a pickle of nonsense": lambda folder: as_named(folder, zipped(b"\x80\x02]q\x00.")),
    "no state": lambda folder: as_named(folder, pickled({"step": 999})),
    "another network": lambda folder: changed(folder, networks={"last.safetensors": {}, "ema.safetensors": {}}),
    "a step that is none": lambda folder: changed(folder, step=-5),
    "an infinite time": lambda folder: changed(folder, seconds=float("inf")),
    "other optimizers": lambda folder: changed(
        folder, optimizers=[{"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []}] * 2
    ),
    "of other images": lambda folder: changed(folder, data="of another run"),
}


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices of POSIX")
def test_an_odd_newest_checkpoint_is_passed_over_with_a_line(stopped, tmp_path, caplog):
    _, broken = stopped
    state = State(open_run(broken))
    for kind, make in ODD.items():
        run = Path(shutil.copytree(broken, tmp_path / kind))
        make(run / "checkpoints")
        [odd] = {path.name for path in checkpoints(run)} - {path.name for path in checkpoints(broken)}
        caplog.clear()
        load_checkpoint(run, state.restore, state.most_bytes)
        assert (state.epoch, state.step) == (3, 30), kind
        assert any("passed over" in line and (odd in line or "images" in line) for line in caplog.messages), kind


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices of POSIX")
def test_a_run_among_odd_checkpoints_ends_with_the_same_weights_and_leaves_them(stopped):
    whole, broken = stopped
    checkpoints(broken)[0].unlink()
    odd = ("a pipe", "none", "no state", "a step that is none", "of other images")
    for kind in odd:
        ODD[kind](broken / "checkpoints")
    before = set(os.listdir(broken / "checkpoints"))
    atnet.train(resume=broken)
    for name in ("last.safetensors", "ema.safetensors", "best.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert before <= set(os.listdir(broken / "checkpoints"))  # this run has written none of the odd ones


def test_a_newest_checkpoint_on_a_bad_sector_is_passed_over(stopped, monkeypatch):
    whole, broken = stopped
    newest, real = str(checkpoints(broken)[0]), os.open

    def fail(path, *words, **named):
        if str(path) == newest:
            raise OSError(errno.EIO, os.strerror(errno.EIO), newest)
        return real(path, *words, **named)

    monkeypatch.setattr(os, "open", fail)
    atnet.train(resume=broken)
    assert (broken / "ema.safetensors").read_bytes() == (whole / "ema.safetensors").read_bytes()


def test_a_linked_folder_of_checkpoints_is_neither_written_to_nor_cleaned(stopped, tmp_path):
    _, broken = stopped
    mine = tmp_path / "mine"
    (broken / "checkpoints").rename(mine)
    (mine / ".lock").unlink()
    (broken / "checkpoints").symlink_to(mine)
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    with pytest.raises(ConfigError, match="checkpoints: a link"):
        atnet.train(resume=broken)
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


def test_a_full_disk_before_the_first_checkpoint_leaves_a_folder_for_the_same_command(quick, tmp_path, monkeypatch):
    """Whatever the disk takes before it is full, from the lock on."""
    whole = atnet.train(**quick, out=tmp_path / "whole").folder
    real, run = os.replace, tmp_path / "run"
    for takes in (0, 1, 3, 6, 8, 9):
        calls = 0

        def fail(source, target, takes=takes):
            nonlocal calls
            calls += "run" in Path(target).parts
            if calls > takes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(source, target)

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(AtnetError, match="No space left on device"):
            atnet.train(**quick, out=run)
        monkeypatch.undo()
        if run.exists() and checkpoints(run):
            break
    assert takes == 9
    again = atnet.train(resume=run).folder
    assert (again / "ema.safetensors").read_bytes() == (whole / "ema.safetensors").read_bytes()


def test_a_full_disk_while_resuming_is_one_line_and_loses_nothing(stopped, monkeypatch):
    whole, broken = stopped
    real = os.open

    def fail(path, flags, *words, **named):
        if flags & os.O_CREAT and str(path).endswith(".tmp"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *words, **named)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(TrainingError, match=r"cannot be written \(Read-only file system\)"):
        atnet.train(resume=broken)
    monkeypatch.undo()
    atnet.train(resume=broken)
    assert (broken / "ema.safetensors").read_bytes() == (whole / "ema.safetensors").read_bytes()
