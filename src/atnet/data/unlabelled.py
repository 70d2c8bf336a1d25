"""Images without labels, which join the training: what a teacher says of them is all that is learned from them."""

import bisect
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from atnet.data.duplicates import Sketch, near_pairs, sketch
from atnet.data.samples import Names, Samples
from atnet.data.sources import open_any
from atnet.errors import DataError
from atnet.progress import counted, progress_bar

UNLABELLED = -2
"""The label of an image without one."""

log = logging.getLogger("atnet")


@dataclass(frozen=True)
class Joined:
    """A store of several sets of images, one after the other."""

    parts: tuple[Samples, ...]
    name: str

    def locate(self, image: str, place: int) -> str:
        samples, index = self._at(place)
        return samples.locate(index)

    def read(self, image: str, place: int) -> bytes:
        samples, index = self._at(place)
        return samples.read_bytes(index)

    def _at(self, place: int) -> tuple[Samples, int]:
        part = bisect.bisect_right(self._begins, place) - 1
        return self.parts[part], place - self._begins[part]

    @cached_property
    def _begins(self) -> list[int]:
        begins: list[int] = np.cumsum([0, *map(len, self.parts)]).tolist()
        return begins


def with_unlabelled(labelled: Samples, sources: tuple[str, ...], held_out: Samples) -> Samples:
    """The labelled images, and after them those of the sources, whose labels, if they have any, are not looked at.

    held_out: images to validate on: what is nearly the same as one of them, or as a labelled one, is left out.
    Raises DataError if a source has no images.
    """
    found = [part for source in sources for part in open_any(source).values()]
    known = [labelled, held_out]
    sketches = _sketches([*known, *found])
    count = len(labelled) + len(held_out)
    copies = set()
    if sketches:
        places = np.array(sorted(sketches), dtype=np.int64)
        bands = np.stack([sketches[place].bands for place in places.tolist()])
        miniatures = np.stack([sketches[place].miniature for place in places.tolist()])
        for one, other in places[near_pairs(bands, miniatures)].tolist():
            if one < count <= other:
                copies.add(other)
    kept, begin = [], count
    for part in found:
        own = [i for i in range(len(part)) if begin + i not in copies]
        kept.append(part.only(own) if len(own) < len(part) else part)
        begin += len(part)
    if copies:
        log.info(
            "%s without labels left out: copies of images that have one, or that are validated on",
            counted(len(copies), "image"),
        )
    parts = (labelled, *kept)
    name = ", ".join(part.store.name for part in parts)
    ids = Names(
        identity if number == 0 else f"{part.store.name}/{identity}"
        for number, part in enumerate(parts)
        for identity in part.ids
    )
    labels = np.concatenate([labelled.labels, np.full(sum(map(len, kept)), UNLABELLED, np.int64)])
    return replace(labelled, store=Joined(parts, name), ids=ids, labels=labels, places=np.arange(len(ids)))


def _sketches(parts: list[Samples]) -> dict[int, Sketch]:
    """Of each image that can be read, by its place in all of them."""
    places = [(part, i) for part in parts for i in range(len(part))]
    with progress_bar("Looking for copies", len(places)) as advance, ThreadPoolExecutor(os.cpu_count()) as threads:

        def look(number: int) -> tuple[int, Sketch | None]:
            part, i = places[number]
            try:
                return number, sketch(part.read(i))
            except DataError:
                return number, None
            finally:
                advance(1)

        return {number: found for number, found in threads.map(look, range(len(places))) if found is not None}
