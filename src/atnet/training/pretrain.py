"""Pretraining without labels: the groups that a teacher sees in images become the classes of a taught training."""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from atnet.config import Config
from atnet.data.samples import Samples
from atnet.data.sources import open_any
from atnet.device import pick_device
from atnet.errors import ConfigError
from atnet.files import cache_folder, csv_table, write_whole
from atnet.models.load import load_any, to_safetensors
from atnet.progress import working
from atnet.training.loop import Run, train_config
from atnet.training.plan import configure
from atnet.training.probe import features_of, linear_head

IMAGES_A_GROUP, MOST_GROUPS = 20, 1000
"""Where no number of groups is asked for: so many images in each, and as many groups at most."""

LEAST_IMAGES = 4
"""Of a group: with fewer its images join the nearest other one."""

HELD_OUT = 0.05
SURENESS = 0.7
"""The mean probability that a teacher gives the likeliest group: it says how alike the others are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """Groups of N images by a teacher's features.

    labels: (N,).  weight, bias: (groups, features) and (groups,), a linear classifier of features that gives the
    nearest middle the highest logit.
    """

    labels: NDArray[np.int64]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def pretrain(
    data: str | dict[str, Any], teacher: str, *, groups: int = 0, out: str | Path | None = None, **options: Any
) -> Run:
    """Trains a network on images without labels to see in them what a teacher sees; a run whose weights are a start.

    data: a source of image files, or options of it: {"source": FOLDER, "size": 128}; labels are not looked at.
    teacher: what names a network.
    groups: of images, each a class of the training; 0: one for 20 images, 1,000 at most.
    out, options: as of `train`.  Raises what `train` does.
    """
    return pretrain_config(configure(data=data, teacher=[teacher], **options), groups, out)


def pretrain_config(config: Config, groups: int = 0, out: str | Path | None = None) -> Run:
    """As `pretrain`, by a configuration."""
    return train_config(prepare(config, groups), out=out)


def prepare(config: Config, groups: int = 0) -> Config:
    """The configuration of the taught training on groups of the images, whose list and teacher are put into the cache.

    Raises ConfigError if there is not one teacher, or the images are in no files of their own.
    """
    if len(config.teacher) != 1:
        raise ConfigError("images without labels are grouped by what one network sees: give one --teacher NAME")
    if not config.data.source:
        raise ConfigError("nothing to learn from: give --data FOLDER, one with images in it, in class folders or not")
    parts = list(open_any(config.data.source).values())
    files = [part.locate(i) for part in parts for i in range(len(part))]
    if not os.path.isfile(files[0]):
        raise ConfigError(f"{config.data.source}: images in archives are not grouped: unpack them into a folder")
    device = pick_device(config.device)
    network, info = load_any(config.teacher[0], str(device))
    vectors, kept = _features(network, info, parts, device, config)
    wanted = groups or min(MOST_GROUPS, len(kept) // IMAGES_A_GROUP)
    if not 2 <= wanted <= len(kept) // LEAST_IMAGES:
        raise ConfigError(
            f"--groups {wanted} of {len(kept):,} images: use 2 to {len(kept) // LEAST_IMAGES:,}, or give more images"
        )
    with working(f"Grouping {len(kept):,} images"):
        found = group(vectors, wanted)
    names = tuple(f"group {number:0{len(str(wanted))}}" for number in range(len(found.bias)))
    rows = [{"path": files[i], "label": names[label]} for i, label in zip(kept, found.labels.tolist(), strict=True)]
    listed = csv_table(rows).encode()
    network.reset_classifier(len(names))  # type: ignore[operator]
    head = linear_head(network)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(found.weight))
        head.bias.copy_(torch.from_numpy(found.bias))
    taught = to_safetensors(network.state_dict(), dataclasses.replace(info, classes=names, class_names=names, facts={}))
    place = cache_folder() / "pretraining" / hashlib.sha256(listed + taught).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    write_whole(place / "images.csv", listed)
    write_whole(place / "teacher.safetensors", taught)
    data = dataclasses.replace(config.data, source=str(place / "images.csv"), classes="", val_share=HELD_OUT)
    distill = dataclasses.replace(config.distill, share=1.0, temperature=1.0)
    teacher = (str(place / "teacher.safetensors"),)
    return dataclasses.replace(config, data=data, distill=distill, teacher=teacher, choose=False)


def group(vectors: NDArray[np.float32], count: int) -> Groups:
    """Groups of vectors (N, features), count of them or fewer, by k-means of them at unit length.

    The classifier's logits are those of normal distributions of one width around the middles; the width is such that
    the likeliest group has a probability of 0.7 in the mean.
    Source: Caron et al. 2018, "Deep Clustering", for groups as classes.
    """
    from sklearn.cluster import MiniBatchKMeans

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    length = float(np.median(lengths))
    vectors = vectors / length
    means = MiniBatchKMeans(count, n_init=3, random_state=0, batch_size=4096).fit(vectors)
    middles = means.cluster_centers_[np.bincount(means.labels_, minlength=count) >= LEAST_IMAGES]
    logits = vectors @ middles.T - (middles**2).sum(1) / 2
    low, high = 1e-3, 1e6
    for _ in range(60):
        scale = float(np.sqrt(low * high))
        sure = float(np.exp((scale * logits).max(1) - logsumexp(scale * logits, axis=1)).mean())
        low, high = (scale, high) if sure < SURENESS else (low, scale)
    return Groups(
        labels=softmax(scale * logits, axis=1).argmax(1),
        weight=(scale * middles / length).astype(np.float32),
        bias=(-scale * (middles**2).sum(1) / 2).astype(np.float32),
    )


def _features(
    network: torch.nn.Module, info: Any, parts: list[Samples], device: torch.device, config: Config
) -> tuple[NDArray[np.float32], list[int]]:
    """Of each image that can be read, in the mean of both views, and its place among all."""
    vectors, kept, begin = [], [], 0
    for part in parts:
        found = features_of(network, part, info, device, batch=config.batch or 64, workers=config.data.workers)
        kept += [begin + i for i in found.places(part)]
        vectors.append(found.vectors.mean((1, 2)))
        begin += len(part)
    return np.concatenate(vectors), kept
