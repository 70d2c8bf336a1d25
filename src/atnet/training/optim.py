"""The learning rate at each step; AdamW, or Muon for matrices, with decay by role."""

import math
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from atnet.config import Config, OptimConfig
from atnet.errors import ConfigError
from atnet.models.load import classifier_parameters
from atnet.training.muon import Muon

DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def lr_at(step: float, steps_per_epoch: int, config: Config) -> float:
    """The learning rate of a step, the first being 0: a pure function of the configuration.

    Linear warm-up inside the first cycle, then in each cycle a half cosine from its peak down to
    min_lr x lr; cycle k is multiplier**k times as long as the first, its peak decay**k times as high.
    Source: Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts".
    """
    schedule, peak = config.schedule, config.optim.lr
    start, length = 0.0, config.first_cycle * steps_per_epoch
    warmup = min(schedule.warmup * steps_per_epoch, length / 2)
    if step < warmup:
        return peak * (step + 1) / (math.floor(warmup) + 1)
    rise = warmup
    while step >= start + length:
        start, length, rise = start + length, length * schedule.multiplier, 0.0
        peak *= schedule.decay
    low = schedule.min_lr * config.optim.lr
    position = (step - start - rise) / (length - rise)
    return low + (peak - low) * (1 + math.cos(math.pi * position)) / 2


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices of layers, decayed, and all others, not decayed.

    What is decayed goes by role: the weight of a linear or convolutional layer, unless the model's
    no_weight_decay() names it. Tokens, tables, norms, scales and biases are not.
    """
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, DECAYED)}
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if id(parameter) in matrices and name not in spared else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def by_layer(model: nn.Module, groups: list[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """The groups, each in one for every layer, whose lr_scale is decay to the power of the layers after it.

    Raises ConfigError if the model does not say what its layers are.
    Source: Clark et al. 2020, "ELECTRA"; Bao et al. 2022, "BEiT".
    """
    if decay == 1:
        return groups
    if not hasattr(model, "group_matcher"):
        raise ConfigError(f"{type(model).__name__} does not say what its layers are: use --optim.layer-decay 1")
    layer_of = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    layers = {id(p): layer_of[name] for name, p in model.named_parameters()}
    split = []
    for group in groups:
        for layer in sorted({layers[id(p)] for p in group["params"]}):
            chosen = [p for p in group["params"] if layers[id(p)] == layer]
            split.append(group | {"params": chosen, "lr_scale": decay ** (max(layers.values()) - layer)})
    return split


def make_optimizers(
    model: nn.Module, optim: OptimConfig, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; or Muon for the matrices between input and classifier, AdamW for the others.

    Muon's are the decayed weights of linear layers and of convolutions that mix channels (one group); the
    classifier stays with AdamW. dtype: of Muon's products.
    Sources: Loshchilov & Hutter 2019; Jordan et al. 2024, "Muon".
    """
    decayed, others = decay_groups(model, optim.weight_decay)
    if optim.name == "adamw":
        groups = by_layer(model, [decayed, others], optim.layer_decay)
        return [torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)]
    left = classifier_parameters(model)
    left |= {id(m.weight) for m in model.modules() if getattr(m, "groups", 1) > 1 and hasattr(m, "weight")}
    mixing = [p for p in decayed["params"] if id(p) not in left]
    decayed["params"] = [p for p in decayed["params"] if id(p) in left]
    matrices = by_layer(model, [{"params": mixing, "weight_decay": optim.weight_decay}], optim.layer_decay)
    groups = by_layer(model, [decayed, others], optim.layer_decay)
    made: list[torch.optim.Optimizer] = []
    if mixing:
        made.append(Muon(matrices, lr=optim.lr, dtype=dtype))
    return [*made, torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)]
