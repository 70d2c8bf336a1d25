"""A classifier with scikit-learn's interface, on paths of images or their pixels: for pipelines and cross_val_score."""

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from atnet.errors import ConfigError, DataError
from atnet.files import csv_table
from atnet.inference.prediction import Prediction, predict_each
from atnet.training.loop import train


class ATNetClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Trains as `atnet.train` does, with its defaults.

    model, weights, epochs: as the options of these names; epochs None follows from the number of images, 0 is a linear
    probe.  size: side of the input in pixels, None that of the weights.
    held_out: share of the images that the training validates on.
    out: the run's folder; None: a temporary one, which goes with the estimator.
    options: further ones of `atnet.train`, nested as a recipe is: {"augment": {"flip": 0.0}}.
    random_state: the seed.

    Images are paths, or arrays of pixels: uint8 (H, W, 3), or (H, W) in grey, of any sizes.
    After `fit`, run_ is what `atnet.train` returned, and classes_ are the labels.
    """

    def __init__(
        self,
        model: str = "xxxs",
        *,
        weights: str = "auto",
        epochs: int | None = None,
        size: int | None = None,
        held_out: float = 0.2,
        out: str | Path | None = None,
        options: dict[str, Any] | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.weights = weights
        self.epochs = epochs
        self.size = size
        self.held_out = held_out
        self.out = out
        self.options = options
        self.random_state = random_state

    def fit(self, images: Sequence[Any] | NDArray[Any], labels: Sequence[Any] | NDArray[Any]) -> "ATNetClassifier":
        """Trains on images and their labels. Raises ConfigError, DataError or TrainingError as `atnet.train` does."""
        labels = np.asarray(labels)
        if labels.ndim != 1 or len(labels) != len(images):
            raise ConfigError(f"{len(images)} images and labels of shape {labels.shape}: give one label for each image")
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        folder = Path(tempfile.mkdtemp(prefix="atnet-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        width = len(str(len(self.classes_)))
        rows = [
            {"path": path, "label": f"class_{number:0{width}}"}
            for path, number in zip(_as_files(images, folder), numbers.tolist(), strict=True)
        ]
        (folder / "images.csv").write_text(csv_table(rows), encoding="utf-8", newline="")
        options = dict(self.options or {})
        data = {"source": str(folder / "images.csv"), "val_share": self.held_out, **options.pop("data", {})}
        if self.size is not None:
            data["size"] = self.size
        if self.epochs is not None:
            options["epochs"] = self.epochs
        out = Path(self.out) if self.out is not None else folder / "run"
        self.run_ = train(model=self.model, weights=self.weights, seed=self.random_state, data=data, out=out, **options)
        return self

    def predict_proba(self, images: Sequence[Any] | NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities (N, classes) in the order of classes_. Raises DataError naming an image that cannot be read."""
        if not hasattr(self, "run_"):
            raise NotFittedError("fit the classifier before it predicts")
        found = np.zeros((len(images), len(self.classes_)))
        with tempfile.TemporaryDirectory(prefix="atnet-") as folder:
            paths = _as_files(images, Path(folder))
            for place, answer in enumerate(predict_each(paths, self.run_.folder, top=len(self.classes_))):
                if not isinstance(answer, Prediction):
                    raise answer.error
                for name, _, probability in answer.top:
                    found[place, int(name.rpartition("_")[2])] = probability
        return found

    def predict(self, images: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
        """The likeliest label of each image."""
        likeliest = self.predict_proba(images).argmax(1)
        labels: NDArray[Any] = self.classes_[likeliest]
        return labels


def _as_files(images: Sequence[Any] | NDArray[Any], folder: Path) -> list[str]:
    """Absolute paths of the images; pixels become PNG files in the folder."""
    found = []
    for number, image in enumerate(images):
        if isinstance(image, str | Path):
            path = Path(image).expanduser().resolve()
            if path.is_dir():
                raise DataError(f"{path}: a folder, and an image is asked for")
        else:
            pixels = np.asarray(image)
            if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
                raise DataError(
                    f"image {number}: pixels of type {pixels.dtype} and shape {pixels.shape}: give uint8 (H, W, 3) or "
                    "(H, W), or a path"
                )
            path = folder / f"{number:08}.png"
            Image.fromarray(pixels).save(path)
        found.append(str(path))
    return found
