"""What can go wrong in the first five minutes: one line that names the thing and the remedy, exit code 2."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import atnet
from atnet.cli import main
from atnet.run.record import checkpoints
from atnet.weights.info import LAST

QUICK = ["--data.size", "32", "--data.workers", "0", "--batch", "20", "--epochs", "1"]
Case = Callable[[Path, Path], list[str]]
CASES: dict[str, tuple[Case, str]] = {}


def case(message: str) -> Callable[[Case], Case]:
    """Registers a bad input: a function of (data folder, finished run) that spoils something and gives a command."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = (function, message)
        return function

    return register


@case("no model is called 'xxss': did you mean xxs")
def no_such_size(data, run):
    return ["train", "--data", str(data), "--model", "xxss"]


@case("digit.yaml: no such recipe; the shipped ones are in recipes/")
def no_such_recipe(data, run):
    return ["train", "digit.yaml"]


@case("mine.yml: no such recipe; did you mean mine.yaml?")
def a_recipe_with_another_ending(data, run):
    Path("mine.yaml").write_text("epochs: 1\n")
    return ["train", "mine.yml"]


@case("--optim.weight-decays: there is no such option; did you mean --optim.weight-decay?")
def no_such_option(data, run):
    return ["train", "--data", str(data), "--optim.weight-decays", "1"]


@case("--lr: there is no such option; did you mean --optim.lr?")
def an_option_without_its_section(data, run):
    return ["train", "--data", str(data), "--lr", "1e-3"]


@case("--batch-size: there is no such option; did you mean --batch?")
def an_option_of_another_tool(data, run):
    return ["train", "--data", str(data), "--batch-size", "32"]


@case("mine.yaml: optim.lrate: there is no such setting; did you mean optim.lr?")
def no_such_key_in_a_recipe(data, run):
    Path("mine.yaml").write_text("optim: {lrate: 1}\n")
    return ["train", "mine.yaml", "--data", str(data)]


@case("mine.yaml: 7 is no name; one of digits is written in quotes")
def a_setting_without_a_name(data, run):
    (data / "mine.yaml").write_text("data:\n  7: 8\n")
    return ["train", str(data / "mine.yaml"), "--data", str(data)]


@case("mine.yaml: epochs: '2001-02-30' is not a whole number")
def a_day_that_is_none(data, run):
    (data / "mine.yaml").write_text("epochs: 2001-02-30\n")
    return ["train", str(data / "mine.yaml"), "--data", str(data)]


@case("mine.yaml: out is not for a recipe to say: give --out to the command")
def a_recipe_that_says_where_to_write(data, run):
    (data / "mine.yaml").write_text("out: ../elsewhere\n")
    return ["train", str(data / "mine.yaml"), "--data", str(data)]


@case("/dev/zero: a device or socket, not a file")
def a_list_without_end(data, run):
    return ["train", "--data", str(data), "--data.classes", "/dev/zero", *QUICK]


@case("mine.yaml: not a YAML file")
def a_recipe_that_is_none(data, run):
    Path("mine.yaml").write_text("a: [1\n")
    return ["train", "mine.yaml"]


@case("--epochs: 'many' is not a whole number")
def a_word_for_a_number(data, run):
    return ["train", "--data", str(data), "--epochs", "many"]


@case("mine.yaml: epochs: '2.5' is not a whole number")
def a_fraction_for_a_whole_number(data, run):
    Path("mine.yaml").write_text("epochs: 2.5\n")
    return ["train", "mine.yaml", "--data", str(data)]


@case("--time-budget: 'soon' is not a time; write 45s, 20m or 1h30m")
def a_word_for_a_time(data, run):
    return ["train", "--data", str(data), "--time-budget", "soon"]


@case("optim.lr=-1.0 must be above 0")
def a_negative_learning_rate(data, run):
    return ["train", "--data", str(data), "--optim.lr=-1"]


@case("neither a count of images nor auto")
def a_batch_that_is_no_count(data, run):
    return ["train", "--data", str(data), "--batch", "most"]


@case("nothing to train on: give --data FOLDER")
def no_data(data, run):
    return ["train", "--epochs", "1"]


@case("photos.zip: an archive, which is not read as it is: unpack it (`python -m zipfile -e ")
def an_archive_for_a_folder(data, run):
    Path("photos.zip").write_bytes(b"PK")
    return ["train", "photos.zip"]


@case(".pt: what a run goes on from; for its weights give the run")
def a_checkpoint_for_weights(data, run):
    return ["eval", "--weights", str(checkpoints(run)[0])]


@case("empty: no images in this folder")
def an_empty_folder_to_predict(data, run):
    Path("empty").mkdir()
    return ["predict", "empty", "--weights", str(run)]


@case("tran: there is no such command; did you mean train?")
def no_such_command(data, run):
    return ["tran"]


@case("photo.jpg: no such image")
def no_such_image(data, run):
    return ["predict", "photo.jpg", "--weights", str(run)]


@case("notes.jpg: text, not a whole JPEG")
def not_an_image(data, run):
    Path("notes.jpg").write_text("a shopping list")
    return ["predict", "notes.jpg", "--weights", str(run)]


@case("no such run, folder or weights file")
def no_such_weights(data, run):
    return ["eval", "--weights", "runs/nowhere"]


@case("runs/frist: no such run, folder or weights file; did you mean runs/first?")
def weights_of_a_misspelt_run(data, run):
    Path("runs/first").mkdir(parents=True)
    return ["eval", "--weights", "runs/frist"]


@case("runs/frist: no such run; did you mean runs/first?")
def resuming_a_misspelt_run(data, run):
    Path("runs/first").mkdir(parents=True)
    return ["train", "--resume", "runs/frist"]


@case("not a safetensors file")
def weights_that_are_none(data, run):
    (run / LAST).write_bytes(b"PK\x03\x04 a pickle perhaps")
    return ["eval", "--weights", str(run / LAST), "--data", str(data)]


@case("head.weight")
def weights_of_another_shape(data, run):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = load_file(run / LAST)
    with safe_open(run / LAST, "pt") as file:
        metadata = file.metadata()
    save_file(tensors | {"head.weight": tensors["head.weight"][:3].clone()}, run / LAST, metadata)
    return ["eval", "--weights", str(run / LAST), "--data", str(data)]


@case("without AT-Net's metadata")
def weights_of_another_architecture(data, run):
    import torch
    from safetensors.torch import save_file

    save_file({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, "resnet.safetensors")
    return ["predict", str(next(data.rglob("*.png"))), "--weights", "resnet.safetensors"]


@case("only an ONNX file is served; write it first: atnet export --weights ")
def weights_to_serve_that_are_not_exported(data, run):
    return ["serve", "--weights", str(run)]


@case("batch=0, workers=2: use a batch of 1 or more")
def an_evaluation_of_none_at_a_time(data, run):
    return ["eval", "--weights", str(run), "--batch", "0"]


@case("--queue 0 is out of range: use 1 to 10,000")
def a_queue_without_room(data, run):
    return ["serve", "--weights", str(run), "--queue", "0"]


@case("no class folders with images in it; expected empty/CLASS/IMAGE")
def an_empty_folder(data, run):
    Path("empty").mkdir()
    return ["train", "--data", "empty"]


@case("its images lie in no class folder; give the folder above it if it is one class")
def the_folder_of_one_class(data, run):
    return ["train", "--data", str(data / "train" / "one")]


@case("photos?; give a folder of class folders")
def a_misspelt_folder(data, run):
    Path("photos").mkdir()
    return ["train", "--data", "photo"]


@case("1 class folder with images; a classifier needs two or more")
def one_class(data, run):
    for folder in sorted((data / "train").iterdir())[1:]:
        shutil.rmtree(folder)
    shutil.rmtree(data / "val")
    return ["train", "--data", str(data)]


@case("'eleven' not among the 10 known classes")
def a_class_that_training_lacks(data, run):
    (data / "val" / "six").rename(data / "val" / "eleven")
    return ["train", "--data", str(data), *QUICK]


@case("size=4 is out of range: use 8 to 2,048")
def an_input_below_the_stride(data, run):
    return ["train", "--data", str(data), "--data.size", "4"]


@case("does not take images of 32 px")
def an_input_that_the_peer_does_not_take(data, run):
    return ["train", "--data", str(data), *QUICK, "--model", "crossvit_9_240"]


@case("exists and is not empty; choose another --out")
def a_finished_run_for_a_new_one(data, run):
    return ["train", "--data", str(data), *QUICK, "--out", str(run)]


@case("exists and is not empty; go on with --resume")
def an_unfinished_run_for_a_new_one(data, run):
    (run / "record.json").unlink()
    return ["train", "--data", str(data), *QUICK, "--out", str(run)]


@case("cannot be written (Not a directory); choose another --out")
def a_run_folder_below_a_file(data, run):
    Path("file").touch()
    return ["train", "--data", str(data), *QUICK, "--out", "file/run"]


@case("2 of 202 training images could not be read, more than --data.max-bad 0.005 allows")
def truncated_images(data, run):
    whole = next((data / "train" / "one").iterdir())
    for name in ("broken.png", "again.png"):
        (data / "train" / "one" / name).write_bytes(whole.read_bytes()[:60])
    return ["train", "--data", str(data), *QUICK, "--data.max-bad", "0.005", "--data.cache", "ram"]


@case("so it is no run; give a folder below runs/")
def resuming_what_is_no_run(data, run):
    return ["train", "--resume", str(data)]


@case("all 1 epochs are done; nothing is left to resume")
def resuming_a_finished_run(data, run):
    return ["train", "--resume", str(run)]


@case("not finished; go on with: atnet train --resume")
def a_report_of_an_unfinished_run(data, run):
    (run / "record.json").unlink()
    return ["report", str(run)]


@case("compare takes two runs or more")
def comparing_one_run(data, run):
    return ["compare", str(run)]


@case("is too short: one epoch takes")
def a_time_budget_below_an_epoch(data, run):
    return ["train", "--data", str(data), *QUICK, "--time-budget", "0.001s"]


@case("not in a run folder, so its data are not known; give --data FOLDER")
def weights_alone_without_data(data, run):
    shutil.copy(run / LAST, "mine.safetensors")
    return ["eval", "--weights", "mine.safetensors"]


@pytest.fixture(scope="module")
def finished(_digits, tmp_path_factory):
    data = {"source": str(_digits), "size": 32, "crop_pct": 1.0, "workers": 0}
    home = tmp_path_factory.mktemp("home")
    before = Path.cwd()
    os.chdir(home)
    try:
        return atnet.train(weights="none", batch=20, epochs=1, data=data, out=home / "run").folder
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_code_2(name, digits, finished, capfd, tmp_path):
    spoil, message = CASES[name]
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    words = spoil(digits, run)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capfd.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert message in said[-1]
    assert said[-1].startswith("atnet: ")
    assert "Traceback" not in "\n".join(said)
    assert {path: path.read_bytes() for path in before if path.exists()} == before, "nothing is lost or overwritten"


def test_a_read_only_place_is_said(digits, tmp_path, monkeypatch, capfd):
    """Root may write anywhere, so the system's refusal is brought about."""
    real = Path.mkdir

    def refuse(self, *words, **named):
        if "locked" in self.parts:
            raise PermissionError(13, "Permission denied")
        real(self, *words, **named)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", str(digits), *QUICK, "--out", "locked/run"])
    assert ended.value.code == 2
    assert "locked/run: cannot be written (Permission denied); choose another --out" in capfd.readouterr().err
