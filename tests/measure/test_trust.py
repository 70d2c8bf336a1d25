import itertools

import numpy as np
import pytest

from atnet.errors import ConfigError
from atnet.measure.trust import LEVELS, TRUST, fit_trust, least_confidence


@pytest.fixture
def answers():
    """Calibrated: an answer of confidence c is right with probability c."""
    drawn = np.random.default_rng(0)
    confidence = drawn.uniform(0.3, 1, 20_000)
    return confidence, drawn.uniform(size=20_000) < confidence


@pytest.mark.parametrize("accuracy", [0.8, 0.9, 0.95, 0.99])
def test_what_is_promised_holds_on_other_pictures(answers, accuracy):
    confidence, correct = answers
    facts = {TRUST: fit_trust(confidence[::2], correct[::2])}
    least, share = least_confidence(facts, accuracy)
    others = confidence[1::2] >= least
    found = correct[1::2][others].mean()
    assert abs(found - accuracy) < 2 * (accuracy * (1 - accuracy) / others.sum()) ** 0.5 + 0.005
    assert others.mean() == pytest.approx(share, abs=0.02)


def test_more_accuracy_asks_for_more_confidence(answers):
    levels = fit_trust(*answers)["levels"]
    assert [level for level, _, _ in levels] == list(LEVELS[: len(levels)])
    assert all(one[1] <= other[1] and one[2] >= other[2] for one, other in itertools.pairwise(levels))


def test_answers_that_are_equally_sure_go_together():
    confidence = np.array([0.9] * 10 + [0.5] * 10)
    correct = np.array([True] * 10 + [True] * 5 + [False] * 5)
    assert least_confidence({TRUST: fit_trust(confidence, correct)}, 0.9) == (0.9, 0.5)


def test_an_accuracy_between_two_levels_is_taken_as_the_higher(answers):
    facts = {TRUST: fit_trust(*answers)}
    assert least_confidence(facts, 0.945) == least_confidence(facts, 0.95)


@pytest.mark.parametrize(
    ("facts", "accuracy", "message"),
    [
        ({}, 0.9, "do not tell how sure"),
        ({TRUST: {"levels": [["x", 0.5, 1]]}}, 0.9, "do not tell how sure"),
        ({TRUST: {"levels": [[0.5, 0.4, 1.0]]}}, 0.9, "the most that could be promised is 0.5"),
        ({TRUST: {"levels": []}}, 0.9, "nothing could be promised"),
        ({}, 1.0, "out of range"),
        ({}, 95, "out of range"),
    ],
)
def test_what_cannot_be_promised_says_why(facts, accuracy, message):
    with pytest.raises(ConfigError, match=message):
        least_confidence(facts, accuracy)
