"""Labelled images: what each is called, which class it is, and where its bytes are. Free of torch."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atnet.data.classes import class_order
from atnet.data.decode import EncodedImage, decode, open_encoded
from atnet.errors import DataError


class Store(Protocol):
    """Where the bytes of images are."""

    @property
    def name(self) -> str:
        """What messages call it: a folder, a list, an address."""

    def locate(self, image: str, place: int) -> str:
        """What messages call an image."""

    def read(self, image: str, place: int) -> bytes:
        """An image's bytes. Raises DataError naming it if they cannot be had."""


class Names(Sequence[str]):
    """Strings in two arrays: a million of them are no million objects, which worker processes would copy one by one."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return Names(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        end = int(self._ends[index])
        begin = int(self._ends[index - 1]) if index % len(self) else 0
        return self._text[begin:end].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        text, begin = self._text.tobytes(), 0
        for end in self._ends.tolist():
            yield text[begin:end].decode("utf-8", "surrogateescape")
            begin = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> bytes:
        """A hash of the strings in their order."""
        return hashlib.sha256(self._ends.tobytes() + self._text.tobytes()).digest()


@dataclass(frozen=True)
class Samples:
    """Labelled images in one order, that of label and id, whatever they come from.

    ids: what each image is called in its source: a path, or a row's number.
    labels: positions in classes.  places: where in the store each is.
    """

    store: Store
    classes: tuple[str, ...]
    ids: Names
    labels: NDArray[np.int64]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Image.Image:
        """The image as RGB. Raises DataError naming it if it cannot be read."""
        return decode(self.read_bytes(index), self.locate(index))

    def open(self, index: int) -> AbstractContextManager[EncodedImage]:
        """The image, to be decoded for a crop. Raises DataError naming it if it can't be read, while it is open too."""
        return open_encoded(self.read_bytes(index), self.locate(index))

    def read_bytes(self, index: int) -> bytes:
        """The image's file as it is. Raises DataError naming it if it cannot be had."""
        return self.store.read(self.ids[index], int(self.places[index]))

    def locate(self, index: int) -> str:
        """What messages call the image."""
        return self.store.locate(self.ids[index], int(self.places[index]))

    def only(self, keep: Sequence[int]) -> "Samples":
        """The images at the given positions."""
        ids = Names(self.ids[i] for i in keep)
        some = np.asarray(keep, dtype=np.int64)
        return dataclasses.replace(self, ids=ids, labels=self.labels[some], places=self.places[some])

    @property
    def digest(self) -> str:
        """A hash of the images' names and labels in their order, not of their pixels."""
        return hashlib.sha256(Names(self.classes).digest + self.ids.digest + self.labels.tobytes()).hexdigest()

    def relabel(self, classes: tuple[str, ...], ignore: bool = False) -> "Samples":
        """The same images labelled by name in another class list.

        ignore: leave images of a class that is not in it out.  Else they are a DataError.
        """
        place = {name: i for i, name in enumerate(classes)}
        unknown = [name for name in self.classes if name not in place]
        samples = self
        if unknown and ignore:
            known = np.array([name in place for name in self.classes])
            samples = self.only(np.flatnonzero(known[self.labels]).tolist())
        elif unknown:
            raise DataError(
                f"{self.store.name}: {some(unknown)} not among the {len(classes)} known classes "
                f"({some(classes)}): rename or remove it, or leave its images out with --data.mismatch ignore, of "
                "`atnet eval` --mismatch ignore"
            )
        position = np.array([place.get(name, -1) for name in self.classes], dtype=np.int64)
        labels = position[samples.labels]
        if np.any(np.diff(labels) < 0):
            order = np.argsort(labels, kind="stable")
            samples, labels = samples.only(order.tolist()), labels[order]
        return dataclasses.replace(samples, classes=classes, labels=labels)


def collect(
    store: Store, ids: Sequence[str], classes: Sequence[str], places: NDArray[np.int64] | None = None
) -> Samples:
    """Images in the order of class and id.

    classes: the class of each.  places: where in the store each is; their position here if None.
    """
    listed = class_order(set(classes))
    position = {name: i for i, name in enumerate(listed)}
    labels = np.fromiter((position[name] for name in classes), np.int64, len(classes))
    return in_order(store, listed, ids, labels, places)


def in_order(
    store: Store,
    classes: tuple[str, ...],
    ids: Sequence[str],
    labels: NDArray[np.int64],
    places: NDArray[np.int64] | None = None,
) -> Samples:
    """Images in the order of label and id; the arguments are in any common one."""
    places = np.arange(len(ids)) if places is None else places
    # Without a list of pairs, which of millions of images would be most of the memory.
    if any(one > other for one, other in pairwise(zip(labels.tolist(), ids, strict=True))):
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
        order = order[np.argsort(labels[order], kind="stable")]
        ids, labels, places = [ids[i] for i in order], labels[order], places[order]
    return Samples(store, classes, Names(ids), labels, places)


def hash_of(image: str) -> bytes:
    """By which images are mixed and held out: the same in every run, whatever the others."""
    return hashlib.sha256(Path(image).as_posix().encode("utf-8", "surrogateescape")).digest()


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
