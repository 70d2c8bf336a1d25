"""`make proof-data-speed`: our training loader beside timm's and torchvision's reference, on the same images.

python load_beside_timm.py PHOTOS [ROUNDS]. Mosaics of the photos, 500 x 375, JPEG of quality 90 to 95, and the same
packed by `atnet pack`; two loader processes; random resized crop to 224, flip, RandAugment 2 x m9, erasing 0.25,
normalised. One after the other in rounds; images/s and the median of the rounds' ratios to timm's.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageDataset, create_loader
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from atnet.config import Config, make_config
from atnet.data.decode import open_encoded
from atnet.data.loader import train_loader
from atnet.data.pack import pack
from atnet.data.samples import Samples
from atnet.data.sources import open_whole
from atnet.models.ops import normalised
from atnet.training.state import mean_and_std

COUNT, BATCH, WORKERS, SIDE = 2048, 64, 2, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = [124, 116, 104]


def make_mosaics(photos: Path, root: Path) -> None:
    """Pieces of mosaics of six photos, so that an image has a photo's entropy."""
    chance = random.Random(0)
    sources = sorted((photos / "train").rglob("*.*"))
    for number in range(COUNT):
        sheet = Image.new("RGB", (672, 448))
        for place, source in enumerate(chance.sample(sources, 6)):
            with Image.open(source) as photo:
                sheet.paste(photo.convert("RGB"), (place % 3 * 224, place // 3 * 224))
        left, top = chance.randrange(172), chance.randrange(73)
        folder = root / "train" / f"class-{number % 8}"
        folder.mkdir(parents=True, exist_ok=True)
        sheet.crop((left, top, left + 500, top + 375)).save(folder / f"{number:05}.jpg", quality=90 + number % 6)


def ours(samples: Samples) -> Callable[[], Iterable[Tensor]]:
    config: Config = make_config(
        batch=BATCH, data={"size": SIDE, "workers": WORKERS}, augment={"randaugment": 2, "erasing": 0.25}
    )
    mean, std = mean_and_std(config.data, torch.device("cpu"))

    def batches() -> Iterable[Tensor]:
        for pixels, _, _ in train_loader(samples, config, 0, COUNT // BATCH):
            yield normalised(pixels, mean, std)

    return batches


def timms(root: Path, probability: float) -> Callable[[], Iterable[Tensor]]:
    """probability: of each of the two operations; 0.5 unless it is said, as against 1 in the paper."""

    def batches() -> Iterable[Tensor]:
        loader = create_loader(
            ImageDataset(str(root / "train")),
            input_size=(3, SIDE, SIDE),
            batch_size=BATCH,
            is_training=True,
            use_prefetcher=False,
            auto_augment=f"rand-m9-n2-p{probability}",
            re_prob=0.25,
            interpolation="bicubic",
            num_workers=WORKERS,
            persistent_workers=False,
        )
        for images, _ in loader:
            yield images

    return batches


def torchvisions(root: Path) -> Callable[[], Iterable[Tensor]]:
    """As its references/classification do on images."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, 9, fill=FILL),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(0.25),
        ]
    )

    def batches() -> Iterable[Tensor]:
        data = ImageFolder(str(root / "train"), transform)
        loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
        for images, _ in loader:
            yield images

    return batches


def decoding(samples: Samples) -> Callable[[], Iterable[Tensor]]:
    """The limit: the same files decoded, and nothing else."""

    class Decoded(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> Tensor:
            with open_encoded(samples.read_bytes(index), "") as image:
                image.decode((0, 0, image.width, image.height), 1)
            return torch.zeros(1)

    return lambda: torch.utils.data.DataLoader(Decoded(), BATCH, num_workers=WORKERS)


def speed(batches: Callable[[], Iterable[Tensor]]) -> float:
    """Images/s from the first batch to the last."""
    seen, began = 0, 0.0
    for number, images in enumerate(batches()):
        if number == 0:
            began = time.perf_counter()
        else:
            seen += len(images)
    return seen / (time.perf_counter() - began)


def main(photos: Path, rounds: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_mosaics(photos, root / "mosaics")
        raw = open_whole(str(root / "mosaics" / "train"))
        pack(raw, root / "packed")
        packed = open_whole(str(root / "packed"))[""]
        loaders = {
            "timm, as its recipes are (p 0.5)": timms(root / "mosaics", 0.5),
            "timm, the same policy (p 1)": timms(root / "mosaics", 1.0),
            "torchvision's reference": torchvisions(root / "mosaics"),
            "ours, JPEG files": ours(raw[""]),
            "ours, packed": ours(packed),
            "decoding alone, JPEG files": decoding(raw[""]),
            "decoding alone, packed": decoding(packed),
        }
        speeds: dict[str, list[float]] = {title: [] for title in loaders}
        for _ in range(rounds):
            for title, batches in loaders.items():
                speeds[title].append(speed(batches))
        same, usual = speeds["timm, the same policy (p 1)"], speeds["timm, as its recipes are (p 0.5)"]
        for title, found in speeds.items():
            ratios = [
                statistics.median(one / other for one, other in zip(found, base, strict=True)) for base in (same, usual)
            ]
            print(
                f"| {title} | {statistics.median(found):.0f} images/s | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
