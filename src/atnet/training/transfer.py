"""Going on from trained weights on other classes: their settings, their tensors, and parts that stay as they are."""

import dataclasses
import difflib
from typing import Any

import timm
from torch import nn

from atnet.config import LEARNING_RATES, Config
from atnet.data.classes import printable
from atnet.errors import ConfigError
from atnet.models.legacy import PARTS
from atnet.models.load import classifier_parameters, load_any, read_info
from atnet.weights.find import find_weights
from atnet.weights.info import TIMM, shipped_weights

ALL = "all"
SLOWER = 2
"""Times that the usual learning rate is divided by, where nothing else is asked for: LOG.md has other rates, layer-wise
decay and frozen networks beside it."""


def defaults_of(config: Config) -> dict[str, Any]:
    """The settings that go with config.weights: their model, input size and colours, and a lower learning rate.

    Raises WeightsError if they are none.
    """
    info = read_info(config.weights, config.model)
    rate = LEARNING_RATES[config.optim.name] / SLOWER
    return {"optim": {"lr": rate}, "model": info.model, "data": dataclasses.asdict(info.preprocess)}


def from_random_weights(model: str) -> str:
    """A sentence of a run without weights to begin with: that it is so, and which there would be."""
    size = model.removeprefix("atnet_")
    shipped = [path.stem for path in shipped_weights() if path.stem.partition(".")[0] == size]
    known = shipped or [f"{TIMM}{model}"] * (timm.is_model_pretrained(model.partition("+")[0]))
    return f"{size} starts from random weights" + (f"; from pretrained ones: --weights {known[0]}" if known else "")


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
    return f"goes on from {printable(str(config.weights))}, {len(info.classes)} classes; head {of_head}", kept


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
