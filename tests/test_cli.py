"""The commands as a user runs them: real processes, their output and exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import atnet
from atnet.cli import main


def command(*words: object, where: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atnet", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=where,
        timeout=300,
    )


def test_train_eval_predict_from_the_command_line(digits, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "weights: none\nepochs: 7\nbatch: 20\ndata: {size: 32, crop_pct: 1.0, workers: 0}\naugment: {flip: 0.0}\n"
    )
    trained = command("train", "recipe.yaml", "--epochs", 2, "--data", "./digits", "--optim.lr", "2e-3", where=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "epoch   2/2" in trained.stderr
    assert "last.safetensors" in trained.stdout
    assert "Next: atnet report " in trained.stdout

    record = json.loads((tmp_path / "runs" / "last" / "record.json").read_text())
    assert (record["epochs"], record["batch"], record["config"]["optim"]["lr"]) == (2, 20, 0.002)
    assert (record["size"], record["data"]) == (32, "digits"), "--data drops nothing that the recipe says of data"
    assert "train recipe.yaml --epochs 2 --data ./digits" in record["environment"]["command"]

    evaluated = command("eval", where=tmp_path)
    assert f"top-1 {record['top1']['ema']:.4f}%" in evaluated.stdout
    assert "balanced accuracy" in evaluated.stdout

    images = sorted((digits / "val" / "seven").iterdir())[:2]
    shown = command("predict", *images, where=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert str(images[1]) in shown.stdout.replace("\n", "")
    assert shown.stdout.count("%") == 10

    answers = json.loads(command("predict", *images, "--json", "--top", 3, where=tmp_path).stdout)
    assert [len(answer["top"]) for answer in answers] == [3, 3]
    [again] = atnet.predict(images[0], tmp_path / "runs" / "last", top=3)
    assert again.top[0][0] == answers[0]["top"][0]["class"]
    assert again.top[0][2] == pytest.approx(answers[0]["top"][0]["probability"], abs=1e-6)


def test_sizes_prints_the_table():
    shown = command("sizes").stdout
    assert shown.splitlines()[1].split()[:4] == ["xxxs", "1.70M", "2", "+"]
    assert "Patch_size" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.slow
def test_sizes_draws_where_parameters_lie(tmp_path):
    words = ("sizes", "xxxs", "xxxs+kernel=7", "--plot", tmp_path / "parts.png")
    shown = command(*words).stdout
    assert [line.split()[0] for line in shown.splitlines()[1:3]] == ["xxxs", "xxxs+kernel=7"]
    with Image.open(tmp_path / "parts.png") as image:
        assert image.width == 1100
    again = command(*words)
    assert (again.returncode, "exists" in again.stderr) == (2, True)
    assert "no size of AT-Net" in command("sizes", "resnet18").stderr


def test_digits_writes_a_folder_that_can_be_trained_on(tmp_path):
    done = command("digits", tmp_path / "d")
    assert "4,000 training and 1,000 validation images" in done.stdout
    assert len(list((tmp_path / "d" / "val" / "7").iterdir())) == 100
    assert command("digits", tmp_path / "d").returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: no such recipe"),
        (["train", "--optm.lr", "1"], "--optm.lr: there is no such option; did you mean --optim.lr?"),
        (["train", "--model", "xxxxs"], "did you mean xxxs"),
        (["train", "--data", "nowhere"], "nowhere: no such folder"),
        (["train", "--epochs", "0", "--weights", "none"], "epochs=0 is a linear probe of --weights"),
        (["train", "--epochs", "2000000"], "epochs=2e+06 is out of range"),
        (["train", "--epochs", "3", "--schedule.cycle", "2"], "cycles end at 2, 4"),
        (["train", "--resume", "nowhere"], "nowhere: no such run"),
        (["train", "--resume", "nowhere", "--epochs", "3"], "give no recipe or option with it"),
        (["eval", "--weights", "nowhere"], "no such run, folder or weights file"),
        (["predict"], "no image given"),
        (["predict", "a.jpg", "--weights", "nowhere"], "no such run, folder or weights file"),
        (["train", "--optim", "3e-4"], "--optim is a section of options: give --optim.NAME"),
        (["tran"], "tran: there is no such command; did you mean train?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, capfd, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_names_cannot_command_the_terminal(digits, tmp_path):
    for part in ("train", "val"):
        (digits / part / "six").rename(digits / part / "[bold]\x1b[2Jsix")
    options = ("--data.size", 32, "--data.workers", 0, "--batch", 20, "--epochs", 1)
    assert command("train", "--data", digits, *options, where=tmp_path).returncode == 0
    evaluated = command("eval", where=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "[bold]?[2Jsix" in evaluated.stdout
    image = next((digits / "val" / "one").iterdir())
    predicted = command("predict", image, "--top", 10, where=tmp_path)
    assert "[bold]?[2Jsix" in predicted.stdout
    assert "\x1b" not in evaluated.stdout + predicted.stdout


def test_a_process_ends_with_exit_code_2_and_a_traceback_only_if_asked(tmp_path):
    plain = command("train", "--data", "nowhere", where=tmp_path)
    assert (plain.returncode, "Traceback" in plain.stderr) == (2, False)
    assert "Traceback" in command("train", "--data", "nowhere", "--debug", where=tmp_path).stderr


@pytest.mark.parametrize("command_name", ["eval", "embed", "explain"])
def test_threads_are_as_many_as_asked_for(command_name, finished_run, digits, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    image = str(next((digits / "val" / "one").iterdir()))
    given = {"eval": [], "embed": ["--like", image, str(digits / "val")], "explain": [image]}[command_name]
    main([command_name, *given, "--weights", str(finished_run), "--threads", "3"])
    assert asked == [3]
    with pytest.raises(SystemExit):
        main([command_name, *given, "--weights", str(finished_run), "--threads", "-1"])


def test_quiet_leaves_the_answers_and_the_errors(digits, tmp_path):
    given = "train", digits, "--data.size", 32, "--data.workers", 0, "--weights", "none", "--epochs", 1, "--batch", 20
    said = command(*given, "--out", tmp_path / "run", "--quiet", where=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    assert "Top-1" in said.stdout
    assert "nowhere" in command("train", "--quiet", "--data", "nowhere", where=tmp_path).stderr


def test_the_same_command_names_its_unfinished_run(quick, digits, tmp_path, capsys, monkeypatch):
    words = [
        "train",
        "--data",
        str(digits),
        "--data.size",
        "32",
        "--data.workers",
        "0",
        "--batch",
        "20",
        "--epochs",
        "1",
        "--weights",
        "none",
    ]
    main([*words, "--out", "runs/first"])
    (tmp_path / "runs" / "first" / "record.json").unlink()
    capsys.readouterr()
    main(words)
    assert "to go on with that one: atnet train --resume" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "first" / "record.json").exists()

    monkeypatch.setattr("atnet.cli.train._wants", lambda run: run.name == "first")
    (tmp_path / "runs" / "last").unlink()
    (tmp_path / "runs" / "last").symlink_to("first")
    main(words)
    assert (tmp_path / "runs" / "first" / "record.json").exists()
    main([*words, "--seed", "1"])  # another training: nothing is offered
    assert "not finished" not in capsys.readouterr().err


def test_a_run_that_cannot_be_drawn_is_finished_all_the_same(digits, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("atnet.viz.run.draw_curves", full)
        main(["train", "--data", str(digits), "--data.size", "32", "--epochs", "1", "--batch", "20",
              "--data.workers", "0", "--model", "xxxs+depths=1,1,1", "--out", "run"])  # fmt: skip
    said = capsys.readouterr()
    assert "No space left on device; `atnet report run` tries again" in said.err
    assert "Next: atnet report run" in said.out
    main(["report", "run"])
    assert Path("run/curves.png").exists()


def test_teach_takes_a_recipe_and_options_as_train_does(finished_run, digits, tmp_path, cache, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"weights: none\nteacher: {finished_run}\nepochs: 2\nbatch: 20\ndata: {{size: 32}}\ndistill: {{views: 1}}\n"
    )
    main(["teach", str(recipe), "--data", str(digits), "--data.workers", "0"])
    assert "200 answers, 200 of them new" in capsys.readouterr().out
    main(["train", str(recipe), "--data", str(digits), "--data.workers", "0", "--out", str(tmp_path / "run")])
    main(["teach", str(recipe), "--data", str(digits), "--data.workers", "0"])
    assert "200 answers, 0 of them new" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["digits"], ["album.csv"]])
def test_a_source_stands_in_a_recipes_place(words, digits, capsys):
    Path("album.csv").write_text(
        "path,label,split\n" + "".join(
            f"{path.relative_to(Path.cwd())},{path.parent.name},{part}\n"
            for part in ("train", "val") for path in sorted((digits / part).rglob("*.png"))
        )
    )  # fmt: skip
    options = ["--model", "xxxs+depths=1,1,1", "--data.size", "32", "--data.workers", "0", "--epochs", "1", "--check"]
    main(["train", *words, *options])
    assert f"on {words[0]}: 1 epoch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "set_before", "expected"),
    [
        (["weights"], {}, ("passive", "1000")),
        (["weights"], {"OMP_WAIT_POLICY": "active"}, ("active", "None")),
        (["train", "nowhere.yaml"], {}, ("None", "None")),
    ],
)
def test_threads_wait_idly_but_in_commands_that_want_the_processor_alone(words, set_before, expected):
    code = (
        "import os, sys, contextlib\n"
        "from atnet.cli import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))\n"
    )
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=plain | set_before, capture_output=True, text=True, check=True
    )
    assert tuple(done.stdout.split()[-2:]) == expected
