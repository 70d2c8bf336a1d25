"""A network in 8 bits that holds its accuracy: calibrated on images, the parts that cost most left in float.

Static, in ONNX's QDQ form: activations are uint8 with one scale a tensor, weights int8 with one a channel. Source:
Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference".
"""

import dataclasses
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QDQQuantizer, QuantType, create_calibrator
from scipy.special import softmax

from atnet.bench.bench import take_turns
from atnet.config import make_config
from atnet.data.samples import Samples
from atnet.data.sources import open_configured, open_labelled
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.eval.evaluate import open_validation
from atnet.eval.selective import TRUST, fit_trust
from atnet.export.export import (
    TOLERANCE,
    answer_of,
    compare,
    describe,
    finish_onnx,
    logits_apart,
    named_by,
    of_onnx,
    place_for,
    spread,
)
from atnet.exported.graph import write_onnx
from atnet.exported.onnx import OnnxNetwork
from atnet.files import csv_table, require_new
from atnet.models.load import load
from atnet.progress import progress_bar
from atnet.weights.find import find_weights
from atnet.weights.info import CONFIG, WeightsInfo

CALIBRATION, COSTS = 256, 64
"""Images that the ranges of activations are taken from, and on which the cost of each part is measured."""

ROUNDS, SECONDS = 5, 0.3
"""Turns of timing, and how long each is."""

PRODUCTS, BETWEEN = ("Conv", "Gemm", "MatMul"), ("Add", "Clip", "Relu")
"""Operations that are worth 8 bits, and those that are if what they are between is."""

UNREAD = -1
"""In place of an answer."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A network that was tried, from an image's bytes to its label.

    kept: the parts in float.  top1: percent.  agreement: answers that are those of fp32, percent.
    megabytes: of the file.  milliseconds: of an image by one thread, median.  speed: fp32's time over its own.
    """

    name: str
    kept: tuple[str, ...]
    top1: float
    agreement: float
    megabytes: float
    milliseconds: float
    speed: float


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The file, and what was tried for it.

    report: the same as CSV, beside the file.  plot: a new name beside it, for a plot.
    images: labelled ones that it was measured on.
    trials: fp32, fp16, int8, then one part more in float each time; the last is the file's.
    costs: by part, the costliest first: the error of the logits with this part alone in 8 bits, over the logits
    themselves, both root mean squares.
    """

    path: Path
    report: Path
    plot: Path
    images: int
    trials: tuple[Trial, ...]
    costs: dict[str, float]


def quantize(
    weights: str | Path = "runs/last",
    out: str | Path | None = None,
    *,
    max_drop: float = 0.5,
    preprocessing: bool = False,
    licence: str = "",
    data: str | None = None,
    model: str = "",
    classes: str | Path | None = None,
) -> Quantized:
    """Writes weights as an ONNX file in 8 bits, what stays in float in 16, and a report beside it.

    weights, model: as for `atnet.load`.  out: the file, ending in int8.onnx and where `place_for` says if
    None.
    max_drop: points of top-1 that it may have less than fp32.
    preprocessing, licence, classes: as for `export`.
    data: a folder of class folders, the run's own images if None. Its validation part is measured on, its training
    part calibrated on; one without parts is for both.
    Raises WeightsError if the accuracy is not held, ConfigError if there is something in the way or no images are
    known; then nothing is written.
    """
    if not 0 <= max_drop <= 100:
        raise ConfigError(f"--max-drop {max_drop:g} is out of range: use 0 to 100, points of top-1")
    found = find_weights(weights, model)
    source, path = found.path, place_for(found, out, "int8.onnx")
    report, plot = path.with_suffix(".csv"), path.with_suffix(".png")
    require_new(report)
    require_new(plot)
    network, info = load(found)
    if classes is not None:
        info = named_by(info, classes)
    samples = open_validation(source, data).relabel(info.classes)
    told = describe(network, info, source, licence, "int8, and float16 where float")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as place:
        folder = Path(place)
        whole, made = folder / "fp32.onnx", folder / "int8.onnx"
        write_onnx(network, (3, info.preprocess.size, info.preprocess.size), whole)
        opened = finish_onnx(whole, of_onnx(told, False), False, False)
        compare(opened.answer, answer_of(network, info), samples, info, logits_apart, TOLERANCE)
        maker = _Maker(opened, _pixels(_calibration(source, data), info))
        exam = _Exam(opened, samples)
        trials = [exam.take("fp32", opened), exam.take("fp16", maker.make(folder / "fp16.onnx", []))]
        least = trials[0].top1 - max_drop - 1e-9
        costs = maker.costs(made)
        kept: list[str] = []
        while True:
            name = f"and {kept[-1]} in float" if kept else "int8"
            small = maker.make(made, costs.keys() - kept)
            trials.append(exam.take(name, small, kept))
            if trials[-1].top1 >= least:
                break
            kept.append(list(costs)[len(kept)])
            if len(kept) == len(costs):
                raise WeightsError(
                    f"{source}: with all parts but one in float 8 bits still cost "
                    f"{trials[0].top1 - trials[-1].top1:.2f} points of top-1, more than --max-drop {max_drop:g}: "
                    "nothing was exported"
                )
        facts = {
            "top1": trials[-1].top1, "top1_fp32": trials[0].top1, "agreement": trials[-1].agreement,
            "images": exam.count, "float": kept,
        }  # fmt: skip
        told = dataclasses.replace(told, facts=told.facts | {"int8": facts, TRUST: exam.trust(small)})
        final = finish_onnx(made, of_onnx(told, preprocessing), False, preprocessing)
        if preprocessing and exam.score(final)[0] < least:
            raise WeightsError(
                f"{source}: with the steps of --with-preprocessing the answers cost more than --max-drop {max_drop:g}: "
                "nothing was exported; leave one of the two out"
            )
        (folder / "report.csv").write_text(_report(trials, costs), encoding="utf-8")
        os.replace(folder / "report.csv", report)
        os.replace(made, path)
    return Quantized(
        path=path, report=report, plot=plot, images=exam.count, trials=tuple(trials), costs=costs
    )  # fmt: skip


def part_of(node: str) -> str:
    """The part that a node is of, by its name: encoder.1 of encoder.1.mlp.fc1/Gemm.38, head of head/Gemm.223."""
    found = re.match(r"stages\.\d+\.(?:blocks\.\d+|\w+)|\w+\.\d+(?!\w)|\w*", node.partition("/")[0])
    return found[0] if found else ""


class _Maker:
    """Puts parts of a network into 8 bits, by the ranges that its activations have on images.

    pixels: of each image, uint8 (size, size, 3).
    """

    def __init__(self, network: OnnxNetwork, pixels: Sequence[NDArray[np.uint8]]) -> None:
        self.network, self.pixels = network, pixels
        self.model = onnx.shape_inference.infer_shapes(onnx.load(network.path))
        self.parts = _parts(self.model.graph)
        if not self.parts:
            raise WeightsError(f"{network.info.model}: nothing in it is faster in 8 bits: use --half instead")
        with progress_bar("Taking ranges", len(pixels)) as advance:
            images = _Images(self.model.graph.input[0].name, map(network.info.preprocess.normalise, pixels), advance)
            augmented = str(network.path.with_name("ranges.onnx"))
            calibrator = create_calibrator(network.path, augmented_model_path=augmented)
            calibrator.collect_data(images)
        self.ranges = calibrator.compute_data()

    def make(self, path: Path, parts: Collection[str]) -> OnnxNetwork:
        """Writes the network with these parts in 8 bits, and the others in float, stored in 16."""
        model = onnx.ModelProto.FromString(self.model.SerializeToString())
        if parts:
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=True,  # 7 bits for weights: x86 without VNNI adds two products in 16, which 8 overflow
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=[name for part in parts for name in self.parts[part]],
                nodes_to_exclude=[],
                op_types_to_quantize=[*PRODUCTS, *BETWEEN],
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            model = quantizer.model.model
        onnx.save(model, path)
        return finish_onnx(path, self.network.info, True, False, trusted=True)

    def costs(self, path: Path) -> dict[str, float]:
        """What each part alone costs in 8 bits, as `Quantized` has it.  path: to write to."""
        images = [self.network.info.preprocess.normalise(self.pixels[i]) for i in spread(len(self.pixels), COSTS)]
        expected = np.concatenate([self.network(image[None]) for image in images])
        found = {}
        with progress_bar("Trying each part in 8 bits", len(self.parts)) as advance:
            for part in self.parts:
                network = self.make(path, [part])
                wrong = np.concatenate([network(image[None]) for image in images]) - expected
                found[part] = float(np.sqrt(np.square(wrong).mean() / np.square(expected).mean()))
                advance(1, part)
        return dict(sorted(found.items(), key=lambda one: -one[1]))


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Images as the calibration wants them."""

    def __init__(self, entry: str, images: Iterator[NDArray[np.float32]], advance: Callable[[int], None]) -> None:
        self.entry, self.images, self.advance = entry, images, advance

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        image = next(self.images, None)
        if image is None:
            return None
        self.advance(1)
        return {self.entry: image[None]}


class _Exam:
    """Labelled images that networks are tried on, beside the fp32 one.  count: of those that can be read."""

    def __init__(self, whole: OnnxNetwork, samples: Samples) -> None:
        self.whole, self.samples = whole, samples
        self.expected, _ = self._answers(whole)
        self.count = int((self.expected != UNREAD).sum())
        if not self.count:
            raise DataError(f"{samples.store.name}: none of {len(samples):,} images to measure on can be read")

    def take(self, name: str, network: OnnxNetwork, kept: Sequence[str] = ()) -> Trial:
        top1, agreement = self.score(network)
        cases = {"fp32": self.whole.path, name: network.path}
        workers = take_turns(
            list(cases),
            lambda one: {"engine": "onnx", "model": one, "threads": 1, "onnx": str(cases[one])},
            batch=1, rounds=ROUNDS, seconds=SECONDS, title=f"Timing: {name}",
        )  # fmt: skip
        ours, theirs = (
            statistics.median(statistics.median(times) for times in workers[one].rounds) for one in (name, "fp32")
        )
        return Trial(
            name=name, kept=tuple(kept), top1=top1, agreement=agreement,
            megabytes=network.path.stat().st_size / 1e6, milliseconds=1e3 * ours, speed=theirs / ours,
        )  # fmt: skip

    def score(self, network: OnnxNetwork) -> tuple[float, float]:
        """Top-1, and the answers that are those of fp32, percent."""
        found, _ = self._answers(network)
        read = found != UNREAD
        right, same = (found[read] == other[read] for other in (self.samples.labels, self.expected))
        return 100 * float(right.mean()), 100 * float(same.mean())

    def trust(self, network: OnnxNetwork) -> dict[str, Any]:
        """How sure its answers have to be, see `fit_trust`: they are not as sure as those of fp32."""
        found, sure = self._answers(network)
        read = found != UNREAD
        return fit_trust(sure[read], found[read] == self.samples.labels[read])

    def _answers(self, network: OnnxNetwork) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The network's labels, from the bytes of the images, and their probabilities."""

        def label(i: int) -> tuple[int, float]:
            try:
                shares = softmax(network.answer(self.samples.read(i))[0])
            except DataError:
                return UNREAD, 0.0
            return int(shares.argmax()), float(shares.max())

        found = []
        count = len(self.samples)
        with ThreadPoolExecutor(os.cpu_count()) as pool, progress_bar("Measuring", count) as advance:
            for one in pool.map(label, range(count)):
                found.append(one)
                advance(1)
        return np.array([label for label, _ in found]), np.array([share for _, share in found])


def _parts(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """The names of the nodes that are worth 8 bits, by part.

    Not the convolution that sees the image, nor products of two activations: these take longer in 8 bits; nor products
    with several matrices at once, which ONNX Runtime has no scales for. Sums and ReLUs are between convolutions, where
    all around them is in 8 bits.
    """
    constants = {tensor.name for tensor in graph.initializer if len(tensor.dims) != 3}
    image = graph.input[0].name
    found: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in PRODUCTS and node.input[1] in constants and node.input[0] != image:
            found.setdefault(part_of(node.name), []).append(node.name)
    convolutions = {node.name for node in graph.node if node.op_type == "Conv"}
    grids = {part for part, names in found.items() if convolutions.issuperset(names)}
    for node in graph.node:
        if node.op_type in BETWEEN and part_of(node.name) in grids:
            found[part_of(node.name)].append(node.name)
    return found


def _calibration(source: Path, data: str | None) -> Samples:
    """Images to take ranges from: of the folder or, without one, of the run's own training part."""
    if data is not None:
        return open_labelled(data, "train")
    return open_configured(make_config(source.parent / CONFIG).data)[0]


def _pixels(samples: Samples, info: WeightsInfo) -> list[NDArray[np.uint8]]:
    """Some of the images, resized and cropped. Raises DataError if none can be read."""
    found = []
    some = spread(len(samples), CALIBRATION)
    for i in some:
        try:
            found.append(info.preprocess.resize_and_crop(samples.read(i)))
        except DataError:
            continue
    if not found:
        raise DataError(f"{samples.store.name}: none of {len(some)} images to take ranges from can be read")
    return found


def _report(trials: Sequence[Trial], costs: dict[str, float]) -> str:
    """The trials as CSV, then each part's cost."""
    rows = [
        {
            "network": one.name, "top1": f"{one.top1:.3f}", "agreement": f"{one.agreement:.3f}",
            "megabytes": f"{one.megabytes:.3f}", "milliseconds": f"{one.milliseconds:.3f}",
            "speed": f"{one.speed:.3f}", "float": " ".join(one.kept), "logit_error": "",
        }
        for one in trials
    ]  # fmt: skip
    alone = [
        dict.fromkeys(rows[0], "") | {"network": f"{part} alone in int8", "logit_error": f"{cost:.5f}"}
        for part, cost in costs.items()
    ]
    return csv_table([*rows, *alone])
