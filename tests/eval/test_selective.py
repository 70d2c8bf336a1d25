import contextlib
import itertools

import numpy as np
import pytest

from atnet.errors import ConfigError
from atnet.eval.selective import LEVELS, TRUST, fit_trust, least_confidence


@pytest.fixture
def answers():
    """Calibrated: an answer of confidence c is right with probability c."""
    drawn = np.random.default_rng(0)
    confidence = drawn.uniform(0.3, 1, 20_000)
    return confidence, drawn.uniform(size=20_000) < confidence


@pytest.mark.parametrize("accuracy", [0.8, 0.9, 0.95, 0.98])
def test_what_is_promised_holds_on_other_images(answers, accuracy):
    confidence, correct = answers
    facts = {TRUST: fit_trust(confidence[::2], correct[::2])}
    least, share = least_confidence(facts, accuracy)
    others = confidence[1::2] >= least
    found = correct[1::2][others].mean()
    error = (accuracy * (1 - accuracy) / others.sum()) ** 0.5
    assert accuracy - error < found < accuracy + 5 * error
    assert others.mean() == pytest.approx(share, abs=0.02)


def test_more_accuracy_asks_for_more_confidence(answers):
    levels = fit_trust(*answers)["levels"]
    assert [level for level, _, _ in levels] == list(LEVELS[: len(levels)])
    assert all(one[1] <= other[1] and one[2] >= other[2] for one, other in itertools.pairwise(levels))


def test_answers_that_are_equally_sure_go_together():
    confidence = np.array([0.9] * 100 + [0.5] * 100)
    correct = np.array([True] * 100 + [True] * 50 + [False] * 50)
    assert least_confidence({TRUST: fit_trust(confidence, correct)}, 0.9) == (0.9, 0.5)


def test_a_promise_takes_as_many_images_as_bear_it_out():
    """59 right answers of 59: of an accuracy of 95% they had a probability of 0.95 to the 59, 4.85%; 58 had 5.1%."""
    for count, most in ((59, 0.95), (58, 0.94)):
        sure = np.linspace(0.9, 0.8, count)
        assert fit_trust(sure, np.ones(count, bool))["levels"][-1][0] == most


def test_a_promise_is_kept_in_nineteen_of_twenty_draws():
    drawn, kept = np.random.default_rng(1), []
    for _ in range(200):
        confidence = drawn.uniform(0.3, 1, 1000)
        facts = {TRUST: fit_trust(confidence, drawn.uniform(size=1000) < confidence)}
        with contextlib.suppress(ConfigError):  # a promise that is not made is not broken
            kept.append((least_confidence(facts, 0.9)[0] + 1) / 2 >= 0.9)  # the accuracy of all answers that are surer
    assert len(kept) > 150
    assert np.mean(kept) > 0.9


def test_an_accuracy_between_two_levels_is_taken_as_the_higher(answers):
    facts = {TRUST: fit_trust(*answers)}
    assert least_confidence(facts, 0.945) == least_confidence(facts, 0.95)


def test_as_few_images_as_promise_an_accuracy_are_those_that_it_names():
    for level, images in ((0.95, 59), (0.99, 299)):
        for count in (images - 1, images):
            facts = {TRUST: fit_trust(np.linspace(0.6, 0.9, count), np.ones(count, dtype=bool))}
            promised = {held for held, *_ in facts[TRUST]["levels"]}
            assert (level in promised) == (count == images)


@pytest.mark.parametrize(
    ("facts", "accuracy", "message"),
    [
        ({}, 0.9, "do not tell how sure"),
        ({TRUST: {"levels": [["x", 0.5, 1]]}}, 0.9, "do not tell how sure"),
        ({TRUST: {"levels": [[0.5, 0.4, 1.0]]}}, 0.9, "the most that could be promised is 0.5"),
        ({TRUST: {"levels": []}}, 0.9, "nothing could be promised$"),
        (
            {TRUST: {"images": 32, "levels": [[0.91, 0.4, 1.0]]}},
            0.95,
            "is 0.91; 32 are too few, 59 it takes if",
        ),
        ({TRUST: {"pictures": 298, "levels": []}}, 0.985, "nothing could be promised; 298 are too few, 299 it takes"),
        ({TRUST: {"images": 299, "levels": []}}, 0.99, "nothing could be promised$"),
        ({}, 1.0, "out of range"),
        ({}, 95, "out of range"),
    ],
)
def test_what_cannot_be_promised_says_why(facts, accuracy, message):
    with pytest.raises(ConfigError, match=message):
        least_confidence(facts, accuracy)
