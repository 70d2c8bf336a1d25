"""`make proof-predict`: images/s and memory of `atnet predict` on photos of 500 x 375, beside an earlier commit's.

python predict.py IMAGENETTE [--before COMMIT] [--photos N] [--rounds N] [--weights NAME]

Both take the same photos, in turns; the whole command counts, its start too. Memory is the peak of the process, with a
quarter of the photos and with all of them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def make_photos(photos: Path, folder: Path, count: int) -> None:
    """The first so many photos of all classes, saved anew as JPEGs of 500 x 375."""
    sources = sorted((photos / "train").rglob("*.JPEG"))
    folder.mkdir()
    for number, source in enumerate(sources[:: max(len(sources) // count, 1)][:count]):
        with Image.open(source) as image:
            image.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC).save(
                folder / f"{number:05}.jpg", quality=90
            )


def timed(source: Path, words: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command of the package in source."""
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(source)}
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "atnet", *words], cwd=folder, env=environment, stdout=said, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)}: ended with status {status}; see {folder / 'said.txt'}")
    return time.perf_counter() - began, usage.ru_maxrss / 1000


def main(photos: Path, before: str, count: int, rounds: int, weights: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photos(photos, folder / "all", count)
        (folder / "quarter").mkdir()
        for path in sorted((folder / "all").iterdir())[: count // 4]:
            (folder / "quarter" / path.name).symlink_to(path)
        former = folder / "former"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", former, before], cwd=ROOT, check=True)
        try:
            speeds: dict[str, list[float]] = {"now": [], "before": []}
            for turn in range(rounds):
                csv = ["--csv", f"{turn}.csv"]
                seconds, all_memory = timed(ROOT / "src", ["predict", "all", "--weights", weights, *csv], folder)
                speeds["now"].append(count / seconds)
                seconds, _ = timed(former / "src", ["predict", "all", "--weights", weights, "--json"], folder)
                speeds["before"].append(count / seconds)
                print(
                    f"round {turn + 1}: {speeds['now'][-1]:.1f} images/s, {before} {speeds['before'][-1]:.1f}",
                    flush=True,
                )
            _, quarter_memory = timed(
                ROOT / "src", ["predict", "quarter", "--weights", weights, "--csv", "quarter.csv"], folder
            )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", former], cwd=ROOT, check=True)
        ratio = statistics.median(now / then for now, then in zip(*speeds.values(), strict=True))
        print(f"images/s over {before}'s, median of {rounds} rounds: {ratio:.2f}")
        print(f"peak memory: {quarter_memory:.0f} MB with {count // 4:,} photos, {all_memory:.0f} MB with {count:,}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--before", default="53729a4")
    parser.add_argument("--photos", type=int, default=2000, dest="count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", default="xxxs.imagenette")
    said = parser.parse_args()
    main(said.photos, said.before, said.count, said.rounds, said.weights)
