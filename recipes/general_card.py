"""Writes the card of general weights, src/atnet/weights/NAME.general.md, from their records.

python recipes/general_card.py NAME

NAME: xxxs.  What it reads: the weights in the package, results/general-NAME-first.json and results/general-NAME.json
(records of the two trainings), results/general.csv and results/general-classes.csv (`make proof-general`).
"""

# ruff: noqa: E501  (rows of a table)

import csv
import json
import sys
import textwrap
from pathlib import Path

from atnet.models.load import read_info
from atnet.progress import duration

ROOT = Path(__file__).parents[1]


def table(name: str) -> list[dict[str, str]]:
    """Rows of a file of results."""
    with (ROOT / "results" / name).open() as file:
        return list(csv.DictReader(file))


def main(name: str) -> None:
    info = read_info(f"{name}.general")
    first, then = (json.loads((ROOT / "results" / f"general-{name}{end}.json").read_text()) for end in ("-first", ""))
    by_source = next(row for row in table("general.csv") if row["network"] == f"{name}.general")
    top1 = {row["class"]: float(row["top1"]) for row in table("general-classes.csv")}
    names = dict(zip(info.classes, info.class_names, strict=True))
    known = "; ".join(f"{names[one]} {top1[one]:.0f}" for one in sorted(top1, key=lambda one: -top1[one]))
    sources = ", ".join(
        f"{one} {by_source[one]}" for one in ("dogs120", "imagenette", "mini-imagenet", "tiny-imagenet")
    )
    preprocess, facts = info.preprocess, info.facts
    card = f"""# {name}.general: the network that comes with AT-Net

So that `atnet predict photo.jpg` answers right after installation, and as the start of every training of {name.upper()}
(`atnet train --data FOLDER`; `--weights none` starts from random weights).

| | |
|---|---|
| what it knows | {len(info.classes)} of ImageNet's 1,000 classes and nothing else: the list below |
| network | AT-Net {name.upper()}, {then["parameters"]:,} parameters with its {len(info.classes)} classes |
| input | {preprocess.size} x {preprocess.size} pixels, RGB: shorter side to {preprocess.side}, centre crop, ImageNet's mean and standard deviation |
| trained on | {then["train_images"]:,} photos of ImageNet: Tiny-ImageNet (200 classes, 64 px), mini-ImageNet (100, 84 px), Stanford Dogs (120, 224 px), Imagenette's training part (10, 224 px); from random weights |
| teacher | EfficientNet-Lite0 (Apache-2.0) with the weights of ImageNet-1k: its answers are 70% of the loss, and in the second training its features are learned too |
| recipes | `recipes/general.yaml`, {first["epochs"]} epochs, then `recipes/general_features.yaml`, {then["epochs"]} epochs: Muon, crops that grow from 64 to 96 px, seed 0 |
| accuracy | top-1 {facts["val_top1"]:.2f}%, top-5 {facts["val_top5"]:.2f}% on the {then["val_images"]:,} validation photos of these sources; by source: {sources} |
| records | `results/general-{name}-first.json`, `results/general-{name}.json` in the project: command, commit, machine, time ({duration(first["seconds"])} and {duration(then["seconds"])}) |
| made again by | `make general-weights` |
| files | `{name}.general.safetensors` for torch, `{name}.general.onnx` for ONNX Runtime, numbers stored in 16 bits and computed in 32 |
| licence | Apache-2.0, as the project. The photos are ImageNet's, whose terms are for research; they are not in here |

## Limits

- Whatever an image shows, one of the {len(info.classes)} classes is named, and 120 of them are breeds of dogs.
- Most of its photos were of 64 and 84 px: fine details were not there to be learned.
- Its teacher has seen Imagenette's validation photos in its own training: the accuracy on these is taught by a network that knew them.
- Tiny-ImageNet and mini-ImageNet share 25 classes, Stanford Dogs 6 and 13 with them, and photos may be the same across their parts:
  the figures by source are no benchmark of these data sets.
- Persons are in some training photos; nothing about persons is named or to be concluded.

## What it knows, and how well

Top-1 in percent on each class's validation photos (50 to 200 of them, so give or take 5 to 14 points):

"""
    lines = textwrap.wrap(known, 138, break_long_words=False, break_on_hyphens=False)
    path = ROOT / "src" / "atnet" / "weights" / f"{name}.general.md"
    path.write_text(card + "\n".join(lines) + "\n")
    print(f"Written: {path}")


if __name__ == "__main__":
    main(sys.argv[1])
