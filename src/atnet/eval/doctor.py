"""A dataset's health: what would corrupt a result, and what is worth knowing, before a day is lost."""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atnet.config import Config
from atnet.data.classes import look_alikes
from atnet.data.decode import NEARLY_BLACK, SUFFIXES, Facts, brightest_of, decode, describe
from atnet.data.duplicates import Sketch, near_pairs, sketch
from atnet.data.folders import Folder, is_hidden, repeated_folders, stray_images, unread_images
from atnet.data.samples import Samples, some
from atnet.data.sources import PARTS, Mismatch, open_whole, split
from atnet.errors import DataError
from atnet.progress import counted, progress_bar

HUGE_SIDE, HUGE_BYTES = 6000, 20_000_000
SMALL_SIDE = 32
IMBALANCE = 10
SHIFT = 0.1
"""Half the sum of the differences of the classes' shares between the parts, from which it is worth a word."""

Grave = Literal["wrong", "odd", "fine"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found.

    grave: wrong would corrupt a result, odd is worth a look, fine is good to know.
    what: a sentence.  remedy: another, or "".  examples: a line each.
    """

    grave: Grave
    what: str
    remedy: str = ""
    examples: tuple[str, ...] = ()
    pairs: tuple[tuple[str, int, str, int], ...] = ()
    """Of duplicates: part and position of the one, part and position of the other."""


MANY = 20_000
"""Images to train on, from which on a larger network from random weights is advised."""

LEAST_OF_PHOTOS, SIZE_OF_GENERAL = 96, 128
"""Sides in pixels: smaller images are hardly photos; what the weights that come with AT-Net are for."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to train with, beside the defaults.  size: in pixels; 0: that of the general weights."""

    model: str
    size: int
    options: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        model = (f"--model {self.model}",) if self.model != Config.model else ()
        size = (f"--data.size {self.size}",) if self.size else ()
        return " ".join((*model, *size, *self.options))

    @property
    def settings(self) -> dict[str, Any]:
        """The same for `atnet.train`, but for the options."""
        return {"model": self.model, "data": {"size": self.size} if self.size else {}}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was found in a source, the gravest first."""

    source: str
    parts: dict[str, Samples]
    findings: tuple[Finding, ...]
    advice: Advice
    sides: NDArray[np.int64] = field(repr=False)
    """Width and height of each image that can be read, (N, 2)."""

    @property
    def healthy(self) -> bool:
        """Whether nothing found would corrupt a result."""
        return all(finding.grave != "wrong" for finding in self.findings)


def examine(
    source: str, *, classes: str = "", mismatch: Mismatch = "error", val_share: float = 0.2, max_bad: float = 0.01
) -> Diagnosis:
    """Reads and decodes every image of a source, and compares each with all others.

    source, classes, mismatch, val_share, max_bad: as training takes them.
    Raises DataError if the source is none.
    """
    mismatches = []
    try:
        whole = open_whole(source, classes, mismatch)
    except DataError as error:
        whole = open_whole(source, classes, "ignore")
        mismatches.append(Finding(grave="wrong", what=str(error)))
    parts = whole if "val" in whole else dict(zip(("train", "val"), split(whole[""], val_share), strict=True))
    looks = {part: _look_at_all(part, samples) for part, samples in parts.items()}
    findings = [
        *mismatches,
        *_damaged(parts, looks, max_bad),
        *_duplicates(parts, looks, parted="val" in whole),
        *_classes(parts),
        *_odd(parts, looks),
        *_folders(parts),
    ]
    sides = np.array([look.sides for found in looks.values() for look in found if isinstance(look, _Look)])
    order = {"wrong": 0, "odd": 1, "fine": 2}
    return Diagnosis(
        source=source,
        parts=parts,
        findings=tuple(sorted(findings, key=lambda finding: order[finding.grave])),
        advice=_advise(parts["train"], sides.reshape(-1, 2)),
        sides=sides.reshape(-1, 2),
    )


@dataclass(frozen=True)
class _Look:
    digest: bytes
    size: int
    facts: Facts
    sketch: Sketch

    @property
    def sides(self) -> tuple[int, int]:
        return self.facts.width, self.facts.height


def _look_at_all(part: str, samples: Samples) -> "list[_Look | str]":
    """Each image's look, or why it cannot be read."""

    def look(index: int) -> "_Look | str":
        advance(1)
        try:
            content = samples.read_bytes(index)
            image = decode(content, samples.locate(index))
            facts = describe(content, Path(samples.ids[index]).suffix.lower(), brightest_of(image))
        except DataError as error:
            return str(error)
        return _Look(hashlib.blake2b(content, digest_size=16).digest(), len(content), facts, sketch(image))

    with progress_bar(f"Examining {part}", len(samples)) as advance, ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(look, range(len(samples))))


def _damaged(parts: dict[str, Samples], looks: "dict[str, list[_Look | str]]", max_bad: float) -> Iterable[Finding]:
    for part, found in looks.items():
        reasons = [look for look in found if isinstance(look, str)]
        if not reasons:
            continue
        share = len(reasons) / len(found)
        wrong = part == "val" or share > max_bad
        yield Finding(
            grave="wrong" if wrong else "odd",
            what=f"{len(reasons):,} of {len(found):,} {_called(part)} images cannot be read ({share:.2%})",
            remedy="Mend or remove them: a figure is of the images that can be read."
            if part == "val"
            else "Training skips and lists them"
            + (f", and stops, for they are more than --data.max-bad {max_bad:g} allows." if wrong else "."),
            examples=tuple(reasons),
        )
    if not any(isinstance(look, str) for found in looks.values() for look in found):
        total = sum(map(len, parts.values()))
        yield Finding(grave="fine", what=f"All {total:,} images can be read")


def _duplicates(parts: dict[str, Samples], looks: "dict[str, list[_Look | str]]", parted: bool) -> Iterable[Finding]:
    """parted: whether the source itself says what is for validation."""
    everything = ((part, i, look) for part, found in looks.items() for i, look in enumerate(found))
    places = [(part, i, look) for part, i, look in everything if isinstance(look, _Look)]
    alike: defaultdict[bytes, list[int]] = defaultdict(list)
    for number, (_, _, look) in enumerate(places):
        alike[look.digest].append(number)
    exact = {(group[0], other) for group in alike.values() for other in group[1:]}
    firsts = [group[0] for group in alike.values()]
    if firsts:
        bands = np.stack([places[number][2].sketch.bands for number in firsts])
        miniatures = np.stack([places[number][2].sketch.miniature for number in firsts])
        near = {(firsts[one], firsts[other]) for one, other in near_pairs(bands, miniatures).tolist()}
    else:
        near = set()
    for pairs, how in ((exact, "the same file"), (near, "nearly the same image")):
        kinds: defaultdict[str, list[tuple[str, int, str, int]]] = defaultdict(list)
        for one, other in sorted(pairs):
            (part, i, _), (part2, k, _) = places[one], places[other]
            same_class = parts[part].labels[i] == parts[part2].labels[k]
            kind = "across" if part != part2 else "within" if same_class else "contradiction"
            if part != part2 and not same_class:
                kinds["contradiction"].append((part, i, part2, k))
            kinds[kind].append((part, i, part2, k))
        yield from _pairs_found(parts, kinds, how, parted)
    if not exact and not near:
        yield Finding(grave="fine", what="No image is there twice")


def _pairs_found(
    parts: dict[str, Samples], kinds: "dict[str, list[tuple[str, int, str, int]]]", how: str, parted: bool
) -> Iterable[Finding]:
    certain = how == "the same file"
    said: dict[str, tuple[Grave, str, str]] = {
        "across": (
            "wrong",
            "a training and a validation image are",
            "Remove one of each: the figures would be of images that were trained on."
            if parted
            else "Remove one of each, or give a validation part of your own: the split is by name, and does not know.",
        ),
        "contradiction": (
            "wrong" if certain else "odd",
            "images of two classes are",
            "Keep the one in its right class: no network can have both right.",
        ),
        "within": ("odd", "images of one class are", "They count twice; remove one of each if that is not meant."),
    }
    for kind, (grave, who, remedy) in said.items():
        pairs = kinds.get(kind, [])
        if pairs:
            yield Finding(
                grave=grave,
                what=f"{counted(len(pairs), 'time')} {who} {how}",
                remedy=remedy,
                examples=tuple(f"{parts[a].locate(i)}  =  {parts[b].locate(k)}" for a, i, b, k in pairs),
                pairs=tuple(pairs),
            )


def _classes(parts: dict[str, Samples]) -> Iterable[Finding]:
    train, val = parts["train"], parts["val"]
    counts = np.bincount(train.labels, minlength=len(train.classes))
    counts_val = np.bincount(val.labels, minlength=len(train.classes))
    for part, found in (("training", counts), ("validation", counts_val)):
        empty = [name for name, count in zip(train.classes, found, strict=True) if not count]
        if empty:
            yield Finding(
                grave="wrong",
                what=f"No {part} images of {counted(len(empty), 'class')}",
                remedy="Add some, or remove the classes: the figures would not be of all of them.",
                examples=tuple(empty),
            )
    least, most = int(counts[counts > 0].min()), int(counts.max())
    if most >= IMBALANCE * least:
        rare, common = (train.classes[int(i)] for i in (np.where(counts > 0, counts, most).argmin(), counts.argmax()))
        yield Finding(
            grave="odd",
            what=f"The classes are uneven: {least:,} training images of {rare!r}, {most:,} of {common!r}",
            remedy="Try --data.balance loss, and look at balanced accuracy rather than top-1.",
        )
    alike = look_alikes(train.classes)
    if alike:
        yield Finding(
            grave="odd",
            what=f"{counted(len(alike), 'time')} classes have names that differ only in case, spaces or the like",
            remedy="Give them one name if they are one class.",
            examples=tuple("  =  ".join(map(repr, group)) for group in alike),
        )
    few = int((counts < 20).sum())
    if few:
        yield Finding(
            grave="odd",
            what=f"Fewer than 20 training images of {few:,} of {counted(len(counts), 'class')}",
            remedy="Start from weights: atnet train --weights W --data FOLDER",
        )
    shift = float(np.abs(counts / counts.sum() - counts_val / max(counts_val.sum(), 1)).sum() / 2)
    if shift > SHIFT:
        yield Finding(
            grave="odd",
            what=f"The classes' shares differ between the parts, by {shift:.0%} of the images",
            remedy="Top-1 will be of another mix of classes than the training's; balanced accuracy is of neither.",
        )


def _odd(parts: dict[str, Samples], looks: "dict[str, list[_Look | str]]") -> Iterable[Finding]:
    kinds: Counter[str] = Counter()
    odd: defaultdict[str, list[str]] = defaultdict(list)
    total = 0
    for part, found in looks.items():
        for i, look in enumerate(found):
            if not isinstance(look, _Look):
                continue
            total += 1
            kinds[look.facts.format] += 1
            where = parts[part].locate(i)
            for what in look.facts.odd:
                odd[what].append(where)
            width, height = look.sides
            if max(width, height) > HUGE_SIDE or look.size > HUGE_BYTES:
                odd["huge"].append(f"{where}: {width} x {height} pixels, {look.size / 1e6:.1f} MB")
            if min(width, height) < SMALL_SIDE:
                odd["very small"].append(f"{where}: {width} x {height} pixels")
    if len(kinds) > 1:
        yield Finding(grave="fine", what="Formats: " + ", ".join(f"{n:,} {name}" for name, n in kinds.most_common()))
    for what, places in sorted(odd.items(), key=lambda item: -len(item[1])):
        if what == "very small" and len(places) > total / 2:
            continue  # a data set of small images
        remedy = ""
        if what == "huge":
            remedy = "`atnet pack` makes them small once, for all epochs."
        elif what.startswith(f"{NEARLY_BLACK},"):
            remedy = "Scale their values to all 16 bits, or save them with 8."
        grave: Grave = "odd" if what in ("huge", "very small") or what.startswith(("a ", NEARLY_BLACK)) else "fine"
        yield Finding(
            grave=grave, what=f"{counted(len(places), 'image')}: {what}", remedy=remedy, examples=tuple(places)
        )


def _folders(parts: dict[str, Samples]) -> Iterable[Finding]:
    """Folders that are no classes, and images that are not taken."""
    hidden: list[str] = []
    empty: list[str] = []
    unread: list[str] = []
    stray: list[str] = []
    repeated: dict[str, list[str]] = {}
    for root in sorted({samples.store.root for samples in parts.values() if isinstance(samples.store, Folder)}):
        own = [name for samples in parts.values() if samples.store == Folder(root) for name in samples.ids]
        used = {name.split(os.sep)[0] for name in own}
        unread += [str(root / name) for name in unread_images(root)]
        if any(os.sep in name for name in own):  # else it is ImageNet's validation part, without class folders
            stray += [str(root / name) for name in stray_images(root)]
        repeated[str(root)] = repeated_folders(own)
        for path in sorted(root.iterdir()):
            if path.is_dir() and is_hidden(path.name):
                hidden.append(str(path))
            elif path.is_dir() and path.name not in used:
                empty.append(str(path))
    roots = {part: samples.store.root for part, samples in parts.items() if isinstance(samples.store, Folder)}
    if len(set(roots.values())) == 2 and any(root.name.lower() not in PARTS[part] for part, root in roots.items()):
        yield Finding(
            grave="odd",
            what=f"The parts are told by a word of their names: {roots['train'].name!r} is for training, "
            f"{roots['val'].name!r} for validation",
            remedy="Name them train and val, if so it is, or give another folder.",
        )
    if empty:
        yield Finding(
            grave="odd",
            what=f"No images in {counted(len(empty), 'folder')}, so they are no classes",
            examples=tuple(empty),
        )
    if unread:
        kinds = Counter(Path(name).suffix.lower() or "without suffix" for name in unread)
        yield Finding(
            grave="odd",
            what=f"Left out: {counted(len(unread), 'file')} that look like images "
            f"({', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common(5))})",
            remedy=f"Convert them, or give them a suffix that is read: {', '.join(sorted(SUFFIXES))}.",
            examples=tuple(unread),
        )
    if stray:
        yield Finding(
            grave="odd",
            what=f"Left out: {counted(len(stray), 'image')} in no class folder",
            remedy="Sort them into a folder for each class, or move them away.",
            examples=tuple(stray),
        )
    for where, names in repeated.items():
        if names:
            yield Finding(
                grave="odd",
                what=f"The folders taken for classes all hold the same folders: {some(names)}",
                remedy="If they are parts, name them train and val.",
                examples=(where,),
            )
    if hidden:
        yield Finding(grave="fine", what=f"Left out: {counted(len(hidden), 'hidden folder')}", examples=tuple(hidden))


def _advise(train: Samples, sides: NDArray[np.int64]) -> Advice:
    """Rules of thumb: a resolution that most images have, but for photos that are few that of the general weights; a
    size of network for the count of images.
    """
    shorter = float(np.median(sides.min(1))) if len(sides) else 224.0
    size = int(min(224, max(32, 32 * math.floor(shorter / 32))))
    counts = np.bincount(train.labels, minlength=len(train.classes))
    uneven = int(counts.max()) >= IMBALANCE * max(int(counts.min()), 1)
    options = ("--data.balance loss",) if uneven else ()
    if len(train) < MANY and size >= LEAST_OF_PHOTOS:
        return Advice(model="xxxs", size=0 if size >= SIZE_OF_GENERAL else size, options=options)
    model = "xxxs" if len(train) < MANY else "xs" if len(train) < 10 * MANY else "s"
    return Advice(model=model, size=size, options=options)


def _called(part: str) -> str:
    return {"train": "training", "val": "validation"}[part]
