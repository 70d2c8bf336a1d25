"""Images that are nearly the same: saved anew, resized or slightly changed. Free of torch.

An image's sketch is its grey 16 x 16 miniature and 128 bits, the signs of its lowest frequencies (a perceptual hash:
Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"). Two images are compared by their
miniatures if one of eight bands of 16 bits is the same, so that a million need no comparison each with each.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

SIDE = 16
BANDS = 8
SAME = 0.99
"""Correlation of the miniatures from which two images count as one."""

LEAST_CONTRAST = 3.0
"""Standard deviation of the grey miniature, of 255, below which an image has nothing to compare."""

MOST_ALIKE = 200
"""A band that more images share says nothing of them."""


class Sketch(NamedTuple):
    """bands: (8,) uint16.  miniature: (256,) uint8, grey."""

    bands: NDArray[np.uint16]
    miniature: NDArray[np.uint8]


def sketch(image: Image.Image) -> Sketch:
    """Of an RGB image."""
    grey = image.convert("L")
    pixels = np.asarray(grey.resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
    low = dctn(pixels, norm="ortho")[:12, :12].ravel()[1:129]
    bands = np.packbits(low > np.median(low)).view(np.uint16)
    miniature = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX)).ravel()
    return Sketch(bands, miniature)


def near_pairs(bands: NDArray[np.uint16], miniatures: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pairs (P, 2) of nearly the same images, the smaller position first, in order.

    bands: (N, 8).  miniatures: (N, 256).
    """
    colours = miniatures.astype(np.float32)
    colours -= colours.mean(1, keepdims=True)
    contrast = colours.std(1)
    telling = np.flatnonzero(contrast >= LEAST_CONTRAST)
    found: list[NDArray[np.int64]] = []
    for band in range(BANDS):
        order = telling[np.argsort(bands[telling, band], kind="stable")]
        keys = bands[order, band]
        edges = np.flatnonzero(np.diff(keys, prepend=np.int64(-1), append=np.int64(-1)))
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if 1 < end - begin <= MOST_ALIKE:
                members = np.sort(order[begin:end])
                some = colours[members] / (contrast[members, None] * SIDE)
                one, other = np.nonzero(np.triu(some @ some.T >= SAME, 1))
                found.append(np.stack([members[one], members[other]], 1))
    return np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), dtype=np.int64)
