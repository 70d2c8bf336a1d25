"""ImageNet-1k as its archives and Kaggle lay it: training folders by WordNet id, validation flat with a list."""

import csv
import io
import os
import re
import struct
import zlib
from pathlib import Path

from atnet.data.folders import Folder, list_images, subfolders
from atnet.data.samples import Samples, collect
from atnet.errors import DataError
from atnet.files import read_regular, read_text

SOLUTION = "LOC_val_solution.csv"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS = "meta.mat"
MAX_LIST_BYTES = 50_000_000
_INNER = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+$", re.IGNORECASE)


def data_root(root: Path) -> Path:
    """The folder with train/ and val/ in it: the root, or the one in Kaggle's archive."""
    return next((root / inner for inner in _INNER if os.path.isdir(root / inner / "train")), root)


def open_flat_validation(root: Path, val: Path) -> Samples | None:
    """The images of a flat val/, labelled by Kaggle's list or the devkit's; None if it is not flat.

    Raises DataError if it is flat and there is no list, or the list does not name an image.
    """
    if subfolders(val):
        return None
    names = list_images(val)
    if not names:
        return None
    solution, truth = _find(root, SOLUTION), _find(root, GROUND_TRUTH)
    if solution is not None:
        known = _read_solution(solution)
        classes = [known.get(Path(name).stem) for name in names]
    elif truth is not None:
        labels = _read_ground_truth(truth)
        numbers = [_NUMBER.search(name) for name in names]
        classes = [
            labels[int(found[1]) - 1] if found is not None and 1 <= int(found[1]) <= len(labels) else None
            for found in numbers
        ]
    else:
        raise DataError(
            f"{val}: its images lie in no class folders; put {SOLUTION} or the devkit's {GROUND_TRUTH} "
            f"and {SYNSETS} in {root}, or sort them into a folder for each class"
        )
    unknown = next((name for name, label in zip(names, classes, strict=True) if label is None), None)
    if unknown is not None:
        raise DataError(f"{val / unknown}: {solution or truth} does not say what it shows: remove it")
    return collect(Folder(val), names, [label for label in classes if label is not None])


def _find(root: Path, name: str) -> Path | None:
    """The file in root, above it as far as Kaggle's archive goes, or in the devkit's folder."""
    places = [root, *root.parents[:3]]
    inner = ["", "ILSVRC2012_devkit_t12/data", "data"]
    return next(
        (place / folder / name for place in places for folder in inner if os.path.isfile(place / folder / name)), None
    )


def _read_solution(path: Path) -> dict[str, str]:
    """Of each image's name the WordNet id."""
    rows = csv.DictReader(io.StringIO(read_text(path, MAX_LIST_BYTES, DataError), newline=""))
    try:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (KeyError, IndexError, AttributeError, csv.Error) as error:
        raise DataError(f"{path}: not Kaggle's list, ImageId,PredictionString ({error!r})") from error


def _read_ground_truth(path: Path) -> list[str]:
    """The WordNet ids of the validation images, in their numbers' order."""
    from scipy.io import loadmat

    synsets = path.parent / SYNSETS
    if not synsets.is_file():
        raise DataError(f"{path}: {SYNSETS} of the devkit is not beside it; the numbers mean nothing without it")
    content = read_regular(synsets, MAX_LIST_BYTES, DataError)
    _require_modest(content, synsets)
    numbers = read_text(path, MAX_LIST_BYTES, DataError).split()
    try:
        table = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        wordnet = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
        return [wordnet[int(line)] for line in numbers]
    except Exception as error:  # the reader of MATLAB's files raises whatever a damaged one brings about
        raise DataError(f"{path}: not the devkit's numbers, or {synsets} not its synsets ({error!r})") from error


def _require_modest(content: bytes, path: Path) -> None:
    """Raises DataError if a file of MATLAB's is many times larger once it is decompressed."""
    at = 128
    while at + 8 <= len(content):
        kind, size = struct.unpack("<II", content[at : at + 8])
        if kind == 15:  # miCOMPRESSED
            try:
                found = len(zlib.decompressobj().decompress(content[at + 8 : at + 8 + size], MAX_LIST_BYTES))
            except zlib.error as error:
                raise DataError(f"{path}: damaged ({error})") from error
            if found >= MAX_LIST_BYTES:
                raise DataError(f"{path}: more than {MAX_LIST_BYTES:,} bytes once decompressed")
        at += 8 + size
