"""Run folders: begun by one process, named apart, and refused with a line where a file of theirs is damaged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import atnet
from atnet.cli import main
from atnet.config import make_config
from atnet.errors import ConfigError
from atnet.run.record import RECORD, checkpoints, holding, in_use, new_run, read_json, read_predictions, without_folders
from atnet.training.plan import settle


@pytest.fixture
def config(digits):
    return settle(make_config(weights="none", data={"source": str(digits)}))


def test_runs_begun_in_the_same_second_have_names_of_their_own(config):
    runs = [new_run(config, None) for _ in range(4)]
    assert len(set(runs)) == 4
    for run in runs:
        with holding(run):
            assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == config.seed


RACE = """
import sys, time
from pathlib import Path
import yaml
from atnet.errors import ConfigError
from atnet.run import record
from atnet.config import make_config
seed, rounds = int(sys.argv[1]), int(sys.argv[2])
record.environment = lambda: {}
config = make_config(weights="none", seed=seed)
for k in range(rounds):
    run = Path(f"round-{k}")
    Path(f"ready-{k}-{seed}").touch()
    while not (Path(f"ready-{k}-1").exists() and Path(f"ready-{k}-2").exists()):
        time.sleep(0.0005)
    try:
        record.new_run(config, run)
        with record.holding(run):
            time.sleep(0.05)
            right = yaml.safe_load((run / record.CONFIG).read_text())["seed"] == seed
            Path(f"won-{k}-{seed}-{right}").touch()
    except ConfigError as error:
        assert "another process trains it" in str(error) or "not empty" in str(error), error
    Path(f"done-{k}-{seed}").touch()
    while not (Path(f"done-{k}-1").exists() and Path(f"done-{k}-2").exists()):
        time.sleep(0.0005)
"""


def test_of_two_processes_that_begin_one_run_at_once_one_has_it_with_its_own_configuration(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", RACE, str(seed), "25"], stderr=subprocess.PIPE, text=True)
        for seed in (1, 2)
    ]
    for process in processes:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    won = sorted(path.name for path in tmp_path.glob("won-*"))
    assert len({name.split("-")[1] for name in won}) == 25
    assert len(won) == 25
    assert all(name.endswith("True") for name in won)


def test_a_run_that_this_process_holds_is_not_let_go_by_a_look_at_it(config, tmp_path):
    run = new_run(config, tmp_path / "run")
    other = f"from pathlib import Path; from atnet.run.record import in_use; print(in_use(Path({str(run)!r})))"
    with holding(run):
        assert not in_use(run)
        assert subprocess.run([sys.executable, "-c", other], capture_output=True, text=True).stdout == "True\n"
    assert subprocess.run([sys.executable, "-c", other], capture_output=True, text=True).stdout == "False\n"


def test_weights_of_a_run_whose_checkpoints_were_deleted_are_never_discarded(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run").folder
    (run / "record.json").unlink()
    for path in checkpoints(run):
        path.unlink()
    before = (run / "ema.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        atnet.train(**quick, out=run)
    assert (run / "ema.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": float("nan")},
        {"model": None},
        {"top1": {}},
        {"top1": {"last": "much"}},
        {"loss": {"last": float("inf")}},
        {"class_names": [1, 2]},
        {"environment": {}},
        {"config": "none"},
        {"epochs": 1.5},
        {"classes": True},
    ],
)
def test_a_record_with_a_field_of_another_kind_is_refused_by_the_fields_name(finished_run, tmp_path, change):
    record = json.loads((finished_run / "record.json").read_text())
    assert read_json(finished_run / "record.json") == record
    (tmp_path / "record.json").write_text(json.dumps(record | change))
    with pytest.raises(ConfigError, match=rf"record.json: damaged \({next(iter(change))}"):
        read_json(tmp_path / "record.json")


def spoil_json(**change: object):
    def spoil(run: Path) -> None:
        path = run / "record.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return spoil


def cut(name: str, length: int = 250):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:length])


def cut_within(name: str, text: bytes):
    def spoil(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: content.index(text) + len(text)])

    return spoil


def fill(name: str, content: bytes):
    return lambda run: (run / name).write_bytes(content)


DAMAGES = {
    "record.json": [
        fill("record.json", b"{}"),
        fill("record.json", b"[" * 100_000),
        cut("record.json"),
        spoil_json(config={}),
        spoil_json(top1={"last": 10**400}),
        spoil_json(epochs=10**400),
    ],
    "predictions.csv": [
        fill("predictions.csv", b""),
        fill("predictions.csv", bytes(100)),
        fill("predictions.csv", b"image,class,called,confidence\na,b\n"),
        fill("predictions.csv", b'image,class,called,confidence\n"a,zero,zero,much\n'),
    ],
    "metrics.csv": [
        fill("metrics.csv", b"\xff\xfe"),
        cut("metrics.csv", 200),
        lambda run: (run / "metrics.csv").write_text((run / "metrics.csv").read_text().replace("0.", "x.")),
    ],
    "mistakes.png": [fill("mistakes.png", bytes(100)), cut("mistakes.png", 1000)],
    "environment.yaml": [cut("environment.yaml"), fill("environment.yaml", b"started: soon\n")],
    "config.yaml": [cut_within("config.yaml", b"[0.9,"), fill("config.yaml", b"epochs: many\n")],
    "sha256.json": [fill("sha256.json", b"{"), fill("sha256.json", b'{"ema.safetensors": 5}')],
}  # fmt: skip


def ended(words: list[str]) -> object:
    """The command's exit code."""
    try:
        main(words)
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_of_a_run_is_a_line_that_names_the_run(finished_run, tmp_path, capfd, name):
    for number, spoil in enumerate(DAMAGES[name]):
        run = Path(shutil.copytree(finished_run, tmp_path / f"run{number}"))
        spoil(run)
        errors = []
        for words in (["report", run], ["compare", run, finished_run], ["predict", "absent.png", "--weights", run]):
            assert ended([str(word) for word in words]) in (0, 2)
            errors.append(capfd.readouterr().err)
        said = [line for lines in errors for line in lines.splitlines() if line.startswith("atnet: ")]
        assert said, (name, number)
        assert "Traceback" not in "".join(errors)
        assert any(f"run{number}" in line for line in said), (name, number, said)


def test_a_command_with_an_open_quote_is_published_as_it_is():
    assert without_folders("atnet train 'x --out /home/me/runs/a") == "atnet train ''\"'\"'x' --out a"


def test_a_run_of_version_0_1_reports_by_the_names_of_now(finished_run, tmp_path):
    """Its record and predictions called images pictures."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    record = read_json(run / RECORD)
    old = {name.replace("images", "pictures") if name.endswith("_images") else name: record[name] for name in record}
    assert "val_pictures" in old
    (run / RECORD).write_text(json.dumps(old))
    predictions = (run / "predictions.csv").read_text()
    assert predictions.startswith("image,")
    (run / "predictions.csv").write_text(predictions.replace("image,", "picture,", 1))
    assert read_json(run / RECORD) == record
    assert read_predictions(run) == read_predictions(finished_run)
    assert ended(["report", str(run)]) == 0
    assert ended(["compare", str(run), str(finished_run)]) == 0
