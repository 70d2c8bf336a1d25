"""The model card of published weights: what they are, by the weights file and the run's record, and how to use them."""

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from atnet.data.classes import printable
from atnet.data.preprocess import CROP, LETTERBOX, SQUASH
from atnet.models.cost import macs_of
from atnet.models.load import create_classifier
from atnet.models.sizes import layout_of
from atnet.progress import counted, duration
from atnet.run.record import RECORD, read_record, without_folders
from atnet.weights.info import HUB, WeightsInfo

MAX_NAMES = 100
"""Class names that the card lists."""

RESIZED = {CROP: "the shorter side to", LETTERBOX: "on the mean colour, the longer side to", SQUASH: "both sides to"}


def write_card(
    source: Path, info: WeightsInfo, *, title: str, name: str | None, licence: str, onnx: bool, web: bool
) -> str:
    """The card in Markdown, the hub's metadata before it in YAML.

    source: the weights file; a run's record beside it tells of the training, and a Markdown file of its name beside it
    (ema.md) has its maker's own words, in place of the general ones on limits.
    name: "user/name" on the hub, None of a folder.
    Raises ConfigError if the record is damaged.
    """
    size, figures = info.preprocess.size, _figures(info)
    with torch.device("meta"):
        network = create_classifier(info.model, classes=len(info.classes), size=size).eval()
    beside = source.with_suffix(".md")
    notes = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    record = read_record(source.parent)[1] if (source.parent / RECORD).is_file() else None
    values = {
        "title": _escaped(title),
        "metadata": yaml.safe_dump(_metadata(info, title, licence), sort_keys=False, allow_unicode=True),
        "hub": name is not None,
        "address": f"{HUB}{name}" if name else "FOLDER",
        "timm_address": f"{HUB}{name}" if name else "local-dir:FOLDER",
        "repository": name or "FOLDER",
        "model": printable(info.model),
        "layout": layout_of(info.model),
        "names": [_escaped(shown) for shown in info.class_names[:MAX_NAMES]],
        "classes": len(info.classes),
        "info": info,
        "size": size,
        "resized": f"{RESIZED[info.preprocess.resize]} {info.preprocess.side}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs": macs_of(network, (3, size, size)),
        "data": _escaped(str(info.facts.get("data", ""))),
        "figures": ", ".join(f"top-{k} {share:.2f}%" for k, share in figures.items()),
        "record": record,
        "command": printable(without_folders(record["environment"]["command"])) if record else "",
        "epochs": counted(record["epochs"], "epoch") if record else "",
        "took": duration(record["seconds"]) if record else "",
        "licence": licence,
        "onnx": onnx,
        "web": web,
        "notes": re.sub(r"\A\s*# [^\n]*\n+", "", notes).strip(),
    }
    templates = Environment(
        loader=PackageLoader("atnet", "export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("card.md").render(values)


def _metadata(info: WeightsInfo, title: str, licence: str) -> dict[str, Any]:
    """What the hub lists and filters by. Source: huggingface.co/docs/hub/model-cards, "Model card metadata"."""
    found: dict[str, Any] = {
        "license": licence,
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "transformers", "atnet"],
    }
    figures = [
        {"type": "accuracy", "name": f"Top-{k} accuracy", "value": round(share / 100, 6)}
        for k, share in _figures(info).items()
    ]
    if not figures:
        return found
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": "imagefolder", "name": printable(str(info.facts.get("data") or "validation images"))},
        "metrics": figures,
    }
    return found | {"metrics": ["accuracy"], "model-index": [{"name": printable(title), "results": [result]}]}


def _figures(info: WeightsInfo) -> dict[int, float]:
    """Validation's top-1 and top-5 in percent, where the weights file says them."""
    told = {k: info.facts.get(f"val_top{k}") for k in (1, 5)}
    return {k: float(share) for k, share in told.items() if isinstance(share, int | float) and 0 <= share <= 100}


def _escaped(text: str) -> str:
    """The text as Markdown and HTML show it: no markup in it, no control characters, no line of its own."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~])", r"\\\1", printable(text))
