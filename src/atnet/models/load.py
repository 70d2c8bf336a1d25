"""Models by name, and weights in safetensors files that say what they are."""

import dataclasses
import difflib
import logging
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from atnet.errors import ConfigError, WeightsError
from atnet.files import open_regular
from atnet.limits import LARGEST_IMAGE
from atnet.models.legacy import current_names
from atnet.models.pretrained import (
    BUFFERS,
    Pretrained,
    count_classes,
    in_order,
    info_of,
    pretrained_of,
    read_tensors,
    without_sources,
)
from atnet.models.registry import registered
from atnet.models.sizes import SIZES, split_name, written
from atnet.weights.find import Source, find_weights, pretrained_of_timm
from atnet.weights.info import HUB, LOCAL, MAX_WEIGHTS_BYTES, METADATA, TIMM, WeightsInfo, read_unchanged

log = logging.getLogger("atnet")

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Ends of names of files that torch.save writes."""

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
    if found := registered(name):
        return found
    near = difflib.get_close_matches(name, [*SIZES, *timm.list_models()], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the sizes are {', '.join(SIZES)}"
    raise ConfigError(f"no model is called {name!r}: {hint}")


def architecture_of(name: str) -> str:
    """As `architecture`; of weights, "timm:resnet18" or a run for example, the one that they are of."""
    if name.startswith(TIMM):
        return architecture(pretrained_of_timm(name.removeprefix(TIMM).partition("@")[0])[0].partition(".")[0])
    return read_info(name).model if name.startswith((HUB, LOCAL)) or Path(name).exists() else architecture(name)


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


def asked_size(size: int | None) -> int:
    """The side in pixels that was asked for, 0 if none was. Raises ConfigError if it is out of range."""
    if size is not None and not 8 <= size <= LARGEST_IMAGE:
        raise ConfigError(f"size={size} is out of range: use 8 to {LARGEST_IMAGE:,}")
    return size or 0


def _at_size(info: WeightsInfo, size: int) -> WeightsInfo:
    """The same for inputs of another side in pixels, if one is given."""
    size = size or info.preprocess.size
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


def read_info(where: str | Path | Source, model: str = "") -> WeightsInfo:
    """What weights say of themselves, or timm of them; where and model as for `load`.

    Raises WeightsError if they are none, or nothing says which network they are of.
    """
    source = where if isinstance(where, Source) else find_weights(where, model)
    if (info := _of_ours(source)) is not None:
        return info
    pretrained = pretrained_of(source)
    return _info(pretrained, _count(pretrained, read_tensors(source), source), source)


def _of_ours(source: Source) -> WeightsInfo | None:
    """What a file that AT-Net wrote says of itself; None of another's, if something else says what it is."""
    path = source.path
    if path.suffix == ".onnx":
        raise WeightsError(f"{path}: an exported network; give the run or the safetensors file that it was made from")
    if path.suffix == ".pt" and path.parent.name == "checkpoints":
        raise WeightsError(f"{path}: what a run goes on from; for its weights give the run, {path.parent.parent}")
    if path.suffix in PICKLES:
        return None
    try:
        with open_regular(path, MAX_WEIGHTS_BYTES, WeightsError) as file:
            length = struct.unpack("<Q", file.read(8))[0]
        if length > min(MAX_HEADER_BYTES, path.stat().st_size):
            raise WeightsError(f"{path}: {DAMAGED}")
        with safe_open(path, "pt") as opened:
            said = opened.metadata() or {}
        if METADATA not in said and (source.model or source.config):
            return None
        if METADATA not in said:
            raise WeightsError(
                f"{path}: without AT-Net's metadata: name the network that it is of, --model resnet18 for example, or "
                "use weights that `atnet train` or `atnet export` wrote"
            )
        return WeightsInfo.from_metadata(said, path)
    except (SafetensorError, struct.error, OSError) as error:
        raise WeightsError(f"{path}: {DAMAGED} ({error!s:.300})") from error


def _count(pretrained: Pretrained, tensors: dict[str, Tensor], source: Source) -> int:
    return count_classes(pretrained, tensors, ordered=source.path.suffix in PICKLES)


def _info(pretrained: Pretrained, classes: int, source: Source) -> WeightsInfo:
    changes = [f"{field}={written(value)}" for field, value in pretrained.arguments]
    return info_of(pretrained, architecture("+".join([pretrained.model, *changes])), classes, source)


def load(
    where: str | Path | Source, device: str = "cpu", *, model: str = "", size: int = 0
) -> tuple[nn.Module, WeightsInfo]:
    """The model with its weights, in evaluation mode, and what they say of themselves, or timm of them.

    where: a run, a folder or a file, "timm:resnet18", "hf-hub:user/name@revision" or "local-dir:folder", see
    `find_weights`; of a run the last moving average is taken, else the last epoch: name the file for another
    (runs/last/best.safetensors).
    model: the architecture of a file that says nothing of itself, a safetensors file or one of torch.save.
    size: side of the input in pixels, that of the training if 0; one of timm's networks with a fixed input gets its
    position embeddings resampled.
    Shapes and types are compared before memory is taken, and the file with its hash where its folder or the hub has
    one; no code from the file is run.
    Raises WeightsError naming the file and what does not fit, ConfigError if the network does not take the size.
    """
    network, info = load_any(where, device, model=model, size=size)
    if not info.classes:
        raise WeightsError(f"{where}: {info.model} without a classifier; train one: atnet train --weights {where}")
    return network, info


def load_any(
    where: str | Path | Source, device: str = "cpu", *, model: str = "", size: int = 0
) -> tuple[nn.Module, WeightsInfo]:
    """As `load`, of a network without a classifier too; then there are no classes."""
    source = where if isinstance(where, Source) else find_weights(where, model)
    ours = _of_ours(source)
    if ours is None:
        network, info = _load_pretrained(source, size)
    else:
        if source.model and architecture(source.model) != ours.model:
            raise ConfigError(
                f"{source.path}: weights of {ours.model}, and --model is {architecture(source.model)}: use --model "
                f"{ours.model}"
            )
        network, info = _load_ours(source.path, ours, size)
    return network.to(device).eval(), info


def _load_ours(path: Path, info: WeightsInfo, size: int) -> tuple[nn.Module, WeightsInfo]:
    own = info.preprocess.size
    try:
        with torch.device("meta"):
            expected = create_classifier(info.model, classes=len(info.classes), size=own).state_dict()
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error
    _require_fit(path, info, expected)
    try:
        state = safetensors.torch.load(read_unchanged(path))
        infinite = next((name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())), None)
        if infinite is not None:
            raise WeightsError(f"{path}: {infinite} has numbers that are not finite: train or fetch it again")
        if size and size != own and has_fixed_input(info.model):
            pretrained = Pretrained(
                model=info.model, classes=len(info.classes), classifiers=(), preprocess=info.preprocess
            )
            return _resampled(pretrained, state, info, size)
        model = create_classifier(info.model, classes=len(info.classes), size=own)
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:  # written to meanwhile
        raise WeightsError(f"{path}: {DAMAGED} ({error!s:.300})") from error
    return model, _at_size(info, size)


def _load_pretrained(source: Source, size: int) -> tuple[nn.Module, WeightsInfo]:
    """Weights that AT-Net did not write. Raises WeightsError naming the first tensor that does not fit."""
    tensors, pretrained = read_tensors(source), pretrained_of(source)
    info = _info(pretrained, _count(pretrained, tensors, source), source)
    try:
        with torch.device("meta"):
            expected = create_classifier(info.model, classes=len(info.classes), size=info.preprocess.size).state_dict()
    except ConfigError as error:
        raise WeightsError(f"{source.path}: {error}") from error
    ordered = in_order(tensors, expected) if source.path.suffix in PICKLES else None
    if ordered is not None:
        log.info(
            "%s: other names than %s has; taken in their order, which has the same shapes", source.path, info.model
        )
        tensors = ordered
    try:
        model = _filled(pretrained, tensors, info, info.preprocess.size)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise WeightsError(f"{source.path}: {_misfit(tensors, expected, info, error)}") from error
    own, theirs = {name for name, _ in model.named_parameters()}, tensors.keys()
    if (theirs <= expected.keys() and own - theirs) or (own <= theirs and theirs - expected.keys()):
        # of an architecture that timm fills in part, and without its filters, which would have renamed all
        raise WeightsError(f"{source.path}: {_misfit(tensors, expected, info)}")
    if size and size != info.preprocess.size and has_fixed_input(info.model):
        return _resampled(pretrained, tensors, info, size)
    return model, _at_size(info, size)


def _filled(pretrained: Pretrained, tensors: dict[str, Tensor], info: WeightsInfo, size: int) -> nn.Module:
    """The network with the tensors, by timm's own filters for its architecture. Raises what these raise."""
    options = without_sources(pretrained, tensors, len(info.classes))
    if has_fixed_input(info.model):
        options["img_size"] = size
    model = create_model(info.model, num_classes=len(info.classes), **options)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    config.pop("state_dict", None)  # or it would stay in memory
    return model


def _resampled(
    pretrained: Pretrained, tensors: dict[str, Tensor], info: WeightsInfo, size: int
) -> tuple[nn.Module, WeightsInfo]:
    """At another size than the tensors are of. Raises ConfigError if timm has no way."""
    try:
        return _filled(pretrained, tensors, info, size), _at_size(info, size)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"{info.model} with these weights works at {info.preprocess.size} px, and not at {size} "
            f"({str(error).strip().splitlines()[-1].strip():.200}): use {info.preprocess.size}"
        ) from error


def _misfit(
    tensors: dict[str, Tensor], expected: dict[str, Tensor], info: WeightsInfo, error: Exception | None = None
) -> str:
    """The first tensor that does not fit, where names are the network's own; else what timm says."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tensor for name, tensor in expected.items() if name in shapes or not name.endswith(BUFFERS)}
    wrong = first_misfit(shapes, wanted)
    of = f"not weights of {info.model} with {len(info.classes)} classes"
    return f"{of}: {wrong} in the model; is --model right?" if wrong else f"{of}: {error!s:.200}"


def first_misfit(shapes: dict[str, tuple[int, ...]], expected: dict[str, Tensor], place: str = "file") -> str:
    """The first expected tensor of another shape, else the first that is not expected, "NAME is SHAPE in the file and
    SHAPE"; "" if all fit.
    """
    wrong = [name for name in expected if shapes.get(name) != tuple(expected[name].shape)]
    wrong += [name for name in shapes if name not in expected]
    if not wrong:
        return ""
    there = tuple(expected[wrong[0]].shape) if wrong[0] in expected else "absent"
    return f"{wrong[0]:.200} is {shapes.get(wrong[0], 'absent')} in the {place} and {there}"


def _require_fit(path: Path, info: WeightsInfo, expected: dict[str, Tensor]) -> None:
    """Raises WeightsError unless the file has the expected tensors: their names, shapes and types.

    Numbers of 32 bits may be in 16.
    """
    with safe_open(path, "pt") as opened:
        names = current_names(opened.keys())
        slices = {names[name]: opened.get_slice(name) for name in names}
        shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
        types = {name: str(one.get_dtype()) for name, one in slices.items()}
    if wrong := first_misfit(shapes, expected):
        raise WeightsError(
            f"{path}: not weights of {info.model} with {len(info.classes)} classes: {wrong} in the model"
        )
    for name, tensor in expected.items():
        if types[name] not in TYPES.get(tensor.dtype, ()):
            allowed = " or ".join(TYPES.get(tensor.dtype, (str(tensor.dtype),)))
            raise WeightsError(f"{path}: {name} has numbers of type {types[name]} instead of {allowed}")
