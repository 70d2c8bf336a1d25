"""What a network costs, counted rather than timed."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atnet.models.load import classifier_parameters, create_classifier, create_deployed


@dataclass(frozen=True, kw_only=True)
class Cost:
    """At 1000 classes.  macs: multiply-adds of one image, fused attention counted."""

    parameters: int
    parameters_without_classifier: int
    macs: int


@cache
def cost_of(model: str, size: int, deployed: bool = False) -> Cost:
    """The cost of an AT-Net size or a timm architecture at size x size.

    deployed: as people deploy it, see `create_deployed`, instead of as it is trained.
    Raises ConfigError if it cannot be built.
    """
    with torch.device("meta"):
        network = create_deployed(model, size=size) if deployed else create_classifier(model, classes=1000, size=size)
    network.eval()
    heads = classifier_parameters(network)
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        parameters_without_classifier=sum(p.numel() for p in network.parameters() if id(p) not in heads),
        macs=macs_of(network, (3, size, size)),
    )


def parts_of(model: str, size: int) -> dict[str, tuple[int, int]]:
    """Parameters and multiply-adds of each part of a network at 1000 classes and size x size, in an image's order.

    A part is a child module of the network, or one of its stages: stem, stages.0, ..., encoder. Parameters and
    operations of none of them, AT-Net's prefix tokens for one, are left out.  Raises ConfigError if it cannot be built.
    """
    with torch.device("meta"):
        network = create_classifier(model, classes=1000, size=size).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, size, size, device="meta"))
    counts = counter.get_flop_counts()
    parts: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        stages = child.named_children() if name == "stages" and isinstance(child, nn.Sequential) else ()
        parts |= {f"{name}.{number}": stage for number, stage in stages} or {name: child}
    return {
        name: (
            sum(p.numel() for p in part.parameters()),
            sum(counts.get(f"{type(network).__name__}.{name}", {}).values()) // 2,
        )
        for name, part in parts.items()
    }


def macs_of(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one input of the shape; the module is left on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.to("meta")(torch.empty(1, *shape, device="meta"))
    return int(counter.get_total_flops()) // 2
