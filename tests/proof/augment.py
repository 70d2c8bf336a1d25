"""`make proof-augment`: our augmentation and torchvision's of the same policy train to the same accuracy.

python augment.py PHOTOS [KIND-SEED ...]. Random resized crop, flip, RandAugment 2 x m9 and erasing 0.25, three epochs
on three seeds each, 15% of the training images held out; KIND is atnet or torchvision, and all six are run unless
named.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from atnet.config import Config
from atnet.data import loader
from atnet.data.decode import Box
from atnet.data.order import Draw, derive_seed
from atnet.training.loop import train

RUNS = [f"{kind}-{seed}" for seed in range(3) for kind in ("atnet", "torchvision")]


class Torchvision:
    """What `Augment` does, by torchvision's transforms."""

    def __init__(self, config: Config) -> None:
        self.config = config
        augment, data = config.augment, config.data
        fill = [round(255 * value) for value in data.mean]
        bicubic = v2.InterpolationMode.BICUBIC
        self.image = v2.Compose(
            [
                v2.RandomResizedCrop(data.train_side, (augment.crop_scale, 1), interpolation=bicubic, antialias=True),
                v2.RandomHorizontalFlip(augment.flip),
                v2.RandAugment(augment.randaugment, augment.magnitude, fill=fill),
                v2.PILToTensor(),
                v2.RandomErasing(augment.erasing, value=fill),
            ]
        )

    def chance(self, draw: Draw) -> Draw:
        return draw

    def crop(self, width: int, height: int, side: int, draw: Draw) -> tuple[Box, float]:
        return (0, 0, width, height), 1.0

    def __call__(self, pixels: NDArray[np.uint8], box: Box, side: int, draw: Draw) -> NDArray[np.uint8]:
        turn = draw if draw.repeat else draw[:2]
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.config.seed, "augment", *turn))
            augmented: NDArray[np.uint8] = self.image(Image.fromarray(pixels)).permute(1, 2, 0).contiguous().numpy()
        return augmented


def top1(photos: Path, run: str) -> float:
    kind, seed = run.split("-")
    ours = loader.Augment
    if kind == "torchvision":
        loader.Augment = Torchvision
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = train(
                "recipes/imagenette.yaml",
                epochs=3,
                seed=int(seed),
                threads=1,
                data={"source": str(photos / "train"), "size": 96, "val_share": 0.15, "cache_size": 160, "workers": 0},
                augment={"randaugment": 2, "magnitude": 9, "erasing": 0.25},
                out=Path(folder) / "run",
            )
            return float(done.record["top1"]["ema"])
    finally:
        loader.Augment = ours


def main(photos: Path, runs: list[str]) -> None:
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run.split("-")[0], []).append(top1(photos, run))
        print(f"{run}: {found[run.split('-')[0]][-1]:.2f}", flush=True)
    for kind, figures in found.items():
        spread = f", standard deviation {statistics.stdev(figures):.2f}" if len(figures) > 1 else ""
        print(f"{kind}: mean {statistics.mean(figures):.2f} of {len(figures)} seeds{spread}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or RUNS)
