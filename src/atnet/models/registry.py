"""AT-Net in timm's registry: after `import atnet.timm`, `timm.create_model("atnet_xxxs")` works.

`timm.create_model("atnet_xxxs.imagenette", pretrained=True)` has the weights that come with AT-Net.
"""

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import timm
from safetensors import safe_open
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._pretrained import PretrainedCfg
from timm.models.convmixer import ConvMixer

from atnet.data.preprocess import CROP_MODES
from atnet.models.atnet import ATNet
from atnet.models.layout import Size
from atnet.models.legacy import current_fields
from atnet.models.sizes import SIZES, split_name
from atnet.weights.info import WeightsInfo, shipped_weights


def pretrained_cfg(info: WeightsInfo) -> dict[str, Any]:
    """What timm wants to know of weights: classes and preprocessing.

    A label's name is what a person calls the class, or where two are called so, the dataset's own name;
    its description has both.
    """
    names = info.class_names if len(set(info.class_names)) == len(info.class_names) else info.classes
    told = zip(names, info.classes, info.class_names, strict=True)
    made = info.preprocess
    return {
        "num_classes": len(names),
        "input_size": (3, made.size, made.size),
        "crop_pct": made.crop_pct,
        "crop_mode": CROP_MODES[made.resize],
        "interpolation": made.interpolation,
        "mean": made.mean,
        "std": made.std,
        "label_names": names,
        "label_descriptions": {name: own if own == shown else f"{shown} ({own})" for name, own, shown in told},
    }


def _default_cfg(size: Size) -> dict[str, Any]:
    side = size.grid(224)
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (side, side),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head",
        "license": "apache-2.0",
    }


def registered(name: str) -> str:
    """The name that timm has of an architecture, "xxxs" being "atnet_xxxs", changes behind it left on; "" if none."""
    base, _ = split_name(name)
    for candidate in (f"atnet_{base}", base):
        if re.fullmatch(r"[A-Za-z0-9_.]+", base) and timm.is_model(candidate):
            return "+".join([candidate, *name.split("+")[1:]])
    return ""


CONVMIXER = "convmixer_256_19"
"""timm's ConvMixer with as many parameters as XXXS, a peer: it has none below 21 million."""

default_cfgs = generate_default_cfgs(
    {f"atnet_{name}": _default_cfg(size) for name, size in SIZES.items()}
    | {CONVMIXER: {"url": "", "input_size": (3, 224, 224), "first_conv": "stem.0", "classifier": "head"}}
)


def _add_shipped() -> None:
    """What comes with AT-Net is a tag of its size. Without the tag a size stays as it is: 1000 classes, no weights."""
    for path in shipped_weights():
        size, _, tag = path.stem.partition(".")
        with safe_open(path, "pt") as opened:
            info = WeightsInfo.from_metadata(opened.metadata(), path)
        found = default_cfgs[f"atnet_{size}"]
        found.tags.append(tag)
        found.cfgs[tag] = PretrainedCfg(
            file=str(path), first_conv="stem.0.conv", classifier="head", license="apache-2.0", **pretrained_cfg(info)
        )
        found.is_pretrained = True


def _entrypoint(name: str, size: Size) -> Callable[..., ATNet]:
    def create(pretrained: bool = False, **kwargs: Any) -> ATNet:
        model: ATNet = build_model_with_cfg(
            ATNet,
            name,
            pretrained,
            feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
            **{**asdict(size), **current_fields(size, kwargs)},
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"AT-Net of size {name.removeprefix('atnet_')}; keyword arguments are those of ATNet."
    return create


def convmixer_256_19(pretrained: bool = False, **kwargs: Any) -> ConvMixer:
    """ConvMixer of width 256 and depth 19 over patches of 8 px; keyword arguments are timm's ConvMixer's."""
    layout = {"dim": 256, "depth": 19, "kernel_size": 7, "patch_size": 8}
    model: ConvMixer = build_model_with_cfg(
        ConvMixer,
        CONVMIXER,
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**layout, **kwargs},
    )
    return model


_add_shipped()
register_model(convmixer_256_19)
for _name, _size in SIZES.items():
    globals()[f"atnet_{_name}"] = register_model(_entrypoint(f"atnet_{_name}", _size))
