"""`make proof-transfer`: going on from weights beats random ones, with 10, 50 and 200 images of other classes.

python transfer.py PHOTOS RUNS. Pretrained on five of the photos' classes, then trained on the other five, from these
weights and from random ones: the same command but for --weights, which lowers the learning rate. A seventh of the
training images is held out to count on.
Runs are kept in RUNS, and gone on with.
"""

import statistics
import sys
from pathlib import Path

import numpy as np

from atnet.run.record import kept_weights
from atnet.study.study import record_of

SEEDS = (0, 1, 2)
EPOCHS = {10: 120, 50: 60, 200: 30}
"""Of so many images a class: both ways the same."""

RECIPE = Path("recipes/imagenette_best.yaml")
"""Of the pretraining; what follows has the defaults of `atnet train`."""


def split(photos: Path, root: Path) -> None:
    """Links: five classes to pretrain on; the others with a training part for each count and seed."""
    classes = sorted(folder.name for folder in (photos / "train").iterdir() if folder.is_dir())
    for number, name in enumerate(classes):
        files = np.array(sorted((photos / "train" / name).iterdir()))
        held = files[::7]
        rest = np.setdiff1d(files, held)
        if number % 2 == 0:
            _link(root / "pretrain" / "train" / name, rest)
            _link(root / "pretrain" / "val" / name, held)
            continue
        for count in EPOCHS:
            for seed in SEEDS:
                _link(root / f"{count}-{seed}" / "val" / name, held)
                chosen = np.random.default_rng([seed, number]).permutation(len(rest))[:count]
                _link(root / f"{count}-{seed}" / "train" / name, rest[chosen])


def _link(folder: Path, files: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.resolve())


def top1(run: Path, recipe: Path | None = None, **options: object) -> float:
    record = record_of(run, recipe, **options)
    return float(record["top1"][kept_weights(record)])


def main(photos: Path, runs: Path) -> None:
    split(photos, runs / "photos")

    def data(name: str, **options: object) -> dict[str, object]:
        return {"source": str(runs / "photos" / name), "cache": "ram", "workers": 0, **options}

    before = top1(runs / "pretrained", RECIPE, eval_every=20, data=data("pretrain"))
    print(f"pretrained on five classes: {before:.2f}", flush=True)
    weights = str(runs / "pretrained")
    ways: dict[str, dict[str, object]] = {"from weights": {"weights": weights}, "from scratch": {"weights": "none"}}
    for count, epochs in EPOCHS.items():
        found: dict[str, list[float]] = {way: [] for way in ways}
        for seed in SEEDS:
            options = {"epochs": epochs, "eval_every": epochs, "seed": seed, "batch": 32}
            for way, own in ways.items():
                run = runs / f"{way.replace(' ', '-')}-{count}-{seed}"
                found[way].append(top1(run, data=data(f"{count}-{seed}", size=128, cache_size=160), **options, **own))
        text = "; ".join(
            f"{way} {statistics.mean(top):.2f} ({', '.join(f'{one:.2f}' for one in top)})" for way, top in found.items()
        )
        print(f"{count} images a class, {epochs} epochs: {text}", flush=True)
        if not min(found["from weights"]) > max(found["from scratch"]):
            sys.exit(f"{count} images a class: the weights do not help")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
