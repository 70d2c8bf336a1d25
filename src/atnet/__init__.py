"""AT-Net: light image classifiers, convolution first, attention after.

    import atnet
    model = atnet.create_model("xxxs", num_classes=10)
    run = atnet.train("recipes/digits.yaml", epochs=3)
    atnet.evaluate(run.folder).scores.top1
    atnet.predict("photo.jpg", weights=run.folder)[0].name

The names below are imported when they are first used: `import atnet` alone imports no torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atnet.measure.embed import embed as embed
    from atnet.measure.evaluate import evaluate as evaluate
    from atnet.model.load import create_model as create_model
    from atnet.model.load import load as load
    from atnet.model.sizes import SIZES as SIZES
    from atnet.prediction import predict as predict
    from atnet.show.explain import explain as explain
    from atnet.show.run import render_run as render_run
    from atnet.training.loop import train as train
    from atnet.training.plan import forecast as forecast

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or ONNX Runtime reports the files it opens to its makers

__version__ = "0.1.0"

_HOMES = {
    "SIZES": "atnet.model.sizes",
    "create_model": "atnet.model.load",
    "embed": "atnet.measure.embed",
    "evaluate": "atnet.measure.evaluate",
    "explain": "atnet.show.explain",
    "forecast": "atnet.training.plan",
    "load": "atnet.model.load",
    "predict": "atnet.prediction",
    "render_run": "atnet.show.run",
    "train": "atnet.training.loop",
}
__all__ = [
    "SIZES", "create_model", "embed", "evaluate", "explain", "forecast", "load", "predict", "render_run", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'atnet' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
