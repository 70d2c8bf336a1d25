"""Going on from trained weights on other classes: their settings, their tensors, and parts that stay as they are."""

import dataclasses
import difflib
import logging
import math
from typing import Any

import timm
from torch import nn

from atnet.config import AUTO, Config
from atnet.data.classes import printable
from atnet.data.preprocess import CROP
from atnet.data.shards import is_address
from atnet.data.sources import open_any, open_parts
from atnet.errors import ConfigError, DataError
from atnet.models.legacy import PARTS
from atnet.models.load import classifier_parameters, load_any, read_info
from atnet.weights.find import find_weights
from atnet.weights.info import TIMM, WEIGHTS, general_weights

ALL = "all"
RATES = {"adamw": 3e-4, "muon": 3e-3}
"""Learning rates of fine-tuning, of each optimizer."""

FOREIGN_RATES = {"adamw": 3e-4, "muon": 1e-3}
"""Of networks that are not ours."""

CROP_SCALE = 0.2
"""Smallest share of an image that is cropped: there are too few epochs to learn from smaller ones."""

FEW = 1280
"""Images to train on below which the batch is half of the usual one, and the epochs follow from their number."""

SEEN, MOST_EPOCHS = 25_600, 100
"""From random weights, of few images: images shown in all, and in how many epochs at most."""

LEAST_EPOCHS, EPOCHS_OF_ONE, MOST_SHOWN = 8, 640, 100_000
"""From weights: EPOCHS_OF_ONE over the square root of the number of images, or the usual epochs if these show at most
MOST_SHOWN images, but at least LEAST_EPOCHS."""

EVALUATIONS = 20
"""As many at most, where the epochs follow from the number of images."""

log = logging.getLogger("atnet")


def is_ours(model: str) -> bool:
    """Whether a network is of this family."""
    return model.startswith("atnet_")


def draws_head(model: str) -> bool:
    """Whether fine-tuning to other classes begins with a head that is drawn, and not with the linear probe.

    At the rate of our networks, and of the same length whatever the gradient is, Muon's steps lead away from features
    to which a fitted head gives next to no gradient.
    """
    return is_ours(model)


def starting_weights(config: Config) -> str:
    """The weights that a run begins with, by name; "" if they are random: auto is settled."""
    return general_weights(config.model) if config.weights == AUTO else config.weights


def defaults_of(config: Config) -> dict[str, Any]:
    """The settings that follow from the weights and from the number of images.

    Weights bring their model, input size and colours, a lower learning rate, larger crops, and BatchNorm's statistics.
    Letterbox and squash leave nothing of an image out.
    Raises WeightsError if there are no weights of this name.
    """
    weights = starting_weights(config)
    found: dict[str, Any] = _schedule_of(_count(config), bool(weights)) | {"weights": weights}
    if weights:
        info = read_info(weights, config.model)
        rates = RATES if is_ours(info.model) else FOREIGN_RATES
        found |= {
            "optim": {"lr": rates[config.optim.name]},
            "batchnorm": "frozen",
            "augment": {"crop_scale": CROP_SCALE},
            "model": info.model,
            "data": dataclasses.asdict(info.preprocess),
        }
    brought = found.setdefault("data", {})
    if CROP != config.data.resize != brought.get("resize", CROP):
        brought["crop_pct"] = 1.0
    return found


def _schedule_of(count: int, pretrained: bool) -> dict[str, Any]:
    """Batch, epochs and evaluations for so many training images; 0: not known, the usual ones."""
    if not count or (count >= FEW and not pretrained):
        return {}
    found = {"batch": Config.batch // 2} if count < FEW else {}
    if pretrained:
        usual = min(Config.epochs, MOST_SHOWN // count)
        epochs = max(LEAST_EPOCHS, round(EPOCHS_OF_ONE / math.sqrt(count)), usual)
    else:
        epochs = min(MOST_EPOCHS, SEEN // count)
    return found | {"epochs": epochs, "eval_every": -(-epochs // EVALUATIONS)}


def _count(config: Config) -> int:
    """How many images there are to train on; 0 where nothing follows from it, or where they cannot be opened."""
    named = config.epochs != Config.epochs and config.batch != Config.batch
    if named or config.schedule.cycle or not config.data.source or is_address(config.data.source):
        return 0
    log.addFilter(_nothing)  # all of it is said when the training opens them
    try:
        labelled, _ = open_parts(config.data.source, config.data.val_share, config.data.classes, config.data.mismatch)
        return len(labelled) + sum(len(part) for one in config.data.unlabelled for part in open_any(one).values())
    except (ConfigError, DataError):
        return 0
    finally:
        log.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    """Lets no line through; progress bars are shown."""
    return False


def from_random_weights(model: str) -> str:
    """A sentence of a run without weights to begin with: that it is so, and which there would be."""
    size = model.removeprefix("atnet_")
    known = general_weights(model)
    if not known and not is_ours(model) and timm.is_model_pretrained(model.partition("+")[0]):
        known = f"{TIMM}{model}"
    return f"{size} starts from random weights" + (f"; from pretrained ones: --weights {known}" if known else "")


def load_into(model: nn.Module, config: Config, classes: tuple[str, ...]) -> tuple[str, bool]:
    """Gives the model the tensors of config.weights; its head stays as it was drawn if the classes differ.

    Returns a sentence that says so, and whether the head is the weights' own.

    Raises ConfigError if the weights are of another network, WeightsError if they are unusable.
    """
    source = find_weights(config.weights, config.model)
    info = read_info(source)
    if info.model != config.model:
        raise ConfigError(
            f"{config.weights}: weights of {info.model}, and the run is of {config.model}: use --model {info.model}"
        )
    trained, _ = load_any(source, size=config.data.size)
    tensors = trained.state_dict()
    kept = info.classes == classes
    if not kept:
        classifier = classifier_parameters(model)
        head = {name for name, p in model.named_parameters() if id(p) in classifier}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    own = model.state_dict()
    wrong = [name for name, tensor in tensors.items() if own[name].shape != tensor.shape]
    if wrong:
        raise ConfigError(
            f"{config.weights}: {wrong[0]} is {tuple(tensors[wrong[0]].shape)} there and {tuple(own[wrong[0]].shape)} "
            f"at {config.data.size} px: use --data.size {info.preprocess.size}"
        )
    model.load_state_dict(own | tensors)
    of_head = "kept, the classes are the same" if kept else f"new, of {len(classes)} classes"
    name, otherwise = printable(str(config.weights)), ""
    if source.path.parent == WEIGHTS and source.title == general_weights(config.model):
        name, otherwise = source.title, " (random ones: --weights none)"
    return f"goes on from {name}, {len(info.classes)} classes{otherwise}; head {of_head}", kept


def freeze(model: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    """The named parts, their parameters no longer trained; "all" is all but the head.

    Raises ConfigError naming a part that there is not, or if nothing is left to train.
    """
    parts = {name: part for name, part in model.named_modules() if name}
    names = tuple(now for name in names for now in (PARTS.get(name, (name,)) if name not in parts else (name,)))
    unknown = [name for name in names if name != ALL and name not in parts]
    if unknown:
        known = [name for name, _ in model.named_children()]
        near = difflib.get_close_matches(unknown[0], known, 1) or [", ".join([*known, ALL])]
        raise ConfigError(f"--freeze {unknown[0]}: no such part of the network; use {near[0]}")
    head = classifier_parameters(model)
    frozen = [parts[name] for name in names if name != ALL]
    still = [p for part in frozen for p in part.parameters()]
    if ALL in names:
        frozen += [part for part in parts.values() if not any(id(p) in head for p in part.parameters())]
        still += [p for p in model.parameters() if id(p) not in head]  # tokens too, which are of no part
    for parameter in still:
        parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"--freeze {' '.join(names)}: nothing is left to train; leave out {names[-1]}")
    return frozen
