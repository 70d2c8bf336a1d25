"""What tools for annotation export as JSON, as rows of a list: COCO, FiftyOne, Label Studio. Free of torch."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atnet.errors import DataError

BESIDE = ("", "images", "data", "..", "../images", "../data")
"""Folders in which a tool may have put the images, from that of its file."""

SERVED = ("/data/local-files/?d=", "/data/upload/")
"""How Label Studio calls files that it serves."""

MAX_EXPORT_BYTES = 200_000_000


def rows_of(path: Path, found: Any) -> Iterator[dict[str, Any]]:
    """Rows of a file whose JSON is one object.

    Raises DataError if it is none of the known ones, or an image has several classes.
    """
    try:
        if isinstance(found, dict) and {"images", "annotations", "categories"} <= found.keys():
            return _of_coco(path, found)
        if isinstance(found, dict) and isinstance(found.get("labels"), dict):
            return _of_fiftyone(path, found)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged, or another tool's: {error!r} is not as COCO or FiftyOne have it") from error
    raise DataError(
        f"{path}: expected a list of objects, each with a path and a label, or an export of COCO, FiftyOne or Label "
        "Studio"
    )


def _of_coco(path: Path, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    names = {one["id"]: str(one["name"]) for one in found["categories"]}
    classes: defaultdict[Any, set[str]] = defaultdict(set)
    for one in found["annotations"]:
        classes[one["image_id"]].add(names[one["category_id"]])
    files = {one["id"]: str(one["file_name"]) for one in found["images"]}
    folder = _folder_of(path, list(files.values()))
    rows = [(files[image], _one_class(path, files[image], labels)) for image, labels in classes.items()]
    return iter([{"path": os.path.join(folder, file), "label": label} for file, label in rows])


def _of_fiftyone(path: Path, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    names = found.get("classes")
    folder = path.parent / "data"
    files = {file.stem: file.name for file in folder.iterdir()} if folder.is_dir() else {}
    rows = []
    for image, label in found["labels"].items():
        label = label["label"] if isinstance(label, dict) else label
        name = str(names[label]) if names and isinstance(label, int) else label
        if isinstance(label, list):
            raise _several(path, image, label)
        rows.append({"path": os.path.join("data", files.get(Path(image).stem, image)), "label": name})
    return iter(rows)


def row_of_task(path: Path, one: dict[str, Any]) -> dict[str, Any] | None:
    """A row of a task of Label Studio; None if nobody has labelled it."""
    try:
        image = next(str(one["data"][name]) for name in ("image", "img", *one["data"]) if name in one["data"])
        results = [result for done in one["annotations"] for result in done["result"]]
        choices = {choice for result in results for choice in result["value"].get("choices", ())}
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(f"{path}: a task that is not as Label Studio has it ({error!r})") from error
    return {"path": image, "label": _one_class(path, image, choices)} if choices else None


def local(image: str) -> str:
    """The path of a file by the name that Label Studio serves it by."""
    return next((image[len(prefix) :] for prefix in SERVED if image.startswith(prefix)), image)


def _folder_of(path: Path, files: list[str]) -> str:
    """Where the first of the files is, from the folder of the path; that folder if nowhere."""
    first = files[0] if files else ""
    return next((beside for beside in BESIDE if first and (path.parent / beside / first).is_file()), "")


def _one_class(path: Path, image: str, labels: set[str]) -> str:
    if len(labels) != 1:
        raise _several(path, image, sorted(labels))
    return next(iter(labels))


def _several(path: Path, image: str, labels: list[Any]) -> DataError:
    said = ", ".join(map(str, labels[:5]))
    return DataError(
        f"{path}: {image} has {len(labels)} classes ({said}), and an image has one here: cut the objects out of it, or "
        "keep one class"
    )
