import shutil

import pytest

import atnet
from atnet.errors import ConfigError, DataError, WeightsError


@pytest.fixture
def run(quick, tmp_path):
    return atnet.train(**quick | {"epochs": 2}, out=tmp_path / "run")


def test_evaluation_gives_the_runs_figures_to_the_last_digit(run):
    average = atnet.evaluate(run.folder, batch=7)
    assert round(average.scores.top1, 4) == run.record["top1"]["ema"]
    assert round(average.scores.top5, 4) == run.record["top5"]["ema"]
    assert average.info.moving_average
    raw = atnet.evaluate(run.folder / "last.safetensors")
    assert round(raw.scores.top1, 4) == run.record["top1"]["last"]
    assert raw.scores.count == 50


def test_classes_come_from_the_weights_not_from_the_folder(run, digits):
    """Half of the classes gone, and so other positions in the folder: the others keep their labels."""
    whole = atnet.evaluate(run.folder).scores.confusion
    for name in ("eight", "five", "nine", "two", "zero"):
        shutil.rmtree(digits / "val" / name)
    part = atnet.evaluate(run.folder, str(digits)).scores.confusion
    kept = [2, 4, 5, 6, 7]
    assert part[kept].tolist() == whole[kept].tolist()
    assert part.sum() == 25


def test_another_size_is_another_input(run):
    larger = atnet.evaluate(run.folder, size=48)
    assert larger.info.preprocess.size == 48
    assert larger.scores.count == 50
    assert larger.scores.loss != atnet.evaluate(run.folder).scores.loss


def test_a_flat_folder_is_evaluated_on_what_was_held_out(quick, digits, tmp_path):
    """Also when it is named: four fifths of it were trained on."""
    source = str(digits / "train")
    run = atnet.train(**quick | {"data": quick["data"] | {"source": source}}, out=tmp_path / "flat")
    assert atnet.evaluate(run.folder, source).scores.count == 40


def test_a_class_that_the_weights_do_not_know_is_an_error(run, digits):
    (digits / "val" / "two").rename(digits / "val" / "dos")
    with pytest.raises(DataError, match="'dos' not among the 10 known classes"):
        atnet.evaluate(run.folder, str(digits))


def test_weights_away_from_their_run_need_data(run, tmp_path):
    shutil.copy(run.folder / "ema.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(ConfigError, match="give --data FOLDER"):
        atnet.evaluate(tmp_path / "alone.safetensors")


def test_an_absent_run_is_said():
    with pytest.raises(WeightsError, match="no such run, folder or weights file"):
        atnet.evaluate("runs/nowhere")
