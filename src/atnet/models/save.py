"""A network that any loop trained, as a weights file that every command takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atnet.data.classes import display_names
from atnet.data.preprocess import Preprocess
from atnet.errors import ConfigError
from atnet.files import write_whole
from atnet.models.load import architecture, create_classifier, first_misfit, to_safetensors
from atnet.models.pretrained import preprocess_of
from atnet.weights.info import WeightsInfo


def save(
    model: nn.Module,
    path: str | Path,
    *,
    class_names: Sequence[str],
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    name: str | None = None,
) -> WeightsInfo:
    """Writes a model's weights to a safetensors file that says what they are; returns what it says.

    class_names: in the order of the outputs.
    preprocess: how images are prepared for the network; timm's, of `timm.data.resolve_model_data_config`, is taken too;
    that of the model's pretrained configuration if None.
    name: the architecture, that of the model's pretrained configuration if None.
    Raises ConfigError if the architecture is not known or the model is none of it, or the names are not its outputs'.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: use a name that ends in .safetensors")
    known: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    said = name or known.get("architecture")
    if not said:
        raise ConfigError("the model does not say which architecture it is of: give name=, resnet18 for example")
    classes = tuple(class_names)
    if not classes or len(set(classes)) != len(classes):
        raise ConfigError("class_names: give the name of each class once")
    if preprocess is None and not known:
        raise ConfigError("the model does not say how its images are prepared: give preprocess=")
    if not isinstance(preprocess, Preprocess):
        try:
            preprocess = preprocess_of(dict(preprocess or known))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"preprocess: {error}") from error
    full, state = architecture(said), model.state_dict()
    with torch.device("meta"):
        expected = create_classifier(full, classes=len(classes), size=preprocess.size).state_dict()
    if wrong := first_misfit({key: tuple(tensor.shape) for key, tensor in state.items()}, expected, "model"):
        raise ConfigError(
            f"not a {full} of {len(classes)} classes: {wrong} in the architecture; give its name= and a name of each "
            "output"
        )
    info = WeightsInfo(
        model=full, classes=classes, class_names=display_names(classes), preprocess=preprocess, epoch=0,
        moving_average=False,
    )  # fmt: skip
    info = WeightsInfo.from_metadata(info.to_metadata(), path)
    write_whole(path, to_safetensors(state, info))
    return info
