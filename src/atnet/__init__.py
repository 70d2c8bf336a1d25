"""AT-Net: light image classifiers, convolution first, attention after.

    import atnet
    model = atnet.create_model("xxxs", num_classes=10)
    run = atnet.train("recipes/digits.yaml", epochs=3)
    atnet.evaluate(run.folder).scores.top1
    atnet.predict("photo.jpg", weights=run.folder)[0].name

The names below are imported when they are first used: `import atnet` alone imports no torch.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from atnet.moved import Finder
from atnet.version import __version__ as __version__

if TYPE_CHECKING:
    from atnet.eval.evaluate import evaluate as evaluate
    from atnet.inference.embed import embed as embed
    from atnet.inference.prediction import predict as predict
    from atnet.models.load import create_model as create_model
    from atnet.models.load import load as load
    from atnet.models.save import save as save
    from atnet.models.sizes import SIZES as SIZES
    from atnet.training.loop import probe as probe
    from atnet.training.loop import train as train
    from atnet.training.plan import forecast as forecast
    from atnet.training.pretrain import pretrain as pretrain
    from atnet.viz.explain import explain as explain
    from atnet.viz.run import render_run as render_run

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or ONNX Runtime reports the files it opens to its makers

sys.meta_path.append(Finder())

_HOMES = {
    "SIZES": "atnet.models.sizes",
    "create_model": "atnet.models.load",
    "embed": "atnet.inference.embed",
    "evaluate": "atnet.eval.evaluate",
    "explain": "atnet.viz.explain",
    "forecast": "atnet.training.plan",
    "load": "atnet.models.load",
    "predict": "atnet.inference.prediction",
    "pretrain": "atnet.training.pretrain",
    "probe": "atnet.training.loop",
    "render_run": "atnet.viz.run",
    "save": "atnet.models.save",
    "train": "atnet.training.loop",
}
__all__ = [
    "SIZES", "create_model", "embed", "evaluate", "explain", "forecast", "load", "predict", "pretrain", "probe",
    "render_run", "save", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'atnet' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
