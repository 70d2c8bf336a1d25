import csv
import signal

import onnx
import onnx.parser
import pytest

from atnet.bench.bench import Worker, bench, roof_of, take_turns
from atnet.cli import main
from atnet.errors import ConfigError
from atnet.models.cost import cost_of


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "eager", "train"])
def test_networks_are_timed_side_by_side(engine):
    ours, theirs = bench(["xxxs", "mobilenetv3_small_050"], size=64, batch=4, engine=engine, rounds=3, seconds=0.01)
    assert (ours.model, theirs.model) == ("atnet_xxxs", "mobilenetv3_small_050")
    assert (ours.ratio, ours.ratio_low, ours.ratio_high) == (1, 1, 1), "the first is the reference"
    assert theirs.ratio_low <= theirs.ratio <= theirs.ratio_high
    for timing in (ours, theirs):
        assert 0 < timing.median <= timing.p95
        assert timing.images_per_s == pytest.approx(4000 / timing.median)
        assert timing.first > 0
        runs, roof = 1e3 / timing.median, roof_of(engine, 1, "auto")
        operations = 2 * (3 if engine == "train" else 1) * 4 * timing.cost.macs
        assert timing.compute == pytest.approx(operations * runs / roof.flops)
        assert timing.memory == pytest.approx(4 * timing.cost.parameters * runs / roof.bytes)
        assert timing.peak > 20
        assert timing.cost == cost_of(timing.model, 64)
        assert timing.disk == pytest.approx(4 * timing.cost.parameters / 1e6, rel=0.15)


def test_what_is_counted_is_what_is_timed():
    [timing] = bench(["repvit_m0_9"], size=32, engine="eager", rounds=1, seconds=0.01)
    assert timing.cost == cost_of("repvit_m0_9", 32, deployed=True)
    assert timing.disk == pytest.approx(4 * 5.067056)


def test_a_killed_process_is_named_and_the_others_end(tmp_path, monkeypatch):
    """Killed between its turns: what is told to it then stays unsent."""
    workers = []

    class Noted(Worker):
        def __init__(self, case):
            super().__init__(case)
            workers.append(self)

    monkeypatch.setattr("atnet.bench.bench.Worker", Noted)
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[batch, 3] image) => (float[batch, 3] logits) '
    onnx.save(onnx.parser.parse_model(f"{text} {{ logits = Relu (image) }}"), tmp_path / "relu.onnx")

    def case_of(name):
        if name == "second":
            workers[0]._process.kill()
            workers[0]._process.wait()
        return {"model": name, "engine": "onnx", "threads": 1, "onnx": str(tmp_path / "relu.onnx")}

    with pytest.raises(ConfigError, match="first on onnx: its process was killed"):
        take_turns(["first", "second"], case_of, batch=1, rounds=1, seconds=0.01, title="")
    assert [worker._process.returncode for worker in workers] == [-signal.SIGKILL, 0]


@pytest.mark.slow
def test_another_reference_is_added_if_it_is_not_among_them():
    timings = bench(["xxxs"], size=32, reference="mobilenetv3_small_050", rounds=1, seconds=0.01)
    assert [timing.model for timing in timings] == ["atnet_xxxs", "mobilenetv3_small_050"]
    assert timings[1].ratio == 1


def test_a_network_that_cannot_run_is_named():
    with pytest.raises(ConfigError, match="no model is called 'xxss'"):
        bench(["xxss"])
    with pytest.raises(ConfigError, match=r"crossvit_9_240 on train: .*does not take images of 64 px"):
        bench(["crossvit_9_240"], size=64, engine="train", rounds=1)


@pytest.mark.slow
def test_a_documents_table_is_put_between_its_markers(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text("Before.\n<!-- few: begin, made by `make bench` -->\nold\n<!-- few: end -->\nAfter.\n")
    words = ["bench", "xxxs", "--size", "32", "--size", "64", "--rounds", "1", "--seconds", "0.01"]
    main([*words, "--document", str(document), "--title", "few"])
    text = document.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| xxxs |")]
    assert [row.split(" | ")[3] for row in rows] == ["32", "64"], "px, which differs; batch, threads, engine do not"
    assert "![few](performance-few.png)" in text
    assert (tmp_path / "performance-few.png").stat().st_size > 5_000
    with pytest.raises(SystemExit):
        main([*words, "--document", str(document), "--title", "other"])


@pytest.mark.slow
def test_the_command_prints_and_keeps_a_table_and_an_image(tmp_path, capsys):
    words = ["bench", "xxxs", "--size", "32", "--rounds", "1", "--seconds", "0.01", "--engine", "onnx", "--batch", "1",
             "--batch", "2", "--out", "bench"]  # fmt: skip
    main(words)
    said = capsys.readouterr().out
    assert "onnx, 32 px, batch 2, 1 thread" in said
    assert "Written: bench/bench.csv, bench.png, machine.yaml" in said
    rows = list(csv.DictReader((tmp_path / "bench" / "bench.csv").read_text().splitlines()))
    assert [(row["model"], row["batch"], row["ratio"]) for row in rows] == [
        ("atnet_xxxs", "1", "1"),
        ("atnet_xxxs", "2", "1"),
    ]
    assert (tmp_path / "bench" / "bench.png").stat().st_size > 5_000
    assert "processor:" in (tmp_path / "bench" / "machine.yaml").read_text()
    with pytest.raises(SystemExit):
        main(words)
    assert "bench: exists; choose another --out" in capsys.readouterr().err


def test_a_device_is_benched_by_torch_alone(monkeypatch, capsys):
    monkeypatch.setattr("atnet.device.present_devices", lambda: ["mps", "cpu"])
    with pytest.raises(ConfigError, match="with --device mps use eager"):
        bench(["xxxs"], device="mps")
    with pytest.raises(ConfigError, match="torch does not see one"):
        bench(["xxxs"], engine="eager", device="cuda")
