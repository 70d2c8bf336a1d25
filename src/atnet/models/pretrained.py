"""Weights that AT-Net did not write: their tensors, and what timm's configuration says of them."""

import argparse
import difflib
import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg
from torch import Tensor

from atnet.data.preprocess import CROP, CROP_MODES, Preprocess
from atnet.errors import WeightsError
from atnet.files import read_text
from atnet.models.registry import registered
from atnet.weights.find import Source
from atnet.weights.info import MAX_CLASSES, MAX_CONFIG_BYTES, WeightsInfo, read_unchanged, sha256_of

NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Under what a checkpoint has the tensors, the moving average first."""

PREFIXES = ("_orig_mod.", "module.", "timm_model.")
"""Before tensors' names: of torch.compile, of DistributedDataParallel, of transformers' TimmWrapper."""

MAX_DEPTH = 8
"""Of lists in lists in a config.json."""

BUFFERS = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What a configuration of timm's says of weights.

    model: the architecture, without a tag.  arguments: of its layout.
    classes: how many outputs there are, if the tensors do not say.  classifiers: the names of the modules that give
    them.
    label_names, label_descriptions: none if it does not say; those by class name.
    """

    model: str
    classes: int
    classifiers: tuple[str, ...]
    preprocess: Preprocess
    label_names: tuple[str, ...] = ()
    label_descriptions: dict[str, str] | None = None
    arguments: tuple[tuple[str, Any], ...] = ()


def read_tensors(source: Source) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a pickle that has no more than tensors, by their plain names.

    No code of the file is run.  Raises WeightsError if it is damaged, too large or not what the hub says, has more than
    tensors, or numbers that are not finite.
    """
    path = source.path
    content = read_unchanged(path)
    if source.sha256 and sha256_of(content) != source.sha256:
        raise WeightsError(
            f"{path}: damaged, for the hub says that its SHA-256 is {source.sha256[:16]}...: delete it, and it is "
            "fetched again"
        )
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load(content)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # as timm's checkpoints have beside
                found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused, for to read it would run code that it brings, or it is no file of torch.save "
            f"({str(error).splitlines()[0]:.150}); take a safetensors file, or save model.state_dict() alone"
        ) from error
    except (
        SafetensorError,
        EOFError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
    ) as error:
        raise WeightsError(f"{path}: damaged, or no weights file ({error!s:.200})") from error
    while isinstance(found, dict) and (inside := next((one for one in NESTED if isinstance(found.get(one), dict)), "")):
        found = found[inside]
    tensors = {}
    for name, tensor in found.items() if isinstance(found, dict) else ():
        while isinstance(name, str) and name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise WeightsError(f"{path}: {name!s:.100} is no tensor: save model.state_dict() alone")
        if tensor.is_quantized or tensor.is_complex():
            raise WeightsError(f"{path}: {name:.100} has numbers of type {tensor.dtype}: use float32")
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path}: {name:.100} has numbers that are not finite: train or fetch it again")
        tensors[name] = tensor
    if not tensors:
        raise WeightsError(f"{path}: no tensors in it; save model.state_dict()")
    return tensors


def pretrained_of(source: Source) -> Pretrained:
    """What is said of the source's weights: by config.json beside them, or by timm of the architecture named.

    Raises WeightsError if neither is there, or what is said cannot be.
    """
    if source.config is None:
        if not source.model:
            raise WeightsError(
                f"{source.path}: does not say which network it is: name it, --model resnet18 for example, or `model=` "
                "in Python"
            )
        return _of(source.model, {}, source.path)
    try:
        values = json.loads(read_text(source.config, MAX_CONFIG_BYTES, WeightsError))
        if not isinstance(values, dict) or _depth(values) > MAX_DEPTH:
            raise ValueError(f"no object, or lists more than {MAX_DEPTH} deep")
        config = values.get("pretrained_cfg") or values
        said = {**config, **{k: values[k] for k in ("num_classes", "label_names", "label_descriptions") if k in values}}
        said.setdefault("label_names", values.get("labels"))
        if isinstance(labels := values.get("id2label"), dict) and not said["label_names"]:
            said["label_names"] = [labels[str(i)] for i in range(len(labels))]
        model, arguments = values["architecture"], values.get("model_args") or {}
        if not isinstance(model, str) or not isinstance(arguments, dict):
            raise ValueError("an architecture or model_args of another type")
        return _of(model, said, source.config, arguments)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{source.config}: not timm's configuration of a network ({error!r:.200}); with --weights "
            f"{source.path} --model NAME it is not read"
        ) from error


def _of(name: str, said: dict[str, Any], path: Path, arguments: dict[str, Any] | None = None) -> Pretrained:
    """As a configuration says, and where it does not, as timm has the architecture.

    Of where weights are, what a configuration says is not taken.
    """
    name, asked = registered(name), name
    base = (name or asked).partition("+")[0]
    if not name:
        near = difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise WeightsError(f"{path}: {base!r:.100} is no architecture that timm {timm.__version__} has{hint}")
    try:
        config = timm.get_pretrained_cfg(base)
    except RuntimeError as error:
        raise WeightsError(f"{path}: {error}") from error
    known = (config or PretrainedCfg()).to_dict()
    config = known | {key: value for key, value in said.items() if value is not None}
    rest = dict(arguments or {})
    if (size := rest.pop("img_size", None)) is not None:
        config["input_size"] = (3, size, size) if isinstance(size, int) else (3, *size)
    if rest.pop("in_chans", 3) != 3:
        raise ValueError("an input of other than three colours")
    for usual in ("num_classes", "drop_rate", "drop_path_rate"):
        rest.pop(usual, None)
    if rest and not base.startswith("atnet_"):
        raise ValueError(f"model_args {', '.join(map(str, rest))!r:.100}, which is not supported")
    heads = known.get("classifier") or ()
    names, told = said.get("label_names") or (), said.get("label_descriptions")
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
        raise ValueError("label names that are no text")
    count = config["num_classes"]
    if not isinstance(count, int) or not 0 <= count <= MAX_CLASSES:
        raise ValueError(f"num_classes {count!r:.50}")
    return Pretrained(
        model=name if "+" in name else base.partition(".")[0],
        classes=count,
        classifiers=(heads,) if isinstance(heads, str) else tuple(heads),
        preprocess=preprocess_of(config),
        label_names=tuple(names),
        label_descriptions=told if isinstance(told, dict) else None,
        arguments=tuple(rest.items()),
    )


def preprocess_of(config: dict[str, Any]) -> Preprocess:
    """Of a configuration of timm's. Raises ValueError, TypeError or KeyError if it is none that we can do."""
    colours, height, width = config["input_size"]
    if colours != 3 or height != width:
        raise ValueError(f"an input of {config['input_size']}: only square images of three colours are taken")
    mode = config.get("crop_mode") or CROP_MODES[CROP]
    return Preprocess.from_dict(
        {
            "size": height,
            "crop_pct": min(float(config["crop_pct"]), 1.0),
            "resize": next((ours for ours, theirs in CROP_MODES.items() if theirs == mode), mode),
            **{key: config[key] for key in ("interpolation", "mean", "std")},
        }
    )


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def count_classes(pretrained: Pretrained, tensors: dict[str, Tensor], *, ordered: bool) -> int:
    """How many outputs the tensors have: by the classifier's, or by the last ones if they are a layer's.

    ordered: whether the tensors are in the order in which the network has them, which safetensors files do not keep.
    """
    for name in pretrained.classifiers:
        if (weight := tensors.get(f"{name}.weight")) is not None:
            return len(weight) if weight.ndim else 0
    *_, weight, bias = [torch.empty(0), *tensors.values()]
    if ordered and pretrained.classifiers and bias.ndim == 1 and weight.ndim in (2, 4) and len(weight) == len(bias):
        return len(bias)
    return pretrained.classes


def unnamed(count: int) -> tuple[str, ...]:
    """Names of classes of which nothing is said."""
    return tuple(f"class {i}" for i in range(count))


def info_of(pretrained: Pretrained, model: str, classes: int, source: Source) -> WeightsInfo:
    """What a file of ours would say; without classes if the network has no classifier.

    model: the architecture as it is registered.
    """
    names, told = pretrained.label_names, pretrained.label_descriptions or {}
    if len(names) != classes:
        subset = infer_imagenet_subset({"num_classes": classes})
        if subset:
            labels = ImageNetInfo(subset)
            names, told = tuple(labels.label_names()), labels.label_descriptions(as_dict=True)
        else:
            names, told = unnamed(classes), {}
    first = {name: i for i, name in reversed([*enumerate(names)])}
    unique = [name if first[name] == i else f"{name} ({i})" for i, name in enumerate(names)]
    made = WeightsInfo(
        model=model,
        classes=tuple(unique),
        class_names=tuple(str(told.get(name, name)) for name in names),
        preprocess=pretrained.preprocess,
        epoch=0,
        moving_average=False,
        facts={"weights": source.name} if source.is_fetched else {},
    )
    return WeightsInfo.from_metadata(made.to_metadata(), source.path) if classes else made


def without_sources(pretrained: Pretrained, tensors: dict[str, Tensor], classes: int) -> dict[str, Any]:
    """Options of timm.create_model with which it takes these tensors, and looks for none elsewhere."""
    size = pretrained.preprocess.size
    overlay = {
        "state_dict": dict(tensors), "num_classes": classes, "input_size": (3, size, size), "label_offset": 0,
        "source": None, "url": None, "file": None, "hf_hub_id": None, "hf_hub_filename": None, "custom_load": False,
    }  # fmt: skip
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}


def in_order(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors by the expected names, one after the other, if no name is known and all shapes are as expected."""
    if tensors.keys() & expected.keys():
        return None
    ours = [name for name in expected if not name.endswith(BUFFERS)]
    theirs = [tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)]
    if [expected[name].shape for name in ours] != [tensor.shape for tensor in theirs]:
        return None
    return dict(zip(ours, theirs, strict=True))
