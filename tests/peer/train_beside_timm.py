"""`make proof-training-speed`: AT-Net's training beside timm's own train.py, whole commands, loaders included.

The same network, pictures, policy (flip and crop, AdamW, moving average, channels-last), batch and worker
count, no cache, in alternated rounds: the wall time of each command. Arguments: timm's train.py, and a folder
of pictures with train/ and val/, of which the first of each class are taken.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EPOCHS, BATCH, SIZE, ROUNDS = 3, 64, 128, 3
PICTURES = {"train": 200, "val": 20}


def some_of(source: Path, target: Path) -> None:
    """Links to the first pictures of each class."""
    for part, count in PICTURES.items():
        for folder in sorted((source / part).iterdir()):
            (target / part / folder.name).mkdir(parents=True)
            for picture in sorted(folder.iterdir())[:count]:
                (target / part / folder.name / picture.name).symlink_to(picture.resolve())


def main(timms_script: Path, source: Path) -> None:
    seconds: dict[str, list[float]] = {"atnet": [], "timm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        some_of(source, folder / "data")
        run_timms = f"import atnet.timm, runpy; runpy.run_path({str(timms_script)!r}, run_name='__main__')"
        for turn in range(ROUNDS):
            commands = {
                "atnet": [
                    *(sys.executable, "-m", "atnet", "train", "--data", str(folder / "data"), "--model", "xxxs"),
                    *("--epochs", str(EPOCHS), "--batch", str(BATCH), "--data.size", str(SIZE), "--data.workers", "2"),
                    *("--augment.crop-scale", "0.35", "--optim.lr", "2e-3", "--out", str(folder / f"atnet-{turn}")),
                ],
                "timm": [
                    *(sys.executable, "-c", run_timms, str(folder / "data"), "--model", "atnet_xxxs"),
                    *("--num-classes", "10", "--img-size", str(SIZE), "--batch-size", str(BATCH), "--workers", "2"),
                    *("--epochs", str(EPOCHS), "--warmup-epochs", "1", "--sched", "cosine", "--opt", "adamw"),
                    *("--lr", "2e-3", "--weight-decay", "0.05", "--clip-grad", "1", "--smoothing", "0.1"),
                    *("--scale", "0.35", "1", "--hflip", "0.5", "--color-jitter", "0", "--model-ema"),
                    *("--channels-last", "--device", "cpu", "--output", str(folder / f"timm-{turn}")),
                ],
            }
            for who, command in commands.items():
                began = time.perf_counter()
                done = subprocess.run(
                    command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
                )
                if done.returncode:
                    sys.exit(f"{who}: {done.stderr.strip().splitlines()[-1]}")
                seconds[who].append(time.perf_counter() - began)
                print(f"round {turn + 1}, {who}: {seconds[who][-1]:.1f} s", flush=True)
    ratio = statistics.median(theirs / ours for ours, theirs in zip(*seconds.values(), strict=True))
    print(f"timm's time over ours, median of {ROUNDS} rounds: {ratio:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
