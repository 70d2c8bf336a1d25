"""Which weights file is meant by a run, a folder, a name or an address on the hub. Free of torch."""

import os
from pathlib import Path

from atnet.errors import WeightsError
from atnet.files import did_you_mean, resolve_run
from atnet.weights.info import EMA, HUB, LAST, MODEL, WEIGHTS


def find_weights(where: str | Path) -> Path:
    """The weights file of a run or folder (the moving average before the last epoch), the file itself, or by its
    name, "xxxs.imagenette", one that comes with AT-Net; or "hf-hub:user/name" or "hf-hub:user/name@revision",
    fetched from the Hugging Face hub.

    Raises WeightsError if there is none, HubError if the hub does not give it.
    """
    if str(where).startswith(HUB):
        from atnet.weights.hub import fetch

        return fetch(Path(where).as_posix())
    path = resolve_run(where)
    if str(where) == path.name and not path.exists():
        shipped = WEIGHTS / f"{path.name.removeprefix('atnet_')}.safetensors"
        if os.path.isfile(shipped):
            return shipped
    if path.is_dir():
        for name in (EMA, LAST, MODEL):
            if os.path.isfile(path / name):
                return path / name
        raise WeightsError(f"{path}: no weights in it ({EMA}, {LAST} or {MODEL}): a run has them after its first epoch")
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such run, folder or weights file{did_you_mean(path, 'runs')}")
    return path
