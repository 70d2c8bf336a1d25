"""The published table, from the records under results/: no figure is typed by hand."""

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from atnet.config import NONE
from atnet.errors import ConfigError
from atnet.files import markdown_table, replace_between
from atnet.models.cost import cost_of
from atnet.models.load import architecture
from atnet.models.sizes import SIZES, layout_of
from atnet.run.record import kept_weights, publish_record, read_json, read_record
from atnet.study.compare import WHERE, flat_settings
from atnet.weights.info import BEST, EMA, LAST, MODEL

BEGIN, END = "<!-- table: begin, made by `make table` -->", "<!-- table: end -->"


OF_A_RUN = {EMA, LAST, BEST, MODEL}
"""What weights are called in the folder of their run."""
NO_DIFFERENCE = {"seed", "eval_every", "save_minutes", "keep"}
"""Options that a row's runs may have each for itself."""


@dataclass(frozen=True, order=True)
class Protocol:
    """What makes results comparable: data, input side in pixels, epochs."""

    data: str
    size: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.data} {self.size} px, {self.epochs} epochs"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A model's runs under one protocol, one for each seed.

    top1, top5: means, percent.  spread: standard deviation of top1 in points, None of a single seed.
    """

    top1: float
    top5: float
    spread: float | None


Results = dict[tuple[str, Protocol], Result]
"""By name of the row (see `row_name`) and protocol."""


def row_name(record: dict[str, Any]) -> str:
    """The model, and what it had beside the images: "atnet_xxxs, taught by s-long", "atnet_xxxs, from imagenet".

    Of a teacher whose likeliest class alone was learned, "taught the classes of s-long".
    Of a training by AdamW with warm restarts that it is the published recipe.
    """
    config = record.get("config", {})
    teachers = config.get("teacher") or ()
    weights = "" if config.get("weights") == NONE else config.get("weights")
    hard = config.get("distill", {}).get("kind") == "hard"
    notes = [
        f", {word} {' and '.join(map(_name_of, names))}"
        for names, word in (
            ([weights], "from"),
            ([teachers] if isinstance(teachers, str) else teachers, "taught the classes of" if hard else "taught by"),
        )
        if any(names)
    ]
    if config.get("optim", {}).get("name") == "adamw" and config.get("schedule", {}).get("cycle"):
        notes.append(", published recipe")
    return "".join([record["model"], *notes])


def _name_of(weights: str) -> str:
    """What weights in a record are called: by their run, or else by their file or where they lie on the hub."""
    path = PurePosixPath(weights.partition("@")[0])
    return path.parent.name if path.name in OF_A_RUN else path.name.removesuffix(".safetensors")


def model_of(row: str) -> str:
    """The model of a row."""
    return row.partition(",")[0]


def add_record(run: str | Path, results: Path) -> Path:
    """Copies a finished run's record to results/PROTOCOL/MODEL-SEED.json and returns that path.

    Absolute paths in its command become relative to the current folder, or their last part.
    Raises ConfigError if there is one already, or if those of other seeds were trained otherwise.
    """
    _, record = read_record(run)
    path = results / f"{record['data']}-{record['size']}px-{record['epochs']}ep"
    name = row_name(record).removeprefix("atnet_").replace(", ", "-").replace(" ", "-")
    path = path / f"{name}-seed{record['seed']}.json"
    if path.exists():
        raise ConfigError(f"{path}: there is a record already; remove it to publish another")
    for other in sorted(path.parent.glob("*.json")):
        _require_alike(record, read_json(other), other)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_record(path, record)
    return path


def _require_alike(record: dict[str, Any], other: dict[str, Any], path: Path) -> None:
    """Raises ConfigError if the record at path, one of the same row, differs in more than seed and machine."""
    if row_name(other) != row_name(record):
        return
    settings, theirs = (
        flat_settings(one["config"]) | {name: one.get(name) for name in ("class_names", "train_images", "val_images")}
        for one in (record, other)
    )
    for name in sorted((settings.keys() & theirs.keys()) - WHERE - NO_DIFFERENCE):
        if settings[name] != theirs[name]:
            raise ConfigError(
                f"{path}: of the same row, with {name} {theirs[name]!r} where this run has {settings[name]!r}; a row "
                "is of one recipe on one data set: remove that record, or publish this run in another --results"
            )


def read_results(results: Path) -> Results:
    """All published results. Raises ConfigError naming a file that is no record."""
    runs: dict[tuple[str, Protocol], list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*/*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            protocol = Protocol(record["data"], record["size"], record["epochs"])
            kept = kept_weights(record)
            figures = {"top1": record["top1"][kept], "top5": record["top5"][kept]}
            runs.setdefault((row_name(record), protocol), []).append(figures)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not the record of a run ({error!r}); remove it") from error
    return {
        key: Result(
            top1=statistics.mean(one["top1"] for one in found),
            top5=statistics.mean(one["top5"] for one in found),
            spread=statistics.stdev(one["top1"] for one in found) if len(found) > 1 else None,
        )
        for key, found in runs.items()
    }


def make_table(results: Results) -> str:
    """The table in Markdown: our sizes, then peers; a column pair for each protocol that has a record."""
    protocols = sorted({protocol for _, protocol in results})
    head = [
        "Size",
        "Params",
        "without head",
        "Multiply-adds",
        "ConvMix",
        "TransMix",
        "Patch_size",
        "Conv_Size",
        "Embed_Dim",
    ]
    for protocol in protocols:
        head += [f"Top-1, {protocol}", "Top-5"]
    rows = []
    ours = [architecture(name) for name in SIZES]
    others = sorted({name for name, _ in results} - set(ours))
    of_ours = [name for own in ours for name in [own, *(other for other in others if model_of(other) == own)]]
    for name in [*of_ours, *(other for other in others if model_of(other) not in ours)]:
        model = model_of(name)
        cost = cost_of(model, 224)
        size = layout_of(model)
        counts = (cost.parameters, cost.parameters_without_classifier)
        row = [name.replace("atnet_", ""), *(f"{count / 1e6:.2f}M" for count in counts), f"{cost.macs / 1e6:,.0f}M"]
        if size is None:
            row += [""] * 5
        else:
            row += size.columns
        for protocol in protocols:
            found = results.get((name, protocol))
            spread = "" if found is None or found.spread is None else f" ± {found.spread:.2f}"
            row += ["", ""] if found is None else [f"{found.top1:.2f}{spread}", f"{found.top5:.2f}"]
        rows.append(row)
    return markdown_table(head, rows)


def write_table(results: Results, readme: Path, plot: Path) -> None:
    """Puts the table, and below it the plot that is to be there, between the markers in readme."""
    body = make_table(results)
    if results:
        body += f"\n![Top-1 over parameters]({Path(os.path.relpath(plot, readme.parent)).as_posix()})\n"
    replace_between(readme, BEGIN, END, body)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row under one protocol, to be drawn.  parameters: without classifier.  top1, spread: as `Result`."""

    row: str
    epochs: int
    parameters: int
    top1: float
    spread: float | None


def points_of(results: Results) -> dict[str, list[Point]]:
    """The rows of each dataset and input size, "imagenette 128 px", that with the most rows first."""
    points: dict[str, list[Point]] = {}
    for (row, protocol), result in sorted(results.items()):
        points.setdefault(f"{protocol.data} {protocol.size} px", []).append(
            Point(
                row=row,
                epochs=protocol.epochs,
                parameters=cost_of(model_of(row), 224).parameters_without_classifier,
                top1=result.top1,
                spread=result.spread,
            )
        )
    return dict(sorted(points.items(), key=lambda item: -len(item[1])))
