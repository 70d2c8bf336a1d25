"""What a weights file says of itself. Free of torch."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atnet.data.preprocess import Preprocess
from atnet.errors import WeightsError
from atnet.files import read_regular, read_text, write_whole

METADATA = "atnet"
"""The key, in a weights file's metadata, of what it says of itself."""

WEIGHTS = Path(__file__).parent
"""What comes with AT-Net: for each name a safetensors file, an ONNX file, and a model card."""

GENERAL = "general"
"""The tag of weights that know many classes, by which a training begins where no others are named."""

SHIPPED = f"xxxs.{GENERAL}"
"""What answers before there is a run."""


def shipped_weights() -> list[Path]:
    """The safetensors files that come with AT-Net, called SIZE.TAG."""
    return sorted(WEIGHTS.glob("[!.]*.*.safetensors"))


def general_weights(model: str) -> str:
    """The name of the general weights of a model, "xxxs" or "atnet_xxxs"; "" if none come with AT-Net."""
    name = f"{model.removeprefix('atnet_')}.{GENERAL}"
    return name if any(path.stem == name for path in shipped_weights()) else ""


LAST, EMA, BEST = "last.safetensors", "ema.safetensors", "best.safetensors"
"""Weights in a run's folder."""

CONFIG = "config.yaml"
"""A run's configuration, beside them."""

MODEL, HASHES = "model.safetensors", "sha256.json"
"""A published folder's weights, and the SHA-256 of its files, or of a run's: a hash or a list of those that pass."""

MAX_HASHES_BYTES = 1_000_000
MAX_CONFIG_BYTES = 20_000_000
MAX_WEIGHTS_BYTES = 4_000_000_000
MAX_METADATA = 10_000_000
"""Characters: enough for 100,000 classes with long names."""

MAX_CLASSES = 100_000
MAX_NAME = 1000
"""Characters of a class's or a model's name."""

MAX_FACTS = 100_000
"""Characters; ours have 2,000."""

MAX_DEPTH = 8
"""Of lists in lists among facts."""

log = logging.getLogger("atnet")

INFINITE = "its answers are not finite numbers; train it, or export its weights, again"

HUB, TIMM, LOCAL = "hf-hub:", "timm:", "local-dir:"
"""Before a name on the Hugging Face hub, the name of timm's weights, a folder in the hub's layout."""

BINARY, TIMM_CONFIG = "pytorch_model.bin", "config.json"
"""Of a folder in the hub's layout: tensors as torch.save writes them, and what timm says of them."""


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a weights file says of itself.

    classes: the dataset's own names, in the order of the logits.  class_names: what a person reads.
    """

    model: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    preprocess: Preprocess
    epoch: int
    moving_average: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """One key alone: safetensors writes several in no fixed order, so that equal files would differ.

        Facts that JSON does not have are left out.
        """
        return {METADATA: json.dumps(asdict(self) | {"facts": _sound_facts(self.facts, "weights")}, allow_nan=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None, path: Path) -> "WeightsInfo":
        """Raises WeightsError if the metadata is not such a file's. Facts that JSON does not have are left out."""
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
                facts=_sound_facts(dict(values["facts"]), path),
            )
            for name in (made.model, *made.classes, *made.class_names):
                name.encode()  # half of a surrogate pair can be written nowhere
            if abs(made.epoch) > 2**53:
                raise ValueError("an epoch that is none")
            if len(made.model) > MAX_NAME or len(made.classes) > MAX_CLASSES:
                raise ValueError(f"a name of more than {MAX_NAME:,} characters, or more than {MAX_CLASSES:,} classes")
            if max(map(len, (*made.classes, *made.class_names)), default=0) > MAX_NAME:
                raise ValueError(f"a class name of more than {MAX_NAME:,} characters")
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise WeightsError(
                f"{path}: without AT-Net's metadata ({error!s:.300}): use weights that `atnet train` or `atnet export` "
                "wrote"
            ) from error
        if not made.classes or len(set(made.classes)) != len(made.classes):
            raise WeightsError(f"{path}: its class list is empty or names a class twice")
        if len(made.classes) != len(made.class_names):
            raise WeightsError(f"{path}: its class list does not match its class names")
        return made


def _sound_facts(facts: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """Those that can be written as JSON again: finite numbers, UTF-8, no deeper and longer than any of ours."""
    sound = {name: value for name, value in facts.items() if _is_sound([name, value], MAX_DEPTH)}
    if len(sound) < len(facts):
        left_out = next(name for name in facts if name not in sound)
        log.warning("%s: what it says of %.80a is no finite number, or no text: left out", path, left_out)
    if len(json.dumps(sound)) > MAX_FACTS:
        raise ValueError(f"facts of more than {MAX_FACTS:,} characters")
    return sound


def _is_sound(value: Any, depth: int) -> bool:
    if isinstance(value, dict | list):
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(_is_sound(one, depth - 1) for one in inside)
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return value is None or abs(value) < 1e300  # NaN is not


def read_unchanged(path: Path, most: int = MAX_WEIGHTS_BYTES) -> bytes:
    """The file's bytes. Raises WeightsError if it is another kind of file, has more than most bytes, or its folder's
    `HASHES` names it and says that it is another one; where they name it not, it passes.
    """
    expected = _accepted(path.with_name(HASHES)).get(path.name)
    try:
        content = read_regular(path, most, WeightsError)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: is gone") from error
    if expected is not None and sha256_of(content) not in expected:
        raise WeightsError(
            f"{path}: damaged or changed, for {HASHES} has another SHA-256; fetch, publish or train it again"
        )
    return content


def note_hashes(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes into the folder's `HASHES` that its files, by name, may have these contents, or still what they have.

    Called before the files are replaced: then they pass whenever the process is killed.  Names that are not given keep
    what is said of them.  Raises OSError if the disk does not take it.
    """
    try:
        noted = _accepted(folder / HASHES)
    except WeightsError:
        noted = {}
    for name, content in contents.items():
        new = sha256_of(content)
        try:
            old = sha256_of(read_regular(folder / name, MAX_WEIGHTS_BYTES, WeightsError))
        except (FileNotFoundError, WeightsError):
            old = new
        noted[name] = [*([old] if old != new and old in noted.get(name, [old]) else []), new]
    write_whole(folder / HASHES, (json.dumps(noted, indent=1) + "\n").encode())


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _accepted(listed: Path) -> dict[str, list[str]]:
    """The hashes that each file may have by a file `HASHES`, none if that is absent. Raises WeightsError if it is
    damaged.
    """
    try:
        text = read_text(listed, MAX_HASHES_BYTES, WeightsError)
    except FileNotFoundError:
        return {}
    try:
        values = {name: [one] if isinstance(one, str) else one for name, one in dict(json.loads(text)).items()}
        if not all(isinstance(ones, list) and all(isinstance(one, str) for one in ones) for ones in values.values()):
            raise ValueError("hashes that are no text")
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{listed}: damaged ({error}); fetch or publish the folder again, or delete it to use the files unchecked"
        ) from error
    return values
