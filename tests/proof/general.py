"""`make proof-general`: networks on the validation images of the general weights' classes, by where these come from.

python general.py DATA TABLE NAME=WEIGHTS[,MODEL] ... [--size N] [--classes FILE]

DATA: a folder with val/CLASS/SOURCE_IMAGE, as recipes/general_data.py makes it. Of each network the outputs of DATA's
classes alone are compared, and all see the same pixels. TABLE, a CSV file, gets a line for each network; FILE, another
one, top-1 of each class by the first network.
"""

import argparse
import datetime
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn

from atnet.data.loader import eval_loader
from atnet.data.preprocess import Preprocess
from atnet.data.sources import open_labelled
from atnet.eval.evaluate import score_together
from atnet.files import csv_table, write_whole
from atnet.models.load import load
from atnet.run.record import commit
from atnet.training.distill import OfClasses


def main(data: str, table: Path, networks: list[str], size: int, classes: Path | None) -> None:
    samples = open_labelled(data)
    models: dict[str, nn.Module] = {}
    preprocess: Preprocess | None = None
    for one in networks:
        name, _, where = one.partition("=")
        weights, _, model = where.partition(",")
        network, info = load(weights, model=model, size=size)
        missing = set(samples.classes) - set(info.classes)
        if missing:
            raise SystemExit(f"{name}: does not know {len(missing)} classes, {min(missing)} among them")
        if preprocess is None:
            preprocess = info.preprocess
        elif preprocess.mean != info.preprocess.mean or preprocess.std != info.preprocess.std:
            raise SystemExit(f"{name}: takes other colours than {networks[0]}: measure it apart")
        models[name] = OfClasses(network, torch.tensor([info.classes.index(known) for known in samples.classes]))
    assert preprocess is not None
    loader = eval_loader(samples, preprocess, 128, 0)
    scores = score_together(
        models, loader, classes=len(samples.classes), device=torch.device("cpu"), total=len(samples)
    )
    sources = np.array([Path(name).name.partition("_")[0] for name in samples.ids])
    rows = []
    for name, found in scores.items():
        right = found.labels == found.predicted
        by_source = {source: round(100 * float(right[sources == source].mean()), 2) for source in sorted(set(sources))}
        rows.append(
            {"network": name, "all": round(found.top1, 2), "top5": round(found.top5, 2), **by_source,
             "size": preprocess.size, "images": len(right), "commit": commit(),
             "date": datetime.date.today().isoformat(), "machine": platform.machine()}
        )  # fmt: skip
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ")
    write_whole(table, csv_table(rows).encode())
    if classes is not None:
        found = next(iter(scores.values()))
        each = [
            {"class": known, "images": int((found.labels == i).sum()),
             "top1": round(100 * float((found.predicted[found.labels == i] == i).mean()), 1)}
            for i, known in enumerate(samples.classes)
        ]  # fmt: skip
        write_whole(classes, csv_table(each).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("table", type=Path)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--classes", type=Path)
    said = parser.parse_args()
    main(said.data, said.table, said.networks, said.size, said.classes)
