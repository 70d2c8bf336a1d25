"""Module names of before version 0.2: `import atnet.model.load` is `atnet.models.load`, with a DeprecationWarning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_HOMES = {
    "model": {"models": "atnet heads load ops sizes", "weights": "info"},
    "measure": {
        "models": "cost", "run": "record", "eval": "metrics evaluate doctor fitting", "inference": "embed",
        "study": "study compare table", "bench": "bench blocks roof",
    },
    "deploy": {
        "export": "export quantize web runtime publish card", "exported": "onnx untrusted trial preprocessing",
        "serve": "serve openapi connections decoder batching",
    },
    "show": {"viz": "doctor embed explain html report"},
}  # fmt: skip
"""Of each former package its modules, by the package that they are in now."""

MOVED = {
    f"atnet.{old}.{module}": f"atnet.{new}.{module}"
    for old, homes in _HOMES.items()
    for new, modules in homes.items()
    for module in modules.split()
} | {
    "atnet.model.blocks": "atnet.models.atnet",
    "atnet.data.pictures": "atnet.data.samples",
    "atnet.show.pictures": "atnet.viz.plots",
    "atnet.show.layout": "atnet.viz.parts",
    "atnet.measure.trust": "atnet.eval.selective",
    "atnet.measure.bench_worker": "atnet.bench.worker",
    "atnet.training.ranks": "atnet.training.distributed",
    "atnet.deploy.service": "atnet.serve.app",
    "atnet.deploy.decoders": "atnet.serve.decoder",
    "atnet.prediction": "atnet.inference.prediction",
    "atnet.hub": "atnet.weights.hub",
}
PACKAGES = {f"atnet.{old}" for old in _HOMES}


class Finder(MetaPathFinder, Loader):
    """Imports a module of now by its former name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in MOVED or fullname in PACKAGES:
            return ModuleSpec(fullname, self, is_package=fullname in PACKAGES)
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name in MOVED:
            warnings.warn(f"{name} is now {MOVED[name]}", DeprecationWarning, stacklevel=2)
            sys.modules[name] = import_module(MOVED[name])  # which the import takes, in place of the empty module
