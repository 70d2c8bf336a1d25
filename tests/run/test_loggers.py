import json

import pytest

import atnet
from atnet.cli import main
from atnet.errors import ConfigError, MissingExtraError
from atnet.run import loggers
from atnet.run.loggers import IDS, flat, read_ids
from atnet.run.record import read_metrics


@pytest.fixture
def mlruns(tmp_path, monkeypatch):
    """MLflow's own store of files, which is what it has without a database or a server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return tmp_path / "mlruns"


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in tags["scalars"]}, tags["images"]


def test_tensorboard_shows_what_the_metrics_say(quick, tmp_path):
    run = atnet.train(**quick | {"epochs": 2}, log=["tensorboard"], out=tmp_path / "run").folder
    found, _ = scalars(run / "tensorboard")
    rows = read_metrics(run)
    for name in ("train_loss", "val_top1", "ema_val_top1", "lr"):
        assert found[name] == [(int(row["epoch"]), pytest.approx(float(row[name]), rel=1e-6)) for row in rows]


def test_a_stopped_run_goes_on_in_the_same_mlflow_run_and_sends_its_pictures(
    digits, quick, tmp_path, mlruns, train_until, capsys
):
    from mlflow import MlflowClient

    train_until(2, **quick | {"epochs": 3, "log": ["mlflow", "tensorboard"]}, out=tmp_path / "run")
    before = read_ids(tmp_path / "run")
    main(["train", "--resume", "run"])
    assert read_ids(tmp_path / "run") == before
    client = MlflowClient()
    made = client.get_run(before["mlflow"])
    assert (made.info.run_name, made.info.status) == ("run", "FINISHED")
    assert made.data.params["optim.name"] == "muon"
    rows = read_metrics(tmp_path / "run")
    history = [(one.step, one.value) for one in client.get_metric_history(before["mlflow"], "val_top1")]
    assert history == [(int(row["epoch"]), float(row["val_top1"])) for row in rows]
    pictures = {one.path for one in client.list_artifacts(before["mlflow"])}
    assert {"curves.png", "confusion.png", "mistakes.png", "samples.png"} <= pictures
    _, images = scalars(tmp_path / "run" / "tensorboard")
    assert "confusion" in images


def test_a_logger_that_fails_does_not_end_the_training(quick, tmp_path, monkeypatch, caplog):
    class Failing:
        id = "1"

        def __init__(self, *given):
            self.told = 0

        def figures(self, values, epoch):
            self.told += 1
            raise ConnectionError("no route to host")

        def close(self):
            raise TimeoutError

    monkeypatch.setitem(loggers._OPEN, "tensorboard", Failing)
    run = atnet.train(**quick | {"epochs": 2}, log=["tensorboard"], out=tmp_path / "run")
    assert run.record["epochs"] == 2
    assert caplog.text.count("no route to host") == 1
    assert json.loads((run.folder / IDS).read_text()) == {"tensorboard": "1"}


def test_a_function_is_told_each_epoch_and_may_end_the_training(quick, tmp_path):
    told = []

    def stop_at_two(row):
        told.append(row)
        if len(told) == 2:
            raise StopIteration

    with pytest.raises(StopIteration):
        atnet.train(**quick | {"epochs": 3}, on_epoch=stop_at_two, out=tmp_path / "run")
    assert [row["epoch"] for row in told] == [1, 2]
    again = atnet.train(resume=tmp_path / "run", on_epoch=told.append)
    assert [row["epoch"] for row in told] == [1, 2, 3]
    assert told[-1]["val_top1"] == again.record["top1"]["last"]


def test_loggers_that_are_not_there_are_named_before_the_run(quick, monkeypatch):
    with pytest.raises(ConfigError, match=r"--log comet: not one of tensorboard, mlflow, wandb, trackio"):
        atnet.train(**quick, log=["comet"])
    monkeypatch.setattr("atnet.extras.find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=r"needs wandb, .* pip install 'atnet\[wandb\]'"):
        atnet.train(**quick, log=["wandb"])


def test_nested_options_become_one_table():
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": (3,)}}}) == {"a": 1, "b.c": 2, "b.d.e": (3,)}
