"""`make proof-defaults`: trainings by nothing but the defaults, beside an earlier commit's, from the same weights.

python defaults.py DATA TABLE [--before COMMIT] [--weights FILE] [--folders NAME ...] [--photos N] [--draws N]

DATA holds folders with train/ and val/. Of each class so many photos are drawn from train/; all figures are of the
whole of val/, by which nothing was chosen, and of the weights that `atnet predict` takes. Each training is a line of
TABLE, a CSV file; those that are there are not done again.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import safetensors.torch
from few import draw

from atnet.files import csv_table, write_whole
from atnet.models.load import load
from atnet.run.record import commit, kept_weights
from atnet.weights.info import SHIPPED, WEIGHTS

ROOT = Path(__file__).parents[2]
KEY = ("folder", "photos", "draw", "code")
FOLDERS = ("flowers5", "trashnet", "caltech101", "grocery")


def renamed(weights: Path, code: Path, place: Path) -> Path:
    """The same weights with the tensors' names of another commit, which has the same ones in the same order."""
    model, info = load(weights)
    listed = f"import atnet\nfor key in atnet.create_model({info.model!r}, num_classes=2).state_dict(): print(key)"
    names = subprocess.run(
        [sys.executable, "-c", listed], env=os.environ | {"PYTHONPATH": str(code / "src")}, check=True,
        capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    tensors = dict(zip(names, model.state_dict().values(), strict=True))
    file = place / "same.safetensors"
    safetensors.torch.save_file({name: one.contiguous() for name, one in tensors.items()}, file, info.to_metadata())
    return file


def train(code: Path, data: Path, weights: Path, place: Path) -> tuple[float, float]:
    """Top-1 in percent and the command's seconds."""
    words = [sys.executable, "-m", "atnet", "train", "--data", str(data), "--weights", str(weights), "--out", "run"]
    began = time.perf_counter()
    with (place / "said.txt").open("wb") as said:
        ended = subprocess.run(
            words, cwd=place, env=os.environ | {"PYTHONPATH": str(code / "src")}, stdout=said, stderr=said
        )
    if ended.returncode:
        raise SystemExit((place / "said.txt").read_text()[-2000:])
    record = json.loads((place / "run" / "record.json").read_text())
    return record["top1"][kept_weights(record)], time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--before", default="53729a4")
    parser.add_argument("--weights", type=Path, default=WEIGHTS / f"{SHIPPED}.safetensors")
    parser.add_argument("--folders", nargs="+", default=FOLDERS)
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--draws", type=int, default=3)
    given = parser.parse_args()
    rows = list(csv.DictReader(given.table.open())) if given.table.exists() else []
    with tempfile.TemporaryDirectory() as name:
        former = Path(name) / "former"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", former, given.before], cwd=ROOT, check=True)
        try:
            same = renamed(given.weights, former, Path(name))
            for number in range(given.draws):
                for folder in given.folders:
                    for code, source in (("now", ROOT), (given.before, former)):
                        cell = dict(zip(KEY, (folder, str(given.photos), str(number), code), strict=True))
                        if any(all(row[key] == value for key, value in cell.items()) for row in rows):
                            continue
                        weights = given.weights.resolve() if code == "now" else same
                        with tempfile.TemporaryDirectory() as place:
                            data = draw(given.data / folder, given.photos, number, Path(place) / "data")
                            top1, seconds = train(source, data, weights, Path(place))
                        rows.append(cell | {"top1": f"{top1:.2f}", "seconds": f"{seconds:.0f}", "commit": commit()})
                        write_whole(given.table, csv_table(rows).encode())
                        print(", ".join(rows[-1].values()), flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", former], cwd=ROOT, check=True)
    means = defaultdict(list)
    for row in rows:
        means[row["folder"], row["code"]].append(float(row["top1"]))
    differences = []
    for folder in given.folders:
        now, before = (statistics.mean(means[folder, code]) for code in ("now", given.before))
        differences.append(now - before)
        print(f"{folder}: {now:.2f} now, {before:.2f} by {given.before}: {now - before:+.2f}")
    print(f"mean {statistics.mean(differences):+.2f}")


if __name__ == "__main__":
    main()
