"""A linear probe: a logistic regression on a frozen network's features, and the head that training begins with."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from atnet.data.loader import NO_LABEL, BadSample, batches_of, eval_loader
from atnet.data.preprocess import Preprocess
from atnet.data.samples import Samples
from atnet.device import naming_shortage
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.files import cache_folder, read_regular, write_whole
from atnet.progress import progress_bar
from atnet.weights.info import WeightsInfo

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""scikit-learn's C, of features at unit variance: the inverse of the L2 penalty."""

USUAL_STRENGTH = 1e-1
"""Where a class has one image, so that nothing can be cross-validated."""

FOLDS, FEW_FOLDS, MANY = 5, 3, 1000
"""Of cross-validation; with many images fewer are enough."""

MOST_ITERATIONS = 100
MOST_WORK = 4e9
"""Images times features times classes: of more images, as many of each class as stay below are fitted."""

LEAST_PER_CLASS = 5
MOST_CACHED = 50_000
"""Images whose features are kept in the cache: 1 GB of 1,280 features and their mirror images'."""

MOST_CACHE_BYTES = 2_000_000_000
log = logging.getLogger("atnet")


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What the classifier of a frozen network reads of N images.

    vectors: float32 (N, 2, heads, features): of the evaluation transform's image, and of its mirror image; one head
    but for a network with several.  labels: (N,).  bad: further images, which could not be read.
    """

    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    bad: tuple[BadSample, ...]

    def places(self, samples: Samples) -> list[int]:
        """Which of the images, these being of them, could be read."""
        bad = {hole.image for hole in self.bad}
        return [i for i, name in enumerate(samples.ids) if name not in bad]


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A linear classifier of features.

    weight: float32 (classes, features).  bias: (classes,).  strength: scikit-learn's C, the one of the smallest loss in
    cross-validation on the training images.  top1: percent there; nan where a class has one image alone.
    images: how many it was fitted to.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    strength: float
    top1: float
    images: int

    def logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, heads, classes) of the first view in (N, views, heads, features)."""
        logits: NDArray[np.float32] = vectors[:, 0] @ self.weight.T + self.bias
        return logits


def linear_head(model: nn.Module) -> nn.Linear:
    """The network's classifier. Raises ConfigError if it is not one linear layer."""
    try:
        head = model.get_classifier()  # type: ignore[operator]
    except AttributeError:
        head = None
    first, *others = head if isinstance(head, tuple | list) else (head,)
    if not isinstance(first, nn.Linear) or any(isinstance(other, nn.Linear) for other in others):
        raise ConfigError(f"{type(model).__name__} has no single linear classifier, so it cannot be probed")
    return first


@contextmanager
def reading(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, what the network's classifier reads is put into the list: (B, features) or (B, heads, features).

    Raises ConfigError if the classifier is not one linear layer.
    """
    read: list[Tensor] = []
    hook = linear_head(model).register_forward_pre_hook(lambda _, given: read.append(given[0]))
    try:
        yield read
    finally:
        hook.remove()


def set_head(model: nn.Module, probe: Probe) -> None:
    """The probe becomes the network's classifier, which has as many outputs as the probe has classes."""
    head = linear_head(model)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(probe.weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(probe.bias))


def features_of(
    model: nn.Module, samples: Samples, info: WeightsInfo, device: torch.device, *, batch: int, workers: int
) -> Features:
    """The features of each image that can be read, from the cache where it has them.

    info: of the model, its name and how it sees an image.
    They are kept by the SHA-256 of the image's file and of the network before its classifier: only new images are
    computed.  Raises DataError if no image can be read, ConfigError if the network cannot be probed.
    """
    hashes, holes = content_hashes(samples)
    place = cache_folder() / "features" / f"{key_of(model, info)}.safetensors"
    kept = _read_cache(place)
    missing = [i for i, one in enumerate(hashes) if one and one not in kept]
    if missing:
        with naming_shortage(f"a batch of {batch} for the features", "use a smaller --batch or --data.size"):
            computed, found = _compute(model, samples.only(missing), info.preprocess, device, batch, workers)
        holes += found
        gone = {hole.image for hole in found}
        readable = [i for i in missing if samples.ids[i] not in gone]
        kept |= {hashes[i]: vector for i, vector in zip(readable, computed, strict=True)}
        if len(kept) <= MOST_CACHED:
            _write_cache(place, kept)
    gone = {hole.image for hole in holes}
    used = [i for i, one in enumerate(hashes) if one and samples.ids[i] not in gone]
    if not used:
        raise DataError(f"{samples.store.name}: none of its {len(samples):,} images can be read: {holes[0].reason}")
    return Features(
        vectors=np.stack([kept[hashes[i]] for i in used]), labels=samples.labels[np.array(used)], bad=tuple(holes)
    )


def fit(features: Features, classes: int, *, balanced: bool = False) -> Probe:
    """A multinomial logistic regression on both views, its strength chosen by cross-validation with the smallest loss.

    balanced: classes count alike, whatever their number of images.
    Features are standardised for the fit; the result is of the features as they are.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    vectors, labels = _limited(features, classes)
    count, views, heads, width = vectors.shape
    rows = vectors.reshape(count, views * heads, width)
    mean = rows.mean((0, 1), dtype=np.float64).astype(np.float32)
    scale = rows.std((0, 1), dtype=np.float64).astype(np.float32) + np.float32(1e-6)
    rows = (rows - mean) / scale
    repeated = views * heads

    def regression() -> Any:
        weight = "balanced" if balanced else None
        return LogisticRegression(max_iter=MOST_ITERATIONS, tol=1e-3, warm_start=True, class_weight=weight)

    def fitted(model: Any, strength: float, some: Any = slice(None)) -> Any:
        with warnings.catch_warnings():
            # Weak penalties reach the last iteration; of the fit that is kept a line says so.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength / repeated)
            return model.fit(rows[some].reshape(-1, width), np.repeat(labels[some], repeated))

    present = np.unique(labels)
    if len(present) < 2:
        raise DataError(f"one class alone has images, {present[0]}: a probe tells two or more apart")
    folds = int(min(FOLDS if count < MANY else FEW_FOLDS, np.bincount(labels)[present].min()))
    strength, top1 = USUAL_STRENGTH, float("nan")
    if folds > 1:
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(rows[:, 0], labels))
        models = [regression() for _ in splits]
        least = np.inf
        with progress_bar("Fitting the probe", folds * len(STRENGTHS)) as advance:
            for one in STRENGTHS:
                loss, right = 0.0, 0
                for model, (kept, held) in zip(models, splits, strict=True):
                    fitted(model, one, kept)
                    shares = model.predict_proba(rows[held][:, :heads].reshape(-1, width))
                    shares = shares.reshape(len(held), heads, -1).mean(1)
                    place = np.searchsorted(model.classes_, labels[held])
                    loss -= float(np.log(np.maximum(shares[np.arange(len(held)), place], 1e-12)).sum())
                    right += int((model.classes_[shares.argmax(1)] == labels[held]).sum())
                    advance(1)
                if loss > least:  # weaker penalties take longest, and lead further away
                    break
                least, strength, top1 = loss, one, 100 * right / count
    model = fitted(regression(), strength)
    if model.n_iter_.max() >= MOST_ITERATIONS:
        log.info("the probe's fit ended at its %d iterations, before it had converged", MOST_ITERATIONS)
    weight, bias = model.coef_, model.intercept_
    if len(present) == 2:  # scikit-learn has one row for the second class
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    whole_weight, whole_bias = np.zeros((classes, width)), np.full(classes, bias.min() - 10.0)
    whole_weight[present], whole_bias[present] = weight / scale, bias - (weight / scale) @ mean
    return Probe(
        weight=whole_weight.astype(np.float32),
        bias=whole_bias.astype(np.float32),
        strength=strength,
        top1=top1,
        images=count,
    )


def _limited(features: Features, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As many images of each class as `MOST_WORK` allows, the first ones in a fixed random order."""
    count, _, heads, width = features.vectors.shape
    most = max(int(MOST_WORK / (heads * width * classes * classes)), LEAST_PER_CLASS)
    if np.bincount(features.labels).max() <= most or count * heads * width * classes <= MOST_WORK:
        return features.vectors, features.labels
    order = np.random.default_rng(0).permutation(count)
    order = order[np.argsort(features.labels[order], kind="stable")]
    ranks = np.arange(count) - np.searchsorted(features.labels[order], features.labels[order])
    used = np.sort(order[ranks < most])
    log.info("the probe is fitted to %s of the %s images, %d of a class at most", f"{len(used):,}", f"{count:,}", most)
    return features.vectors[used], features.labels[used]


@torch.inference_mode()
def _compute(
    model: nn.Module, samples: Samples, preprocess: Preprocess, device: torch.device, batch: int, workers: int
) -> tuple[list[NDArray[np.float32]], list[BadSample]]:
    found: list[NDArray[np.float32]] = []
    bad: list[BadSample] = []
    training = model.training
    try:
        model.eval()
        with reading(model) as read, progress_bar("Computing features", len(samples)) as advance:
            for images, labels, holes in batches_of(eval_loader(samples, preprocess, batch, workers)):
                advance(len(labels))
                bad += holes
                images = images[labels != NO_LABEL].to(device, memory_format=torch.channels_last)
                if not len(images):
                    continue
                views = []
                for view in (images, images.flip(3)):
                    read.clear()
                    model(view)
                    if len(read) != 1 or read[0].ndim not in (2, 3):
                        raise ConfigError(f"{type(model).__name__} does not read its features once: no probe")
                    views.append(read[0].float().cpu().reshape(len(images), -1, read[0].shape[-1]))
                found += list(torch.stack(views, 1).numpy())
    finally:
        model.train(training)
    return found, bad


def content_hashes(samples: Samples) -> tuple[list[bytes], list[BadSample]]:
    """The SHA-256 of each image's file; empty of one that cannot be read, which is among the bad ones."""

    def one(index: int) -> bytes | BadSample:
        try:
            return hashlib.sha256(samples.read_bytes(index)).digest()
        except DataError as error:
            return BadSample(samples.ids[index], str(error))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(one, range(len(samples))))
    return [x if isinstance(x, bytes) else b"" for x in found], [x for x in found if isinstance(x, BadSample)]


def key_of(model: nn.Module, info: WeightsInfo) -> str:
    """By the network before its classifier, its layout and tensors, and by what it sees of an image."""
    head = {id(p) for p in linear_head(model).parameters()}
    own = {name for name, p in model.named_parameters() if id(p) in head}
    found = hashlib.sha256(json.dumps([info.model, asdict(info.preprocess)]).encode())
    for name, tensor in model.state_dict().items():
        if name not in own:
            found.update(name.encode() + tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _read_cache(place: Path) -> dict[bytes, NDArray[np.float32]]:
    """What is kept; nothing if it cannot be read or is damaged."""
    try:
        kept = safetensors.torch.load(read_regular(place, MOST_CACHE_BYTES, WeightsError))
        hashes, vectors = kept["hashes"].numpy(), kept["vectors"].numpy()
        if hashes.shape != (len(vectors), 32) or vectors.ndim != 4 or not np.isfinite(vectors).all():
            return {}
        os.utime(place)
        return {one.tobytes(): vector for one, vector in zip(hashes, vectors, strict=True)}
    except (OSError, WeightsError, SafetensorError, KeyError):
        return {}


def _write_cache(place: Path, kept: dict[bytes, NDArray[np.float32]]) -> None:
    """Keeps features for the next time, and no more than `MOST_CACHE_BYTES` of all networks, the latest ones."""
    content = safetensors.torch.save(
        {
            "hashes": torch.from_numpy(np.frombuffer(b"".join(kept), np.uint8).reshape(-1, 32).copy()),
            "vectors": torch.from_numpy(np.stack(list(kept.values()))),
        }
    )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, content)
        files = sorted(place.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
        sizes = np.cumsum([path.stat().st_size for path in files])
        for path, size in zip(files[1:], sizes[1:], strict=True):
            if size > MOST_CACHE_BYTES:
                path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: the features are not kept (%s)", place, error.strerror)
