import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from atnet.errors import ConfigError, DataError
from atnet.sklearn import ATNetClassifier

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def labelled(five_digits):
    paths = sorted((five_digits / "train").rglob("*.png"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


def probe(**options):
    return ATNetClassifier(epochs=0, size=32, options={"data": {"workers": 0}, "batch": 32}, **options)


def test_paths_go_in_and_labels_come_out(labelled, five_digits):
    images, labels = labelled
    model = probe(random_state=3).fit(images, labels)
    assert model.classes_.tolist() == ["eight", "five", "nine", "seven", "six"]
    shares = model.predict_proba(images)
    assert shares.shape == (100, 5)
    assert shares.sum(1) == pytest.approx(1, abs=1e-5)
    assert (model.predict(images) == np.asarray(labels)).mean() > 0.8
    unseen = sorted((five_digits / "val").rglob("*.png"))
    assert model.score(unseen, [path.parent.name for path in unseen]) > 0.5
    assert model.run_.record["seed"] == 3


def test_pixels_are_taken_too_and_numbers_stay_numbers(labelled):
    images, labels = labelled
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in images]
    numbers = [{"eight": 8, "five": 5, "nine": 9, "seven": 7, "six": 6}[label] for label in labels]
    by_pixels, by_paths = probe().fit(np.stack(pixels), numbers), probe().fit(images, numbers)
    assert set(by_pixels.predict(pixels[::20])) <= {5, 6, 7, 8, 9}
    assert (by_pixels.predict(pixels) == by_paths.predict(images)).mean() > 0.9


def test_it_is_cloned_put_into_a_pipeline_and_cross_validated(labelled):
    images, labels = labelled
    model = clone(probe(held_out=0.1))
    assert model.get_params()["held_out"] == 0.1
    with pytest.raises(NotFittedError):
        model.predict(images)
    scores = cross_val_score(make_pipeline(FunctionTransformer(), model), np.array(images), labels, cv=2)
    assert scores.min() > 0.4


def test_what_cannot_be_learned_from_is_said(labelled):
    images, labels = labelled
    with pytest.raises(ConfigError, match="100 images and labels of shape"):
        probe().fit(images, labels[:50])
    with pytest.raises(DataError, match="image 0: pixels of type float64 and shape"):
        probe().fit(np.zeros((10, 8, 8, 3)), [0, 1] * 5)
