"""`make proof-training-speed`: AT-Net's training beside one of timm's parts, whole commands, loaders included.

timm's own train.py is not in its package; `train_with_timm.py` puts timm's loader, optimizer and moving average
together as that does. The same network, pictures, policy (flip and crop, AdamW, channels-last, fp32), batch and
worker count, no cache, in alternated rounds: the wall time of each command. The argument is a folder of pictures
with train/ and val/, of which the first of each class are taken.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_with_timm import BATCH, EPOCHS, SIZE

ROUNDS = 3
PICTURES = {"train": 200, "val": 20}


def some_of(source: Path, target: Path) -> None:
    """Links to the first pictures of each class."""
    for part, count in PICTURES.items():
        for folder in sorted((source / part).iterdir()):
            (target / part / folder.name).mkdir(parents=True)
            for picture in sorted(folder.iterdir())[:count]:
                (target / part / folder.name / picture.name).symlink_to(picture.resolve())


def main(source: Path) -> None:
    seconds: dict[str, list[float]] = {"atnet": [], "timm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        some_of(source, folder / "data")
        for turn in range(ROUNDS):
            commands = {
                "atnet": [
                    *(sys.executable, "-m", "atnet", "train", "--data", str(folder / "data"), "--model", "xxxs"),
                    *("--epochs", str(EPOCHS), "--batch", str(BATCH), "--data.size", str(SIZE), "--data.workers", "2"),
                    *("--augment.crop-scale", "0.35", "--optim.lr", "2e-3", "--out", str(folder / f"atnet-{turn}")),
                ],
                "timm": [
                    *(sys.executable, str(Path(__file__).with_name("train_with_timm.py")), str(folder / "data")),
                ],
            }
            for who, command in commands.items():
                kernels = os.environ | ({"ATNET_KERNELS": "0"} if who == "timm" else {})
                began = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=kernels)
                if done.returncode:
                    sys.exit(f"{who}: {done.stderr.strip().splitlines()[-1]}")
                seconds[who].append(time.perf_counter() - began)
                print(f"round {turn + 1}, {who}: {seconds[who][-1]:.1f} s", flush=True)
    ratio = statistics.median(theirs / ours for ours, theirs in zip(*seconds.values(), strict=True))
    print(f"timm's time over ours, median of {ROUNDS} rounds: {ratio:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
