"""`make proof-few`: a few photos of one's own classes: linear probe, fine-tuning, and what the default chooses.

python few.py DATA RUNS NAME=WEIGHTS[,MODEL] ... [--only FOLDER ...]. DATA holds the folders of FOLDERS, each with
train/ and val/. Of each number of photos a class, that many are drawn from train/; all figures are of the whole of
val/, which nothing is chosen by. Each cell is a line of RUNS/few.csv; those that are there are not computed again.
"""

import csv
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from atnet.config import Config
from atnet.eval.metrics import interval
from atnet.run.record import commit, kept_weights
from atnet.training.choose import compare_with_probe
from atnet.training.loop import train_config
from atnet.training.plan import configure, settle

FOLDERS = ("flowers5", "trashnet", "caltech101", "grocery")
DRAWS = {5: 3, 20: 3, 50: 1, 0: 1}
"""Photos of a class, 0 for all, and how many draws of them."""

ONLY_20 = ("nothing", "ten")
SIZE = 128
COLUMNS = (
    *(
        "folder",
        "photos",
        "draw",
        "start",
        "size",
        "commit",
        "images",
        "judged",
        "probe",
        "tuned",
        "choice",
        "cv_probe",
    ),
    *("cv_tuned", "probe_seconds", "tuned_seconds", "choice_seconds"),
)


def draw(source: Path, photos: int, number: int, where: Path) -> Path:
    """A folder of links to so many photos of each class, the same each time, and to val/."""
    if not where.exists():
        for index, folder in enumerate(sorted((source / "train").iterdir())):
            files = sorted(folder.iterdir())
            order = np.random.default_rng([number, index]).permutation(len(files))
            for i in order[: photos or None].tolist():
                target = where / "train" / folder.name / files[i].name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(files[i].resolve())
        (where / "val").symlink_to((source / "val").resolve(), target_is_directory=True)
    return where


def cell(config: Config, out: Path) -> tuple[float, int, float]:
    """Top-1 of what a run keeps, of how many images, and its seconds."""
    began = time.perf_counter()
    record = train_config(config, out=out).record
    judged = record["val_pictures"] - record["bad_pictures"]["val"]
    return record["top1"][kept_weights(record)], judged, time.perf_counter() - began


def measure(data: Path, start: str, weights: str, runs: Path, label: str, size: int) -> dict[str, object]:
    """The figures of one draw from one start."""
    source = {"source": str(data), "size": size, "cache": "ram", "workers": 0}
    if not weights:
        top1, judged, seconds = cell(settle(configure(data=source)), runs / label)
        return {"tuned": top1, "judged": judged, "tuned_seconds": seconds}
    name, _, model = weights.partition(",")
    options = {"weights": name, "data": source} | ({"model": model} if model else {})
    probed, judged, probe_seconds = cell(settle(configure(**options, epochs=0)), runs / f"{label}-probe")
    config = settle(configure(**options, choose=False))
    tuned, _, tuned_seconds = cell(config, runs / f"{label}-tuned")
    began = time.perf_counter()
    found = compare_with_probe(config)
    return {
        "probe": probed, "tuned": tuned, "judged": judged, "probe_seconds": probe_seconds,
        "tuned_seconds": tuned_seconds, "choice_seconds": time.perf_counter() - began,
        "choice": "probe" if found and found.keep_probe else "tuned",
        "cv_probe": found and found.probe, "cv_tuned": found and found.tuned,
    }  # fmt: skip


def main(root: Path, runs: Path, starts: dict[str, str], folders: tuple[str, ...]) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    table = runs / "few.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    done = {(row["folder"], row["photos"], row["draw"], row["start"], row["size"]) for row in rows}
    for photos, draws in DRAWS.items():
        for number in range(draws):
            for folder in folders:
                for start, weights in starts.items():
                    key = (folder, str(photos), str(number), start, str(SIZE))
                    if key in done or (start in ONLY_20 and photos != 20):
                        continue
                    label = "-".join(key)
                    data = draw(root / folder, photos, number, runs / "data" / f"{folder}-{photos}-{number}")
                    found = measure(data, start, weights, runs, label, SIZE)
                    row = dict(zip(COLUMNS, key, strict=False)) | {"commit": commit()[:8]} | found
                    rows.append({name: _plain(row.get(name)) for name in COLUMNS})
                    with table.open("w", newline="") as file:
                        writer = csv.DictWriter(file, COLUMNS)
                        writer.writeheader()
                        writer.writerows(rows)
                    print(label, {name: value for name, value in rows[-1].items() if value}, flush=True)
    report(rows)


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def report(rows: list[dict[str, str]]) -> None:
    """Means over folders and draws, of each start and number of photos."""
    print("\n| photos a class | start | cells | probe | fine-tuned | the default's choice | the better of both |")
    print("|---|---|---|---|---|---|---|")
    for photos, start in sorted({(row["photos"], row["start"]) for row in rows}, key=lambda k: (int(k[0]), k[1])):
        mine = [row for row in rows if (row["photos"], row["start"]) == (photos, start)]
        tuned = [float(row["tuned"]) for row in mine]
        if not all(row["probe"] for row in mine):
            print(f"| {photos} | {start} | {len(mine)} | | {statistics.mean(tuned):.1f} | | |")
            continue
        probe = [float(row["probe"]) for row in mine]
        chosen = [float(row[row["choice"]]) for row in mine]
        best = [max(pair) for pair in zip(probe, tuned, strict=True)]
        means = " | ".join(f"{statistics.mean(some):.1f}" for some in (probe, tuned, chosen, best))
        worst = min(b - a for a, b in zip(probe, tuned, strict=True))
        print(f"| {photos} | {start} | {len(mine)} | {means} | fine-tuned less probe, least: {worst:.1f}")
    for row in rows:
        if row["probe"]:
            low, high = interval(float(row["probe"]), int(row["judged"]))
            print(f"{row['folder']} {row['photos']} {row['draw']} {row['start']}: probe {low:.1f} to {high:.1f}")


if __name__ == "__main__":
    words, only = sys.argv[1:], FOLDERS
    if "--only" in words:
        place = words.index("--only")
        words, only = words[:place], tuple(words[place + 1 :])
    main(Path(words[0]), Path(words[1]), dict(one.split("=", 1) for one in words[2:]), only)
