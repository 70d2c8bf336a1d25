"""Teachers' answers made before a training, which then costs what one without teachers does."""

import time
from dataclasses import dataclass
from pathlib import Path

from atnet.config import Config
from atnet.data.loader import NO_LABEL
from atnet.data.on_device import training_batches
from atnet.errors import ConfigError
from atnet.progress import progress_bar
from atnet.training import distributed
from atnet.training.plan import settle
from atnet.training.state import State, normalise_and_mix


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The file of answers.  views: how many there are now, of so many images in each of the crops; new: made just now.

    bytes: of the file.  seconds: that it took.
    """

    path: Path
    views: int
    new: int
    bytes: int
    seconds: float


def teach(config: Config) -> Kept:
    """Asks the teachers about each view that a training of this configuration will show, where it has no answer yet.

    What is stopped or killed goes on where it was.
    Raises ConfigError if the configuration has no teacher or keeps no answers, and what a training raises at its start.
    """
    if not config.teacher or not config.distill.views:
        raise ConfigError("answers are of --teacher NAME to --distill.views N crops of each image: give both")
    if distributed.is_distributed():
        raise ConfigError("the answers are made by one process: leave torchrun out")
    config, began = settle(config), time.perf_counter()
    state = State(config)
    state.teach_teachers()
    with state.keeping_answers():
        answers = state.answers
        assert answers
        last = state.steps_per_epoch * min(config.distill.views, config.epochs)
        first = next((step for step in range(last) if not answers.has(answers.order.at(step))), last)
        new = 0
        batches = training_batches(state.shown, config, state.device, first, last)
        with progress_bar("Asking the teachers", last, done=first) as advance:
            for step in range(first, last):
                pixels, labels, _ = next(batches)
                there = labels != NO_LABEL
                draws = [draw for draw, here in zip(answers.order.at(step), there.tolist(), strict=True) if here]
                if draws and not answers.has(draws):
                    images, _ = normalise_and_mix(
                        config.seed, state.colours, None, step, pixels[there], labels[there].clamp(min=0)
                    )
                    answers.of(draws, images, state.ask)
                    new += len(draws)
                advance(1)
        batches.close()
        return Kept(
            path=answers.path,
            views=sum(len(answers.order.at(step)) for step in range(last)),
            new=new,
            bytes=answers.path.stat().st_size,
            seconds=time.perf_counter() - began,
        )
