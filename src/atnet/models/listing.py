"""Weights that are on this machine: those that come with AT-Net, and those in the hub's cache."""

import timm

from atnet.errors import WeightsError
from atnet.models.load import read_info
from atnet.models.pretrained import pretrained_of
from atnet.weights.find import Source
from atnet.weights.hub import cached
from atnet.weights.info import HUB, TIMM, shipped_weights


def known_weights() -> list[dict[str, str | int | float | None]]:
    """Of each: name, what --weights takes; classes, None if it does not say; mb, the file's size; and from where."""
    rows: list[dict[str, str | int | float | None]] = []
    for path in shipped_weights():
        rows.append(_row(path.stem, len(read_info(path).classes), path.stat().st_size, "atnet"))
    for one in cached():
        owner, _, network = one.repository.partition("/")
        is_timms = owner == "timm" and network in timm.list_pretrained()
        source = Source(
            name="", path=one.path, model=network if is_timms else "", config=None if is_timms else one.config
        )
        try:
            classes = pretrained_of(source).classes if is_timms or one.config else None
        except WeightsError:
            classes = None
        name = f"{TIMM}{network}" if is_timms else f"{HUB}{one.repository}"
        rows.append(_row(name, classes, one.path.stat().st_size, "hub"))
    return rows


def _row(name: str, classes: int | None, size: int, place: str) -> dict[str, str | int | float | None]:
    return {"name": name, "classes": classes, "mb": round(size / 1e6, 1), "from": place}
