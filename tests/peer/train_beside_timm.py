"""`make proof-training-speed`: AT-Net's training beside torch's plain step, and beside one of timm's parts.

First a step without its loader, in processes that take turns: as we train here, and in fp32 with all left to torch.
Then whole commands, loaders included. timm's own train.py is not in its package; `train_with_timm.py` puts timm's
loader, optimizer and moving average together as that does. The same network, images, policy (flip and crop, AdamW,
channels-last), batch and worker count, no cache, in alternated rounds: the wall time of each command; timm's in fp32
and in bf16 in the first round, then in the faster of the two. The argument is a folder of images with train/ and
val/, of which the first of each class are taken.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_with_timm import BATCH, EPOCHS, SIZE

from atnet.bench.bench import take_turns

ROUNDS = 3
STEP_ROUNDS, STEP_SECONDS, THREADS = 7, 5.0, 2
IMAGES = {"train": 500, "val": 20}


def some_of(source: Path, target: Path) -> None:
    """Links to the first images of each class."""
    for part, count in IMAGES.items():
        for folder in sorted((source / part).iterdir()):
            (target / part / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                (target / part / folder.name / image.name).symlink_to(image.resolve())


def time_step() -> None:
    """Prints the time and the memory of a step, ours and the plain one."""

    def case_of(name: str) -> dict[str, object]:
        os.environ["ATNET_KERNELS"] = "0" if name == "plain" else "1"
        precision = "fp32" if name == "plain" else "auto"
        return {
            "engine": "train",
            "model": "xxxs",
            "size": SIZE,
            "threads": THREADS,
            "recipe": None,
            "precision": precision,
        }

    workers = take_turns(
        ["atnet", "plain"], case_of, batch=BATCH, rounds=STEP_ROUNDS, seconds=STEP_SECONDS, title="step"
    )
    del os.environ["ATNET_KERNELS"]
    medians = {name: [statistics.median(times) for times in worker.rounds] for name, worker in workers.items()}
    for name, worker in workers.items():
        print(f"a step, {name}: {1e3 * statistics.median(medians[name]):.0f} ms, peak {worker.peak:.0f} MB", flush=True)
    ratios = [plain / ours for ours, plain in zip(medians["atnet"], medians["plain"], strict=True)]
    print(
        f"the plain step's time over ours, median of {STEP_ROUNDS} rounds: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def main(source: Path) -> None:
    time_step()
    seconds: dict[str, list[float]] = {"atnet": [], "timm fp32": [], "timm bf16": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        some_of(source, folder / "data")
        theirs = {
            f"timm {precision}": [
                *(sys.executable, str(Path(__file__).with_name("train_with_timm.py"))),
                *(str(folder / "data"), precision),
            ]
            for precision in ("fp32", "bf16")
        }
        for turn in range(ROUNDS):
            ours = [
                *(
                    sys.executable,
                    "-m",
                    "atnet",
                    "train",
                    "--data",
                    str(folder / "data"),
                    "--model",
                    "xxxs",
                    "--weights",
                    "none",
                ),
                *("--epochs", str(EPOCHS), "--batch", str(BATCH), "--data.size", str(SIZE), "--data.workers", "2"),
                *("--augment.crop-scale", "0.35", "--optim.lr", "2e-3", "--out", str(folder / f"atnet-{turn}")),
            ]
            for who, command in ({"atnet": ours} | theirs).items():
                seconds[who].append(time_command(who, command, folder))
                print(f"round {turn + 1}, {who}: {seconds[who][-1]:.1f} s", flush=True)
            if turn == 0:  # the slower precision is out of it
                theirs = {name: theirs[name] for name in [min(theirs, key=lambda name: seconds[name][0])]}
    own = seconds.pop("atnet")
    [peer] = theirs
    ratio = statistics.median(there / here for here, there in zip(own, seconds[peer], strict=True))
    print(f"the time of {peer} over ours, median of {ROUNDS} rounds: {ratio:.2f}")


def time_command(who: str, command: list[str], folder: Path) -> float:
    """Wall time in seconds; imports are cached as bytecode, as Python does unless it is told not to."""
    variables = os.environ | ({} if who == "atnet" else {"ATNET_KERNELS": "0"})
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=variables)
    if done.returncode:
        sys.exit(f"{who}: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main(Path(sys.argv[1]))
