"""When to ask a person: how sure an answer has to be for an accuracy that is asked for. Free of torch.

Fitted on held-out images when weights are saved, and stored with them. Source: Geifman & El-Yaniv 2017, "Selective
Classification for Deep Neural Networks", without its correction for choosing among many thresholds: of a network whose
confidence tells right from wrong one promise in twenty breaks, of one whose confidence tells nothing more (LOG.md).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from atnet.errors import ConfigError
from atnet.files import renamed

TRUST = "trust"
"""The key among a weights file's facts."""

LEVELS = (*(level / 100 for level in range(50, 100)), 0.995, 0.999)
"""Accuracies that may be asked for; one between two of them is taken as the higher."""


DOUBT = 0.05
"""Probability that as many images show an accuracy by chance that does not hold."""


def fit_trust(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> dict[str, Any]:
    """The least confidence at which the surer of N held-out answers hold each accuracy, and the share of them.

    confidence: probability of each answer, 0 to 1; of several heads the mean, (N,).  correct: whether each is right.
    An accuracy counts as held by n answers if one that is lower would show so many right ones with a probability of
    DOUBT at most (Clopper & Pearson 1934), each n by itself; levels that none hold are left out.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, right = confidence[order], np.cumsum(correct[order])
    wrong = np.arange(1, len(order) + 1) - right
    held = np.where(right > 0, betaincinv(np.maximum(right, 1), wrong + 1, DOUBT), 0)
    ends = np.append(sure[1:] < sure[:-1], True)  # answers that are as sure as the next one go with it
    levels = []
    for level in LEVELS:
        places = np.flatnonzero(ends & (held >= level))
        if len(places):
            last = int(places[-1])
            levels.append([level, float(sure[last]), round((last + 1) / len(order), 4)])
    return {"images": len(order), "levels": levels}


def least_confidence(facts: dict[str, Any], accuracy: float) -> tuple[float, float]:
    """The confidence from which answers hold the accuracy, 0 to 1, and the share of answers that are as sure.

    facts: of the weights.
    Raises ConfigError if the accuracy is none, the weights do not tell, or it was not reached.
    """
    if not 0.5 <= accuracy < 1:
        raise ConfigError(f"--abstain {accuracy:g} is out of range: use 0.5 to 0.999, the accuracy to hold")
    try:
        levels = [(float(level), float(least), float(share)) for level, least, share in facts[TRUST]["levels"]]
        images = int(renamed(facts[TRUST]).get("images", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            "these weights do not tell how sure they have to be: train them with this version, which fits it on the "
            "validation images"
        ) from error
    for level, least, share in levels:
        if level >= accuracy - 1e-9:
            return least, share
    most = f"the most that could be promised is {levels[-1][0]:g}" if levels else "nothing could be promised"
    asked = next((level for level in LEVELS if level >= accuracy - 1e-9), LEVELS[-1])
    needed = math.ceil(math.log(DOUBT) / math.log(asked))
    few = f"; {images:,} are too few, {needed:,} it takes if all are right" if 0 < images < needed else ""
    raise ConfigError(f"--abstain {accuracy:g} was not reached on the validation images: {most}{few}")
