"""Which weights are meant by a run, a folder, a file or a name, and the files that they are in. Free of torch."""

import dataclasses
import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from atnet.errors import WeightsError
from atnet.files import did_you_mean, resolve_run
from atnet.weights.info import BINARY, EMA, HUB, LAST, LOCAL, MODEL, TIMM, TIMM_CONFIG, WEIGHTS


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of some weights.

    name: what --weights takes to mean the same from any folder, and tomorrow: on the hub, with the commit.
    path: the tensors.
    model: the architecture, where the name or --model tells it; timm's may have a tag, "resnet18.a1_in1k".
    config: timm's config.json beside the tensors, if there is one.
    sha256: of the tensors, by the hub; "" if it does not say.
    """

    name: str
    path: Path
    model: str = ""
    config: Path | None = None
    sha256: str = ""

    @property
    def is_fetched(self) -> bool:
        """Whether it is from the hub, and so lies in the hub's cache."""
        return self.name.startswith((HUB, TIMM))

    @property
    def title(self) -> str:
        """What the network is called, for a file made of it: the last part of its name on the hub, or the file's."""
        if self.is_fetched:
            return self.name.partition("@")[0].rpartition(":")[2].rpartition("/")[2]
        return self.path.stem


def find_weights(where: str | Path, model: str = "") -> Source:
    """The files of weights.

    where: a run or folder (the moving average before the last epoch), a file, or by its name, "xxxs.imagenette", what
    comes with AT-Net; "timm:resnet18" or "timm:resnet18.a1_in1k", timm's, "hf-hub:user/name", both with "@revision" if
    one is meant, fetched from the Hugging Face hub; "local-dir:folder" in the hub's layout.
    model: the architecture of a file that says nothing of itself, "NAME=FILE" for short.
    Raises WeightsError if there is none, HubError if the hub does not give it.
    """
    said = Path(where).as_posix()
    if said.startswith((HUB, TIMM)):
        return _fetched(said, model)
    named, equals, file = said.partition("=")
    if equals and not model and "/" not in named and not os.path.exists(said) and os.path.isfile(file):
        found = find_weights(file, named)
        return dataclasses.replace(found, name=f"{named}={found.name}")
    path = resolve_run(said.removeprefix(LOCAL))
    if said == path.name and not path.exists():
        shipped = WEIGHTS / f"{path.name.removeprefix('atnet_')}.safetensors"
        if os.path.isfile(shipped):
            return Source(name=str(shipped), path=shipped, model=model)
    if path.is_dir():
        for name in (EMA, LAST, MODEL, BINARY):
            if os.path.isfile(path / name):
                beside = path / TIMM_CONFIG
                config = beside if name in (MODEL, BINARY) and os.path.isfile(beside) else None
                by_folder = config is not None or said.startswith(LOCAL)
                address = f"{LOCAL}{path.resolve()}" if by_folder else str((path / name).resolve())
                return Source(name=address, path=path / name, model=model, config=config)
        raise WeightsError(
            f"{path}: no weights in it ({EMA}, {LAST}, {MODEL} or {BINARY}): a run has them after its first epoch"
        )
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such run, folder or weights file{did_you_mean(path, 'runs')}{_of_timm(said)}")
    if said.startswith(LOCAL):
        raise WeightsError(f"{said}: a file; {LOCAL} stands before a folder, so leave it out")
    return Source(name=str(path.resolve()), path=path, model=model)


def _of_timm(name: str) -> str:
    """That timm has a network of this name, where a bare name is one."""
    if "/" in name or not name.replace(".", "_").isidentifier():
        return ""
    import timm

    return f"; timm's pretrained network is {TIMM}{name}" if timm.is_model(name) else ""


def _fetched(address: str, model: str) -> Source:
    from atnet.weights.hub import fetch

    name, _, revision = address.partition("@")
    if name.startswith(HUB):
        files = fetch(name.removeprefix(HUB), revision, address=address)
        return Source(
            name=f"{name}@{files.commit}", path=files.path, model=model, config=files.config, sha256=files.sha256
        )
    full, repository = pretrained_of_timm(name.removeprefix(TIMM))
    files = fetch(repository, revision, address=address, with_config=False)
    return Source(name=f"{TIMM}{full}@{files.commit}", path=files.path, model=full, sha256=files.sha256)


def pretrained_of_timm(name: str) -> tuple[str, str]:
    """Of timm's weights, named with a tag or without ("resnet18.a1_in1k", "resnet18"), the name with it and where they
    are on the hub.

    Raises WeightsError naming what is called alike, or where weights are that are not on the hub.
    """
    import timm

    architecture, _, tag = name.partition(".")
    known = timm.list_pretrained()
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(TIMM + one for one in near)}?" if near else "timm.list_pretrained() has all"
        raise WeightsError(f"{TIMM}{name}: timm has no network of this name: {hint}")
    of_network = [one for one in known if one.partition(".")[0] == architecture]
    if not of_network:
        raise WeightsError(
            f"{TIMM}{name}: timm has no pretrained weights of it: use another, or train it from the start"
        )
    if tag and name not in of_network:
        raise WeightsError(f"{TIMM}{name}: no such weights: timm has {', '.join(TIMM + one for one in of_network)}")
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    full = f"{architecture}.{config.tag}" if config.tag else architecture
    if config.file:
        raise WeightsError(
            f"{TIMM}{name}: comes with AT-Net, and is called {architecture.removeprefix('atnet_')}.{tag}"
        )
    if not config.hf_hub_id:
        url = config.url if isinstance(config.url, str) else (config.url or [""])[0]
        raise WeightsError(
            f"{TIMM}{full}: not on the hub, but at {url}: fetch that, then --weights FILE --model {architecture}"
        )
    return full, config.hf_hub_id
