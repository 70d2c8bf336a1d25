"""`make proof-labels`: how many of the labels that were made wrong `atnet doctor --labels` lists, and what else.

python labels.py DATA TABLE [--weights NAME] [--folders NAME ...] [--share 0.1] [--draws 3]

DATA holds folders with train/ and val/. A share of the labels of train/ becomes one of the other classes, drawn at
random; labels that were wrong before count as right ones, so precision is at least what the table says.
"""

import argparse
import datetime
import platform
from pathlib import Path

import numpy as np
import torch

from atnet.data.sources import open_parts
from atnet.files import csv_table, write_whole
from atnet.models.load import load_any
from atnet.run.record import commit
from atnet.training.labels import doubt_labels
from atnet.training.probe import Features, features_of


def main(data: Path, table: Path, weights: str, folders: list[str], share: float, draws: int) -> None:
    network, info = load_any(weights)
    rows = []
    for folder in folders:
        samples, _ = open_parts(str(data / folder), 0.2)
        features = features_of(network, samples, info, torch.device("cpu"), batch=64, workers=0)
        count, classes = len(features.labels), len(samples.classes)
        for draw in range(draws):
            chance = np.random.default_rng([7, draw])
            labels = features.labels.copy()
            changed = chance.choice(count, round(share * count), replace=False)
            labels[changed] = (labels[changed] + chance.integers(1, classes, len(changed))) % classes
            found = doubt_labels(Features(vectors=features.vectors, labels=labels, bad=()), classes)
            right = len(set(found.doubtful) & set(changed.tolist()))
            rows.append(
                {"folder": folder, "weights": weights, "images": count, "share": share, "draw": draw,
                 "estimated": round(found.rate, 3), "listed": len(found.doubtful),
                 "precision": round(100 * right / max(len(found.doubtful), 1), 1),
                 "recall": round(100 * right / len(changed), 1), "commit": commit(),
                 "date": datetime.date.today().isoformat(), "machine": platform.machine()}
            )  # fmt: skip
            print(*(f"{name} {value}" for name, value in rows[-1].items()), sep="  ", flush=True)
    write_whole(table, csv_table(rows).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--weights", default="xxxs.general")
    parser.add_argument("--folders", nargs="+", default=["flowers5", "trashnet"])
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=3)
    said = parser.parse_args()
    main(said.data, said.table, said.weights, said.folders, said.share, said.draws)
