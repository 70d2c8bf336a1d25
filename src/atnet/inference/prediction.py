"""Named answers for images."""

import contextlib
import html
import itertools
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atnet.data.classes import printable
from atnet.data.decode import HEIF_SUFFIXES, OTHER_SUFFIXES, SUFFIXES, decode
from atnet.data.folders import files_below
from atnet.data.preprocess import Tta, views
from atnet.data.video import camera_frames, count_frames, frames, is_video
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.eval.selective import least_confidence
from atnet.extras import is_installed
from atnet.files import resolve_run
from atnet.progress import progress_bar
from atnet.system import cores
from atnet.weights.find import Source, find_weights
from atnet.weights.info import INFINITE, SHIPPED, WEIGHTS, WeightsInfo

BATCH = 16
"""Images that the network answers at a time; preparing them goes on meanwhile, as many ahead."""

Item = tuple[str, Path | Image.Image | DataError]
"""What an answer calls an image, and where it is, the image, or why there is none."""

log = logging.getLogger("atnet")


@dataclass(frozen=True, kw_only=True)
class _Network:
    """What answers.

    prepare: from an RGB image to what the network takes.  ask: from images so prepared, stacked, to the logits of each
    decision head (N, heads, classes).  batch: how many at a time.  workers: threads that prepare and ask, each for a
    batch of its own, which scales better than many threads for one.  threads: such a pool.
    """

    info: WeightsInfo
    prepare: Callable[[Image.Image], NDArray[Any]]
    ask: Callable[[NDArray[Any]], NDArray[np.float32]]
    batch: int
    workers: int
    threads: Callable[[], contextlib.AbstractContextManager[ThreadPoolExecutor]]


@dataclass(frozen=True, kw_only=True)
class Unread:
    """An image that could not be read, and why."""

    image: str
    error: DataError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of an image, likeliest first.

    top: (class, name, probability 0 to 1).  milliseconds: decoding, preprocessing and the network.
    heads: of several decision heads, the class, name and probability that each gives by itself, the class token's
    first.
    needs: the probability that the likeliest class needs for the accuracy asked for, 0 if none was.
    """

    image: str
    top: tuple[tuple[str, str, float], ...]
    milliseconds: float
    heads: tuple[tuple[str, str, float], ...] = ()
    needs: float = 0.0

    @property
    def picture(self) -> str:
        """The image, as version 0.1 called it."""
        return self.image

    @property
    def ask_a_person(self) -> bool:
        """Whether the answer is not sure enough for the accuracy asked for."""
        return self.top[0][2] < self.needs

    def _repr_html_(self) -> str:
        """For a notebook: a bar for each class."""
        rows = "".join(
            f"<tr><td>{html.escape(printable(name))}</td><td>{100 * share:.1f}%</td>"
            f"<td><div style='background: #4477aa; height: 0.7em; width: {100 * share:.0f}px'></div></td></tr>"
            for _, name, share in self.top
        )
        asked = "<br>ask a person" if self.ask_a_person else ""
        return f"<p>{html.escape(printable(self.image))}{asked}</p><table>{rows}</table>"

    @property
    def name(self) -> str:
        """The likeliest class's name."""
        return self.top[0][1]


def predict(
    images: str | Path | Sequence[str | Path],
    weights: str | Path | Source | None = None,
    *,
    top: int = 5,
    device: str = "auto",
    abstain: float | None = None,
    failed: Callable[[DataError], None] | None = None,
    model: str = "",
    batch: int = BATCH,
    threads: int = 0,
    tta: Tta = "none",
) -> list[Prediction]:
    """What each image shows.

    images: files; of a folder all images in it and in the folders in it; of a video a frame a second, called
    FILE#t=SECONDS.
    abstain: the accuracy to hold, 0.5 to 0.999: answers that are not sure enough for it say `ask_a_person`.
    failed: takes the error of an image that cannot be read, which is then left out; it is raised if None.
    weights, model: as for `atnet.load`; or an ONNX file of `atnet export`, which needs no torch; None: see
    `weights_to_ask`.
    batch: images that the network sees at a time, at most.  threads: of the CPU, 0: all cores.
    tta: test-time augmentation: the mean probability for an image and its mirror image, or for ten crops of it.
    Raises DataError naming an image that cannot be read, WeightsError on unusable weights, ConfigError if these cannot
    promise the accuracy.
    """
    answers = []
    options: dict[str, Any] = {"top": top, "device": device, "abstain": abstain, "model": model}
    for one in predict_each(images, weights, **options, batch=batch, threads=threads, tta=tta):
        if isinstance(one, Prediction):
            answers.append(one)
        elif failed is None:
            raise one.error
        else:
            failed(one.error)
    return answers


def predict_each(
    images: str | Path | Sequence[str | Path],
    weights: str | Path | Source | None = None,
    *,
    top: int = 5,
    device: str = "auto",
    abstain: float | None = None,
    model: str = "",
    batch: int = BATCH,
    threads: int = 0,
    tta: Tta = "none",
    camera: int | None = None,
) -> Iterator[Prediction | Unread]:
    """As `predict`, one after the other in their order, of any number of images: few are in memory at once.

    camera: a number from 0 on: what it sees, a frame a second, without end; images are left out.
    Weights, images' folders and options are looked at before the first answer is asked for.
    """
    if batch < 1 or threads < 0:
        raise ConfigError(f"batch={batch}, threads={threads}: use a batch of 1 or more, and 0 threads or more")
    source, total, items = weights_to_ask(weights, device, model), 1, _read(images)
    if camera is None:
        total = sum(count_frames(path) if is_video(path) else 1 for path in iter_images(images, told=False))
    else:
        items = ((f"camera {camera}#t={seconds:.0f}", image) for seconds, image in camera_frames(camera))
    threads = threads or cores()
    workers = max(min(threads, total), 1)
    network = _open(source, device, batch, threads, workers, tta)
    network = replace(network, batch=max(min(network.batch, -(-total // workers)), 1))
    needs = least_confidence(network.info.facts, abstain)[0] if abstain is not None else 0.0
    return _answers(network, items, total if camera is None else 0, top, needs)


def _read(images: str | Path | Sequence[str | Path]) -> Iterator[Item]:
    """The images, and a video's frames, a second apart; of one that cannot be read the error."""
    for path in iter_images(images):
        if not is_video(path):
            yield str(path), path
            continue
        try:
            for seconds, image in frames(path):
                yield f"{path}#t={seconds:.0f}", image
        except DataError as error:
            yield str(path), error


def _answers(
    network: _Network, images: Iterator[Item], total: int, top: int, needs: float
) -> Iterator[Prediction | Unread]:
    info = network.info

    def prepare(image: Path | Image.Image | DataError) -> tuple[NDArray[Any] | DataError, float]:
        began = time.perf_counter()
        try:
            if isinstance(image, DataError):
                raise image
            decoded = decode(image) if isinstance(image, Path) else image
            return network.prepare(decoded), time.perf_counter() - began
        except DataError as error:
            return error, 0.0

    def answer(some: list[Item]) -> list[Prediction | Unread]:
        prepared = [prepare(image) for _, image in some]
        readable = [found for found, _ in prepared if not isinstance(found, DataError)]
        logits: Iterator[NDArray[np.float32]] = iter(())
        share = 0.0
        if readable:
            began = time.perf_counter()
            logits = iter(network.ask(np.stack(readable)))
            share = (time.perf_counter() - began) / len(readable)
        answers: list[Prediction | Unread] = []
        for (name, _), (found, seconds) in zip(some, prepared, strict=True):
            if isinstance(found, DataError):
                answers.append(Unread(image=name, error=found))
                continue
            each = next(logits)
            answers.append(
                Prediction(
                    image=name,
                    top=likeliest(each, info, top),
                    milliseconds=1000 * (seconds + share),
                    heads=tuple(likeliest(one, info, 1)[0] for one in each) if len(each) > 1 else (),
                    needs=needs,
                )
            )
        return answers

    blank = Image.new("RGB", (info.preprocess.size, info.preprocess.size))
    network.ask(network.prepare(blank)[None])  # the first run is slow
    batches = iter(lambda: list(itertools.islice(images, network.batch)), [])
    with (
        progress_bar("Predicting", total) if total else contextlib.nullcontext(_nothing) as advance,
        network.threads() as pool,
        contextlib.closing(_ahead(batches, answer, pool, network.workers if total else 0)) as answered,
    ):
        for some in answered:
            for one in some:
                advance(1)
                yield one


def _nothing(_: int) -> None:
    """Advances no bar: a camera has no end."""


def _ahead(
    batches: Iterator[Any], work: Callable[[Any], Any], pool: ThreadPoolExecutor, count: int
) -> Generator[Any, None, None]:
    """What a pool's threads make of each batch, in their order; count of them are worked on ahead."""
    waiting: deque[Future[Any]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(work, batch))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    each: NDArray[np.float32] = np.exp(logits - logits.max(-1, keepdims=True))
    shares: NDArray[np.float32] = each / each.sum(-1, keepdims=True)
    return shares


def _mean_answer(logits: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Logits of the mean probability of several (..., classes), as `atnet.models.heads.fuse` has them."""
    mean = np.mean([_probabilities(one) for one in logits], axis=0)
    found: NDArray[np.float32] = np.log(np.maximum(mean, 1e-37)).astype(np.float32)
    return found


def likeliest(logits: NDArray[np.float32], info: WeightsInfo, top: int) -> tuple[tuple[str, str, float], ...]:
    """The likeliest classes by logits (classes,), or by the mean probability of heads (heads, classes).

    As a `Prediction` has them, likeliest first.
    """
    shares = _probabilities(logits).reshape(-1, logits.shape[-1]).mean(0)
    likely = np.argsort(-shares, kind="stable")[:top].tolist()
    return tuple((info.classes[i], info.class_names[i], float(shares[i])) for i in likely)


def as_json(top: tuple[tuple[str, str, float], ...]) -> list[dict[str, Any]]:
    """A prediction's classes for programs."""
    return [{"class": c, "name": name, "probability": round(p, 6)} for c, name, p in top]


def weights_meant(weights: str | Path | Source | None, model: str = "") -> Source:
    """The files; without one the newest run's, or before there is a run, that of the network that comes with AT-Net."""
    if isinstance(weights, Source):
        return weights
    if weights is None:
        last = Path("runs/last")
        newest = resolve_run(last)
        if os.path.lexists(last) and not newest.exists():
            raise WeightsError(f"{last}: the run that it points to is gone; name another by --weights")
        weights = newest if newest.exists() else SHIPPED
    return find_weights(weights, model)


def weights_to_ask(weights: str | Path | Source | None, device: str = "auto", model: str = "") -> Source:
    """As `weights_meant`; of what comes with AT-Net the ONNX file, where that can be run and a CPU suits."""
    source = weights_meant(weights, model)
    by_onnx = source.path.parent == WEIGHTS and device in ("auto", "cpu") and is_installed("onnx", "onnxruntime")
    return replace(source, path=source.path.with_suffix(".onnx")) if by_onnx else source


def image_files(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files; of a folder all images in it and below. Raises DataError naming a folder without any."""
    return list(iter_images(images))


def iter_images(images: str | Path | Sequence[str | Path], *, told: bool = True) -> Iterator[Path]:
    """As `image_files`, one after the other: a folder's files by name, then its folders, but for hidden ones.

    Links are followed, each folder once.  told: a line says which images of other formats are left out.
    Raises DataError naming a folder that cannot be listed.
    """
    for path in map(Path, [images] if isinstance(images, str | Path) else images):
        if not path.is_dir():
            yield path
            continue
        empty, others = True, Counter[str]()
        for name, suffix in files_below(path):
            if suffix in SUFFIXES or suffix in HEIF_SUFFIXES:
                empty = False
                yield path / name
            elif suffix in OTHER_SUFFIXES:
                others[suffix] += 1
        said = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        if empty:
            raise DataError(f"{path}: no images in this folder" + (f" but {said}: save them as JPEG" if said else ""))
        if said and told:
            log.warning("%s: left out, not decoded here: %s; save them as JPEG", path, said)


def _open(source: Source, device: str, batch: int, threads: int, workers: int, tta: Tta) -> _Network:
    """What asks the network, and what the file says of itself.  threads: of the CPU, shared by so many workers."""
    path = source.path
    if path.suffix == ".onnx":
        from atnet.exported.onnx import OnnxNetwork, require_cpu

        require_cpu(device)
        network = OnnxNetwork(path, max(threads // workers, 1), batch)
        one_by_one, told = network.takes_images, network.info.preprocess
        if one_by_one and tta == "crops":
            raise ConfigError(f"{path}: crops images by itself: use --tta mirror, or a file without preprocessing")

        def ask_onnx(images: NDArray[Any]) -> NDArray[np.float32]:
            if one_by_one:
                images = images.transpose(0, 3, 1, 2)
            each = []
            for view in views(images, told.size, tta):
                seen = view[0].transpose(1, 2, 0) if one_by_one else view
                each.append(network.answers(np.ascontiguousarray(seen)))
            found = each[0] if len(each) == 1 else _mean_answer(each)
            return found[:, 1:] if found.shape[1] > 1 else found

        prepare = np.asarray if one_by_one else told.of(tta)
        return _Network(
            info=network.info, prepare=prepare, ask=ask_onnx, batch=1 if one_by_one else batch, workers=workers,
            threads=partial(ThreadPoolExecutor, workers),
        )  # fmt: skip

    import torch

    from atnet.device import pick_device
    from atnet.models.heads import answer_together
    from atnet.models.load import load

    chosen = pick_device(device)
    model, info = load(source, str(chosen))
    model = model.to(memory_format=torch.channels_last)

    @contextlib.contextmanager
    def pool() -> Iterator[ThreadPoolExecutor]:
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(max(threads // workers, 1),)
            ) as made:
                yield made
        finally:
            torch.set_num_threads(before)

    def ask(images: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            together, each = answer_together(
                model, views(torch.from_numpy(images).to(chosen), info.preprocess.size, tta)
            )
        logits: NDArray[np.float32] = (together[:, None] if each is None else each).float().cpu().numpy()
        if not np.isfinite(logits).all():
            raise WeightsError(f"{path}: {INFINITE}")
        return logits

    prepare = info.preprocess.of(tta)
    return _Network(info=info, prepare=prepare, ask=ask, batch=batch, workers=workers, threads=pool)
