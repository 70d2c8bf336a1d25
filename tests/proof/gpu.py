"""`make proof-gpu`: training on a GPU is right, and how fast it is.

python gpu.py [--short] [--out FILE] [--document FILE]: the tests marked gpu; a run that is killed and goes on to the
bits of the unbroken one; one NCCL process beside none; training and inference beside mobilenetv3_small_100, eager and
compiled; the loader at that speed. A JSON record, and a table between the markers of a Markdown file. Exit code 1 if
something fails. --short: the same on a CPU, with small images, to see that the proof itself works.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from atnet.bench.bench import Timing, bench, machine, machine_line, roof_of
from atnet.config import make_config
from atnet.data.loader import batches_of, train_loader
from atnet.data.sources import open_configured
from atnet.files import markdown_table, replace_between, write_whole
from atnet.run.record import checkpoints

MODELS = ["xxxs", "s", "mobilenetv3_small_100"]
TARGETS = {
    ("atnet_xxxs", "train-compile"): 25_000,
    ("atnet_xxxs", "compile"): 60_000,
    ("atnet_s", "train-compile"): 6000,
}
"""Images/s at 224 px on a card of an H200's kind."""
BEGIN, END = "<!-- gpu: begin, made by `make proof-gpu` -->", "<!-- gpu: end -->"
TESTS = Path(__file__).parents[1]


def options(device: str) -> list[str]:
    """Of a training of a few hundred steps on digits, ready for two processes."""
    return [
        "--data.source", "digits", "--data.size", "32", "--epochs", "4", "--batch", "64", "--device", device,
        "--deterministic", "--no-choose", "--data.workers", "2",
    ]  # fmt: skip


def train(out: Path, device: str, *launch: str) -> list[str]:
    start = list(launch) or [sys.executable]
    return [*start, "-m", "atnet", "train", *options(device), "--out", str(out)]


def same_bits(first: Path, second: Path) -> bool:
    before, after = (load_file(run / "last.safetensors") for run in (first, second))
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def marked_tests() -> bool:
    """Those that need the real thing."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TESTS / "training" / "test_gpu.py")]
    return subprocess.run(command, cwd=TESTS.parent).returncode == 0


def killed_run(folder: Path, device: str) -> bool:
    """Killed in its second epoch; the bits of the unbroken run at the end."""
    subprocess.run(train(folder / "whole", device), check=True, capture_output=True)
    process = subprocess.Popen(train(folder / "killed", device), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not checkpoints(folder / "killed"):
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resume = [sys.executable, "-m", "atnet", "train", "--resume", str(folder / "killed")]
    subprocess.run(resume, check=True, capture_output=True)
    return same_bits(folder / "whole", folder / "killed")


def one_process(folder: Path, device: str) -> bool:
    """Behind torchrun, with NCCL on a GPU: the same bits as without."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    subprocess.run(train(folder / "launched", device, *launch), check=True, capture_output=True)
    return same_bits(folder / "whole", folder / "launched")


def loader_speed(folder: Path, size: int, batch: int, steps: int) -> float:
    """Augmented images/s out of noise of 500 x 375 as JPEG files, the loader alone, as many processes as cores."""
    import os

    import numpy as np
    from PIL import Image

    for number in range(64):
        where = folder / "images" / ("train" if number < 60 else "val") / "ab"[number % 2]
        where.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(where / f"{number}.jpg", quality=90)
    data = {"source": str(folder / "images"), "size": size, "workers": os.cpu_count() or 1}
    config = make_config(batch=batch, epochs=10**6, data=data)
    samples, _ = open_configured(config.data)
    batches = batches_of(train_loader(samples, config, 0, steps + 2))
    for _ in range(2):
        next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    return steps * batch / seconds


def speed(short: bool, device: str) -> list[Timing]:
    size, batch, rounds, seconds = (32, 4, 1, 0.01) if short else (224, 512, 3, 0.3)
    models = ["xxxs", "mobilenetv3_small_100"] if short else MODELS
    timings = []
    for engine in ("eager", "train") if short else ("eager", "compile", "train", "train-compile"):
        timings += bench(
            models, size=size, batch=batch, engine=engine, threads=torch.get_num_threads(), rounds=rounds,
            seconds=seconds, reference="mobilenetv3_small_100", device=device,
        )  # fmt: skip
    return timings


def table(timings: list[Timing], loader: float) -> str:
    heads = ["Network", "Engine", "Batch", "Images/s", "Ratio of times", "Of peak", "Memory, MB", "Target"]
    rows = [
        [
            timing.model.removeprefix("atnet_"), timing.engine, str(timing.batch), f"{timing.images_per_s:,.0f}",
            f"{timing.ratio:.2f}", f"{timing.compute:.0%}", f"{timing.peak:,.0f}",
            f"{target:,}" if (target := TARGETS.get((timing.model, timing.engine))) else "",
        ]
        for timing in timings
    ]  # fmt: skip
    return f"\n{markdown_table(heads, rows)}\nThe loader: {loader:,.0f} augmented images/s. {machine_line()}\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--document", type=Path)
    given = parser.parse_args()
    if not given.short and not torch.cuda.is_available():
        print("no GPU: torch sees no CUDA device here, and the figures are of one; --short proves the proof on a CPU")
        return 1
    device = "cpu" if given.short else "cuda"
    folder = Path(tempfile.mkdtemp())
    try:
        passed: dict[str, bool] = {} if given.short else {"marked tests": marked_tests()}
        passed["killed and resumed to the same bits"] = killed_run(folder, device)
        passed["one process behind torchrun, the same bits"] = one_process(folder, device)
        timings = speed(given.short, device)
        size = 32 if given.short else 224
        loader = loader_speed(folder, size, 8 if given.short else 512, 2 if given.short else 20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, right in passed.items():
        print(f"{'passed' if right else 'FAILED'}: {name}")
    body = table(timings, loader)
    print(body)
    if given.out:
        record: dict[str, Any] = {
            "passed": passed,
            "timings": [asdict(timing) for timing in timings],
            "roof": asdict(roof_of("train", torch.get_num_threads(), "auto", device)),
            "loader_images_per_s": loader,
            "machine": machine(),
        }
        write_whole(given.out, (json.dumps(record, indent=2) + "\n").encode())
        print(f"Written: {given.out}")
    if given.document:
        replace_between(given.document, BEGIN, END, body)
        print(f"Written: {given.document}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
