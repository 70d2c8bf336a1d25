"""Models by name, and weights in safetensors files that say what they are."""

import dataclasses
import difflib
import re
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

import atnet.models.registry  # noqa: F401  registers the names
from atnet.errors import ConfigError, WeightsError
from atnet.files import open_regular
from atnet.limits import LARGEST_IMAGE
from atnet.models.legacy import current_names
from atnet.models.sizes import SIZES, split_name
from atnet.weights.find import find_weights
from atnet.weights.info import MAX_WEIGHTS_BYTES, WeightsInfo, read_unchanged

MAX_HEADER_BYTES = 25_000_000
DAMAGED = "not a safetensors file, or a damaged one"
TYPES = {
    torch.float32: ("F32", "F16", "BF16"),
    torch.int64: ("I64",),
    torch.int32: ("I32",),
    torch.bool: ("BOOL",),
}
"""What a file may hold for a model's tensor, as safetensors calls it."""


def architecture(name: str) -> str:
    """The registered name: "xxxs" and "atnet_xxxs" are the same, timm's names are themselves.

    Changes of a size's layout, "xxxs+kernel=7", stay behind the name.  Raises ConfigError naming the nearest
    known names, or the change that is none.
    """
    base, _ = split_name(name)
    for candidate in (f"atnet_{base}", base):
        if re.fullmatch(r"[A-Za-z0-9_.]+", base) and timm.is_model(candidate):
            return "+".join([candidate, *name.split("+")[1:]])
    near = difflib.get_close_matches(name, [*SIZES, *timm.list_models()], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the sizes are {', '.join(SIZES)}"
    raise ConfigError(f"no model is called {name!r}: {hint}")


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """A model with fresh weights: an AT-Net size ("xxxs", or changed: "xxxs+kernel=7") or any timm architecture.

    kwargs are timm's: num_classes=10, in_chans=1, drop_path_rate=0.1, device="cuda", and an AT-Net
    size's own: registers=8, kernel=7.  Raises ConfigError if the name is unknown.
    """
    base, changes = split_name(architecture(name))
    model: nn.Module = timm.create_model(base, **{**changes, **kwargs})
    return model


def has_fixed_input(name: str) -> bool:
    """Whether the architecture is built for one input size and works at no other."""
    return bool(timm.get_pretrained_cfg_value(split_name(architecture(name))[0], "fixed_input_size"))


def at_size(info: WeightsInfo, size: int) -> WeightsInfo:
    """The same for inputs of another side in pixels. Raises ConfigError if the network does not take it."""
    if not 8 <= size <= LARGEST_IMAGE:
        raise ConfigError(f"size={size} is out of range: use 8 to {LARGEST_IMAGE:,}")
    if has_fixed_input(info.model) and size != info.preprocess.size:
        raise ConfigError(f"{info.model} works at {info.preprocess.size} px only: leave --size out")
    return dataclasses.replace(info, preprocess=dataclasses.replace(info.preprocess, size=size))


def create_classifier(name: str, *, classes: int, size: int, drop_path: float = 0.0) -> nn.Module:
    """The network of a run: as `create_model`, and one of timm's with a fixed input is built for size.

    Raises ConfigError if the architecture does not take the input size or stochastic depth.
    """
    name = architecture(name)
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if has_fixed_input(name):
        options["img_size"] = size
    try:
        return create_model(name, num_classes=classes, **options)
    except (TypeError, AssertionError, ValueError, ZeroDivisionError, RuntimeError) as error:
        chosen = ", ".join(f"{option}={value}" for option, value in options.items()) or "these options"
        raise ConfigError(f"{name} cannot be built with {chosen}: {error}") from error


def create_deployed(name: str, *, size: int) -> nn.Module:
    """Fresh weights of 1000 classes as people deploy them: in evaluation mode, reparameterisable branches merged."""
    model: nn.Module = reparameterize_model(create_classifier(name, classes=1000, size=size).eval())
    return model


def classifier_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters of a timm model's classifier, or classifiers."""
    try:
        heads = model.get_classifier()  # type: ignore[operator]
    except AttributeError:  # timm's SHViT and EfficientViT look inside of a head that is one layer when deployed
        heads = model.head
    heads = heads if isinstance(heads, tuple | list) else (heads,)
    return {id(p) for head in heads for p in head.parameters()}


def to_safetensors(state: dict[str, Tensor], info: WeightsInfo) -> bytes:
    """A weights file's bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return safetensors.torch.save(plain, metadata=info.to_metadata())


def read_info(path: Path) -> WeightsInfo:
    """What the file says of itself, without its tensors. Raises WeightsError if it is no such file."""
    if path.suffix == ".onnx":
        raise WeightsError(f"{path}: an exported network; give the run or the safetensors file that it was made from")
    if path.suffix == ".pt" and path.parent.name == "checkpoints":
        raise WeightsError(f"{path}: what a run goes on from; for its weights give the run, {path.parent.parent}")
    try:
        with open_regular(path, MAX_WEIGHTS_BYTES, WeightsError) as file:
            length = struct.unpack("<Q", file.read(8))[0]
        if length > min(MAX_HEADER_BYTES, path.stat().st_size):
            raise WeightsError(f"{path}: {DAMAGED}")
        with safe_open(path, "pt") as opened:
            return WeightsInfo.from_metadata(opened.metadata(), path)
    except (SafetensorError, struct.error, OSError) as error:
        raise WeightsError(f"{path}: {DAMAGED} ({error!s:.300})") from error


def load(where: str | Path, device: str = "cpu") -> tuple[nn.Module, WeightsInfo]:
    """The model with its weights, in evaluation mode, and what the file says of itself.

    where: a run, a folder or a safetensors file, or "hf-hub:user/name@revision"; of a run the last moving average is
    taken, else the last epoch: name the file for another (runs/last/best.safetensors).
    Shapes and types are compared before memory is taken, and the file with its hash where its folder has one; no code
    from the file is run.
    Raises WeightsError naming the file and what does not fit.
    """
    path = find_weights(where)
    info = read_info(path)
    try:
        with torch.device("meta"):
            expected = create_classifier(info.model, classes=len(info.classes), size=info.preprocess.size).state_dict()
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error
    _require_fit(path, info, expected)
    try:
        state = safetensors.torch.load(read_unchanged(path))
        infinite = next((name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())), None)
        if infinite is not None:
            raise WeightsError(f"{path}: {infinite} has numbers that are not finite: train or fetch it again")
        model = create_classifier(info.model, classes=len(info.classes), size=info.preprocess.size)
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:  # written to meanwhile
        raise WeightsError(f"{path}: {DAMAGED} ({error!s:.300})") from error
    return model.to(device).eval(), info


def _require_fit(path: Path, info: WeightsInfo, expected: dict[str, Tensor]) -> None:
    """Raises WeightsError unless the file has the expected tensors: their names, shapes and types.

    Numbers of 32 bits may be in 16.
    """
    with safe_open(path, "pt") as opened:
        names = current_names(opened.keys())
        slices = {names[name]: opened.get_slice(name) for name in names}
        shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
        types = {name: str(one.get_dtype()) for name, one in slices.items()}
    wrong = [n for n in expected if shapes.get(n) != tuple(expected[n].shape)] + [
        n for n in shapes if n not in expected
    ]
    if wrong:
        raise WeightsError(
            f"{path}: not weights of {info.model} with {len(info.classes)} classes: {wrong[0]:.200} is "
            f"{shapes.get(wrong[0], 'absent')} in the file and "
            f"{tuple(expected[wrong[0]].shape) if wrong[0] in expected else 'absent'} in the model"
        )
    for name, tensor in expected.items():
        if types[name] not in TYPES.get(tensor.dtype, ()):
            allowed = " or ".join(TYPES.get(tensor.dtype, (str(tensor.dtype),)))
            raise WeightsError(f"{path}: {name} has numbers of type {types[name]} instead of {allowed}")
