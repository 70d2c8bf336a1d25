"""AT-Net as timm models: after `import atnet.timm`, `timm.create_model("atnet_xxxs")` works."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from atnet.model.atnet import ATNet
from atnet.model.sizes import SIZES, Size


def _default_cfg(size: Size) -> dict[str, Any]:
    side = math.ceil(math.ceil(224 / size.patch) / size.squeeze)
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


default_cfgs = generate_default_cfgs({f"atnet_{name}": _default_cfg(size) for name, size in SIZES.items()})


def _entrypoint(name: str, size: Size) -> Callable[..., ATNet]:
    def create(pretrained: bool = False, **kwargs: Any) -> ATNet:
        model: ATNet = build_model_with_cfg(
            ATNet,
            name,
            pretrained,
            feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
            **{**asdict(size), **kwargs},
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"AT-Net of size {name.removeprefix('atnet_')}; keyword arguments are those of ATNet."
    return create


for _name, _size in SIZES.items():
    register_model(_entrypoint(f"atnet_{_name}", _size))
