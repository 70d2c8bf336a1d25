"""`make proof-few`: few photos of one's own classes: linear probe, fine-tuning, and which of the two the default keeps.

python few.py DATA TABLE NAME=WEIGHTS[,MODEL] ... [--folders NAME ...] [--photos N ...] [--draws N] [--size N]

DATA holds folders with train/ and val/.  NAME=: from nothing.  Of each number of photos a class, 0 being all, that many
are drawn from train/; all figures are of the whole of val/, by which nothing is chosen. Each cell is a line of TABLE, a
CSV file; those that are there are not computed again.
"""

import argparse
import csv
import datetime
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atnet.config import NONE, Config
from atnet.data.sources import open_configured
from atnet.eval.metrics import interval
from atnet.files import csv_table, write_whole
from atnet.run.record import commit, kept_weights
from atnet.training.choose import compare_with_probe
from atnet.training.loop import train_config
from atnet.training.plan import configure, settle

DRAWS = {5: 3, 20: 3, 50: 1, 0: 1}
"""Draws of each number of photos."""

BASES = ("nothing", "ten")
"""Starts that are asked with 20 photos of a class alone."""

KEY = ("folder", "photos", "draw", "start", "size")
FIGURES = ("probe", "tuned", "keeps", "cv_probe", "cv_tuned", "cv_images", "low", "high", "judged")
RECORD = ("probe_seconds", "tuned_seconds", "cv_seconds", "batch", "epochs", "lr", "commit", "date", "machine")
Row = dict[str, str]


def draw(source: Path, photos: int, number: int, where: Path) -> Path:
    """A folder of links to so many photos of each class, the same each time, and to val/."""
    for index, folder in enumerate(sorted((source / "train").iterdir())):
        files = sorted(folder.iterdir())
        order = np.random.default_rng([number, index]).permutation(len(files))
        for i in order[: photos or None].tolist():
            target = where / "train" / folder.name / files[i].name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(files[i].resolve())
    (where / "val").symlink_to((source / "val").resolve(), target_is_directory=True)
    return where


def run(config: Config, out: Path) -> tuple[float, int, float]:
    """Top-1 of what a run keeps, of how many images, and its seconds."""
    began = time.perf_counter()
    record = train_config(config, out=out).record
    judged = record["val_images"] - record["bad_images"]["val"]
    return record["top1"][kept_weights(record)], judged, time.perf_counter() - began


def measure(data: Path, weights: str, size: int, runs: Path) -> dict[str, Any]:
    """The figures of one draw from one start."""
    name, _, model = weights.partition(",")
    options: dict[str, Any] = {
        "data": {"source": str(data), "size": size, "cache": "ram", "workers": 0},
        "eval_every": 10_000,  # the last epoch alone
    }
    options |= {"weights": name or NONE} | ({"model": model} if model else {})
    config = settle(configure(**options, choose=False))
    tuned, judged, seconds = run(config, runs / "tuned")
    low, high = interval(tuned, judged)
    found = {
        "tuned": tuned, "low": low, "high": high, "judged": judged, "tuned_seconds": seconds,
        "batch": config.batch, "epochs": config.epochs, "lr": config.optim.lr,
    }  # fmt: skip
    if not name:
        return found
    probe, _, seconds = run(settle(configure(**options, epochs=0)), runs / "probe")
    began = time.perf_counter()
    config = settle(configure(**options))
    compared = compare_with_probe(config, open_configured(config.data)[0])
    found |= {"probe": probe, "probe_seconds": seconds, "cv_seconds": time.perf_counter() - began}
    found["keeps"] = "probe" if compared and compared.keep_probe else "tuned"
    if compared:
        found |= {"cv_probe": compared.probe, "cv_tuned": compared.tuned, "cv_images": compared.images}
    return found


def cells(folders: list[str], photos: list[int], draws: int, starts: list[str], size: int) -> Iterator[dict[str, str]]:
    for each in photos:
        for number in range(min(DRAWS[each], draws)):
            for folder in folders:
                for start in starts:
                    if start not in BASES or each == 20:
                        yield dict(zip(KEY, (folder, str(each), str(number), start, str(size)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("starts", nargs="+")
    parser.add_argument("--folders", nargs="+")
    parser.add_argument("--photos", nargs="+", type=int, default=list(DRAWS))
    parser.add_argument("--draws", type=int, default=3, help="at most so many")
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    starts = dict(start.split("=", 1) for start in given.starts)
    folders = given.folders or sorted(path.name for path in given.data.iterdir() if path.is_dir())
    rows: list[Row] = list(csv.DictReader(given.table.open())) if given.table.exists() else []
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    for cell in cells(folders, given.photos, given.draws, list(starts), given.size):
        if any(all(row[name] == cell[name] for name in KEY) for row in rows):
            continue
        with tempfile.TemporaryDirectory() as place:
            data = draw(given.data / cell["folder"], int(cell["photos"]), int(cell["draw"]), Path(place) / "data")
            found = measure(data, starts[cell["start"]], given.size, Path(place))
        found |= {"commit": commit()[:9], "date": f"{datetime.date.today()}", "machine": machine}
        rows.append(cell | {name: plain(found.get(name)) for name in (*FIGURES, *RECORD)})
        write_whole(given.table, csv_table(rows).encode())
        print({name: value for name, value in rows[-1].items() if value}, flush=True)
    report(rows)


def plain(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def report(rows: list[Row]) -> None:
    """Means over folders and draws, of each start, number of photos and size."""
    print("| px | photos a class | start | cells | probe | fine-tuned | the default's | better of both | least gain |")
    print("|---|---|---|---|---|---|---|---|---|")
    kinds = {(int(row["size"]), int(row["photos"]) or 10**6, row["start"]) for row in rows}
    for size, photos, start in sorted(kinds):
        mine = [r for r in rows if (int(r["size"]), int(r["photos"]) or 10**6, r["start"]) == (size, photos, start)]
        tuned = [float(row["tuned"]) for row in mine]
        shown = f"| {size} | {'all' if photos == 10**6 else photos} | {start} | {len(mine)}"
        if not mine[0]["probe"]:
            print(f"{shown} | | {statistics.mean(tuned):.1f} | | | |")
            continue
        probe = [float(row["probe"]) for row in mine]
        kept = [float(row[row["keeps"]]) for row in mine]
        best = [max(pair) for pair in zip(probe, tuned, strict=True)]
        means = " | ".join(f"{statistics.mean(some):.1f}" for some in (probe, tuned, kept, best))
        print(f"{shown} | {means} | {min(b - a for a, b in zip(probe, tuned, strict=True)):+.1f} |")


if __name__ == "__main__":
    main()
