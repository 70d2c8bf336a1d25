import errno
import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import atnet
from atnet.errors import ConfigError, TrainingError
from atnet.measure.record import checkpoints
from atnet.training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint


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
@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_disk_that_takes_nothing_leaves_the_earlier_one(run, monkeypatch, call, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    if call == "write":
        monkeypatch.setattr(Path, "open", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        save_checkpoint(run, state_of(400), keep=2)
    monkeypatch.undo()
    assert load_checkpoint(run)["step"] == 300
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_what_is_not_finite_is_never_written(run):
    state = state_of(400)
    state["networks"]["last"]["weight"][7] = float("inf")
    with pytest.raises(TrainingError, match="not saved after step 400: networks.last.weight is not finite"):
        save_checkpoint(run, state, keep=2)
    assert load_checkpoint(run)["step"] == 300


def test_a_bomb_and_code_are_refused(tmp_path):
    import hashlib

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
