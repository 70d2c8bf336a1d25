"""Weights as a folder in the Hugging Face hub's layout, which timm, transformers and AT-Net load, or pushed there."""

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from atnet.errors import ConfigError, HubError, WeightsError
from atnet.export.card import write_card
from atnet.export.web import whole_folder
from atnet.files import write_whole
from atnet.models.load import has_fixed_input, load, to_safetensors
from atnet.models.registry import pretrained_cfg
from atnet.models.sizes import split_name
from atnet.weights.find import Source, find_weights
from atnet.weights.info import HASHES, HUB, MODEL, WEIGHTS, WeightsInfo

log = logging.getLogger("atnet")

CONFIG, CARD, ONNX, WEB = "config.json", "README.md", "model.onnx", "web"
TOLERANCE = 1e-6
"""Largest difference of a logit between timm and AT-Net, over the largest logit."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was published.

    where: the folder, or the commit's web address.  address: what `--weights` takes.  files: the bytes of each.
    """

    where: str
    address: str
    files: dict[str, int]


def publish(
    weights: str | Path = "runs/last",
    *,
    to: str | Path,
    onnx: bool = False,
    web: bool = False,
    private: bool = False,
    licence: str | None = None,
    data: str | None = None,
    model: str = "",
) -> Published:
    """Writes weights, timm's config.json, a model card and hashes to a folder, or pushes them to the hub in one commit.

    weights, model: as for `atnet.load`.
    to: a folder, absent or empty; or "user/name" on the hub, see `hub_name`.
    onnx, web: also the file of `atnet export`, and the page of `atnet web`.
    private: whether others may not see it on the hub.
    licence: of the weights, as the hub calls it (apache-2.0, cc-by-4.0); if None, apache-2.0 of those that come with
    AT-Net, else unknown.
    data: a folder of class folders to check those exports on, the run's validation images if None.
    The folder gets its name when all is written, and timm has made the same network of it.
    Raises ConfigError on an option that cannot be, WeightsError on unusable weights, HubError if the hub refuses.
    """
    source = find_weights(weights, model)
    if licence is None:
        licence = "apache-2.0" if source.path.parent == WEIGHTS else "unknown"
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise ConfigError(f"licence {licence!r}: say it as the hub does, apache-2.0 or cc-by-4.0 for example")
    name = hub_name(to)

    def write(folder: Path, title: str) -> dict[str, int]:
        return _write(folder, source, title=title, name=name, onnx=onnx, web=web, licence=licence, data=data)

    if name is not None:
        return _push(name, write, private)
    if private:
        raise ConfigError(f"{to}: is a folder, as private as you keep it; --private is for the hub")
    path = Path(to).expanduser()
    with whole_folder(path) as folder:
        files = write(folder, path.resolve().name)
    return Published(where=str(path), address=str(path), files=files)


def hub_name(to: str | Path) -> str | None:
    """The name if "user/name" on the hub is meant, None if a folder is.

    It is a folder where there is a folder user to put it into, so that nothing leaves the machine because of a name;
    "hf-hub:user/name" is always on the hub, ./user/name never.
    Raises ConfigError if no name of that kind follows "hf-hub:".
    """
    said = str(to)
    name = said.removeprefix(HUB)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        if said != name:
            raise ConfigError(f"{said}: on the hub a model is called {HUB}user/name")
        return None
    return None if said == name and Path(name).parent.exists() else name


def _push(name: str, write: Callable[[Path, str], dict[str, int]], private: bool) -> Published:
    from atnet.weights.hub import Hub

    try:
        hub = Hub()
    except HubError as error:
        raise HubError(f"{error}; if {name} is meant as a folder, say ./{name}") from error
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = write(folder, name.partition("/")[2])
        log.info(
            "to %s on the hub, as %s%s, in one commit:\n%s",
            name,
            hub.user,
            ", private" if private else "",
            "\n".join(f"  {file}, {size / 1e6:.2f} MB" for file, size in files.items()),
        )
        where = hub.push(folder, name, private=private, message="Published by atnet")
    return Published(where=where, address=f"{HUB}{name}", files=files)


def _write(
    folder: Path, source: Source, *, title: str, name: str | None, onnx: bool, web: bool, licence: str, data: str | None
) -> dict[str, int]:
    """Writes all files to an empty folder; the bytes of each."""
    model, info = load(source)
    (folder / MODEL).write_bytes(to_safetensors(model.state_dict(), info))
    config = json.dumps(_config(model, info, licence), indent=2, allow_nan=False)
    (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
    _require_same_in_timm(folder, model, info)
    if onnx and source.path.parent == WEIGHTS:
        shutil.copyfile(source.path.with_suffix(".onnx"), folder / ONNX)
    elif onnx:
        from atnet.export.export import export

        export(source, folder / ONNX, licence=licence, data=data)
    if web:
        from atnet.export.web import write_web

        write_web(folder / WEB, source, data=data)
    hashes = {file: _sha256(folder / file) for file in _files(folder)}
    write_whole(folder / HASHES, (json.dumps(hashes, indent=2) + "\n").encode())
    card = write_card(source.path, info, title=title, name=name, licence=licence, onnx=onnx, web=web)
    write_whole(folder / CARD, card.encode("utf-8", "backslashreplace"))
    return {file: (folder / file).stat().st_size for file in _files(folder)}


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config(model: nn.Module, info: WeightsInfo, licence: str) -> dict[str, Any]:
    """config.json, as timm 1.0.31 and transformers 5 read it.

    In both, model_args go beside num_classes into one call, so it must not be among them; and null in their place is
    none only for transformers.
    """
    architecture, arguments = split_name(info.model)
    if has_fixed_input(info.model):
        arguments["img_size"] = info.preprocess.size
    told = pretrained_cfg(info)
    known: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return {
        "architecture": architecture.partition(".")[0],
        "num_classes": told["num_classes"],
        "num_features": model.num_features,
        "label_names": told.pop("label_names"),
        "label_descriptions": told.pop("label_descriptions"),
        "model_args": arguments,
        "pretrained_cfg": {
            **told,
            "fixed_input_size": has_fixed_input(info.model),
            "first_conv": known["first_conv"],
            "classifier": known["classifier"],
            "license": licence,
        },
    }


def _require_same_in_timm(folder: Path, model: nn.Module, info: WeightsInfo) -> None:
    """Raises WeightsError if timm does not make the same network of the folder."""
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.randn(1, 3, info.preprocess.size, info.preprocess.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(image)
        apart = float((theirs(image) - expected).abs().max() / expected.abs().max())
    if not apart <= TOLERANCE:
        raise WeightsError(
            f"{info.model}: what timm makes of the folder is another network, logits apart by {apart:.1e} of the "
            "largest: nothing was published"
        )
