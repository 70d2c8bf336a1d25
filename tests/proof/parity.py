"""`make proof-parity`: an exported network says what its weights say, from an image's bytes to its label.

python parity.py PHOTOS [WEIGHTS ...]: each a run or a safetensors file, the network that comes with AT-Net if none is
given. 1,000 of the photos' validation part, by ONNX Runtime in several batches and threads, by the file that prepares
the images itself, and 100 of them in Chromium; then all sizes with random weights. Of several decision heads each is
compared too. A line a point; exit code 1 if one fails.
"""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from atnet.data.decode import decode
from atnet.data.preprocess import Preprocess
from atnet.export.export import (
    TOLERANCE_PREPROCESSED,
    answer_of,
    export,
    logits_apart,
    probabilities_apart,
)
from atnet.export.web import write_web
from atnet.exported.graph import write_onnx
from atnet.exported.onnx import OnnxNetwork
from atnet.inference.prediction import likeliest
from atnet.models.load import create_classifier, load
from atnet.models.sizes import SIZES
from atnet.weights.info import WeightsInfo

sys.path.append(str(Path(__file__).parent.parent / "export"))
from browser import answers, chromium, find_chromium, give, served
from playwright.sync_api import expect

TEN = "xxxs.imagenette"

PHOTOS, SHOWN = 1000, 100
BATCHES, THREADS = (1, 7, 32), (1, 2)
RELATIVE = 1e-4
PROBABILITY = 1e-3
Logits = NDArray[np.float32]
Point = Iterator[tuple[bool, str]]


def top1(logits: Logits) -> NDArray[np.intp]:
    """The class of each image, of logits (N, answers, classes) whose first answer is the network's."""
    found: NDArray[np.intp] = logits[:, 0].argmax(-1)
    return found


class Proof:
    """Photos, what the weights say of each in torch (N, answers, classes), and a folder to export to."""

    def __init__(self, photos: Path, weights: str, folder: Path) -> None:
        every = sorted(path for path in (photos / "val").rglob("*.*") if path.suffix.lower() in (".jpg", ".jpeg"))
        self.paths = [every[i] for i in np.linspace(0, len(every) - 1, min(PHOTOS, len(every))).round().astype(int)]
        self.data, self.weights, self.folder = str(photos), weights, folder
        model, self.info = load(weights)
        ask = answer_of(model, self.info)
        self.torch = np.stack([ask(decode(path)) for path in self.paths])

    def image(self, path: Path) -> NDArray[np.float32]:
        return self.info.preprocess(decode(path))

    def exported(self) -> Point:
        """By ONNX Runtime, in batches."""
        file = export(self.weights, self.folder / "model.onnx", data=self.data).path
        for threads in THREADS:
            network = OnnxNetwork(file, threads, max(BATCHES))
            for batch in BATCHES:
                logits = np.concatenate(
                    [
                        network.answers(np.stack([self.image(path) for path in self.paths[i : i + batch]]))
                        for i in range(0, len(self.paths), batch)
                    ]
                )
                same = int((top1(logits) == top1(self.torch)).sum())
                worst = logits_apart(logits, self.torch)
                yield (
                    same == len(self.paths) and worst < RELATIVE,
                    f"batch {batch}, {threads} thread{'s' * (threads > 1)}: top-1 of {same:,} of {len(self.paths):,} "
                    f"photos as in torch, logits within {worst:.1e} of the largest",
                )

    def preprocessed(self) -> Point:
        """By the file that takes images as they are."""
        file = export(self.weights, self.folder / "image.onnx", preprocessing=True, data=self.data).path
        network = OnnxNetwork(file)
        logits = np.stack([network.answer(decode(path)) for path in self.paths])
        same = int((top1(logits) == top1(self.torch)).sum())
        worst = probabilities_apart(logits, self.torch)
        yield (
            same == len(self.paths) and worst < TOLERANCE_PREPROCESSED,
            f"with preprocessing: top-1 of {same:,} of {len(self.paths):,} photos as in torch, probabilities within "
            f"{worst:.1e}",
        )

    def sizes(self) -> Point:
        """All sizes, with random weights."""
        preprocess = Preprocess(
            size=224, crop_pct=0.875, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )
        names = tuple(map(str, range(1000)))
        samples = [decode(path) for path in self.paths[:: len(self.paths) // 7][:7]]
        images = np.stack([preprocess(image) for image in samples])
        for name in SIZES:
            torch.manual_seed(0)
            model = create_classifier(name, classes=1000, size=224).eval()
            info = WeightsInfo(
                model=name, classes=names, class_names=names, preprocess=preprocess, epoch=0, moving_average=False
            )
            file = self.folder / f"{name}.onnx"
            write_onnx(model, (3, 224, 224), file, info)
            theirs = np.stack([*map(answer_of(model, info), samples)])
            network = OnnxNetwork(file, batch=len(images))
            worst = max(
                logits_apart(network.answers(images), theirs), logits_apart(network.answers(images[:1]), theirs[:1])
            )
            file.unlink()
            yield worst < RELATIVE, f"{name}, random weights, 224 px: logits within {worst:.1e} of the largest"

    def browser(self) -> Point:
        """In Chromium, on the page of `atnet web`."""
        path = find_chromium()
        if path is None:
            yield False, "no Chromium: apt-get install chromium"
            return
        site = write_web(self.folder / "site", self.folder / "model.onnx").path
        network = OnnxNetwork(self.folder / "model.onnx")
        same, worst = 0, 0.0
        shown = self.paths[:: max(len(self.paths) // SHOWN, 1)][:SHOWN]
        with chromium(path) as found, served(site) as address, found.new_context() as context:
            page = context.new_page()
            page.goto(address)
            expect(page.locator("#status")).to_have_text("Ready.")
            for number, photo in enumerate(shown):
                there = {name: share for _, name, share in likeliest(network.ask(decode(photo)), self.info, 10**6)}
                said = give(page, f"{number}.jpg", photo.read_bytes())
                here = answers(page)
                top = max(there, key=lambda name: there[name])
                same += next(iter(here)) == top and re.search(re.escape(f": {top}, "), said) is not None
                worst = max(worst, *(abs(share - there[name]) for name, share in here.items()))
        yield (
            same == len(shown) and worst <= PROBABILITY,
            f"in Chromium: top-1 of {same:,} of {len(shown):,} photos as in Python, probabilities within {worst:.1e}",
        )


def main(photos: Path, *weights: str) -> None:
    failed = 0
    for one in weights or (TEN,):
        print(one, flush=True)
        with tempfile.TemporaryDirectory() as place:
            proof = Proof(photos, one, Path(place))
            points: list[Callable[[], Point]] = [proof.exported, proof.preprocessed, proof.browser]
            if one == (weights or (TEN,))[-1]:
                points.append(proof.sizes)
            for point in points:
                for holds, said in point():
                    failed += not holds
                    print(f"{'ok' if holds else 'FAILED'}  {said}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
