"""What a weights file says of itself, and which file of a run is meant. Free of torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atnet.data.preprocess import Preprocess
from atnet.errors import WeightsError
from atnet.files import did_you_mean, resolve_run

METADATA = "atnet"
"""The key, in a weights file's metadata, of what it says of itself."""

WEIGHTS = Path(__file__).parent.parent / "weights"
"""What comes with AT-Net: for each name a safetensors file, an ONNX file, and a model card."""

SHIPPED = "xxxs.imagenette"

LAST, EMA, BEST = "last.safetensors", "ema.safetensors", "best.safetensors"

MODEL, HASHES = "model.safetensors", "sha256.json"
"""A published folder's weights, and the SHA-256 of its files."""

MAX_HASHES_BYTES = 1_000_000
MAX_METADATA = 10_000_000
"""Characters: enough for 100,000 classes with long names."""

HUB = "hf-hub:"
"""Before the name of a published folder that is on the Hugging Face hub."""


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a weights file says of itself.

    classes: the data set's own names, in the order of the logits.  class_names: what a person reads.
    """

    model: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    preprocess: Preprocess
    epoch: int
    moving_average: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """One key alone: safetensors writes several in no fixed order, so that equal files would differ."""
        return {METADATA: json.dumps(asdict(self))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None, path: Path) -> "WeightsInfo":
        """Raises WeightsError if the metadata is not such a file's."""
        try:
            text = (metadata or {})[METADATA]
            if len(text) > MAX_METADATA:
                raise ValueError(f"{len(text):,} characters, more than {MAX_METADATA:,}")
            values = json.loads(text)
            made = cls(
                model=str(values["model"]),
                classes=tuple(map(str, values["classes"])),
                class_names=tuple(map(str, values["class_names"])),
                preprocess=Preprocess.from_dict(values["preprocess"]),
                epoch=int(values["epoch"]),
                moving_average=bool(values["moving_average"]),
                facts=dict(values["facts"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise WeightsError(
                f"{path}: without AT-Net's metadata ({error}); use weights that `atnet train` or `atnet export` wrote"
            ) from error
        if not made.classes or len(set(made.classes)) != len(made.classes):
            raise WeightsError(f"{path}: its class list is empty or names a class twice")
        if len(made.classes) != len(made.class_names):
            raise WeightsError(f"{path}: its class list does not match its class names")
        return made


def find_weights(where: str | Path) -> Path:
    """The weights file of a run or folder (the moving average before the last epoch), the file itself, or by its
    name, "xxxs.imagenette", one that comes with AT-Net; or "hf-hub:user/name" or "hf-hub:user/name@revision",
    fetched from the Hugging Face hub.

    Raises WeightsError if there is none, HubError if the hub does not give it.
    """
    if str(where).startswith(HUB):
        from atnet.hub import fetch

        return fetch(Path(where).as_posix())
    path = resolve_run(where)
    if str(where) == path.name and not path.exists():
        shipped = WEIGHTS / f"{path.name.removeprefix('atnet_')}.safetensors"
        if shipped.is_file():
            return shipped
    if path.is_dir():
        for name in (EMA, LAST, MODEL):
            if (path / name).is_file():
                return path / name
        raise WeightsError(f"{path}: no weights in it ({EMA}, {LAST} or {MODEL}): a run has them after its first epoch")
    if not path.is_file():
        raise WeightsError(f"{path}: no such run, folder or weights file{did_you_mean(path, 'runs')}")
    return path


def require_unchanged(path: Path) -> None:
    """Raises WeightsError if the file lies in a published folder and is not the one that was published there."""
    listed = path.with_name(HASHES)
    if not listed.is_file():
        return
    try:
        if listed.stat().st_size > MAX_HASHES_BYTES:
            raise ValueError("too large")
        expected = dict(json.loads(listed.read_bytes())).get(path.name)
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{listed}: damaged ({error}); publish or fetch the folder again") from error
    if expected is None:  # put there later
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise WeightsError(f"{path}: damaged or changed, for {HASHES} has another SHA-256; publish or fetch it again")
