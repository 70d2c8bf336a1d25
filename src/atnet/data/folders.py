"""Images in folders: the class is the folder directly below the top. Free of torch."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from atnet.data.classes import class_of
from atnet.data.decode import HEIF_SUFFIXES, NEEDS_HEIF, OTHER_SUFFIXES, SUFFIXES, is_image, read_file
from atnet.data.samples import Samples, collect, some
from atnet.errors import DataError
from atnet.progress import counted

log = logging.getLogger("atnet")

SYSTEMS = {"@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""Folders that systems put there: thumbnails, resource forks, bins."""

NOTES = {".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".yaml", ".yml", ".html", ".log", ".ini", ".db"}
"""Suffixes of files that may lie beside each image and are none; the content of others is looked at."""

LOOKED_AT = 100
"""Most files of one suffix in a folder whose content is looked at."""


@dataclass(frozen=True)
class Folder:
    """Files below a folder, called by their paths in it."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    def locate(self, image: str, place: int) -> str:
        return str(self.root / image)

    def read(self, image: str, place: int) -> bytes:
        return read_file(self.root / image)


def open_folder(root: Path) -> Samples:
    """All images in the folders below root. Raises DataError if there are none, or two folders are one class."""
    classes: list[str] = []
    ids: list[str] = []
    folders: dict[str, str] = {}
    for name in subfolders(root):
        label = class_name(root, name)
        if label in folders:
            raise DataError(f"{root}: two folders are called {label!r} ({folders[label]!a} and {name!a}): merge them")
        folders[label] = name
        found = list_images(root, name)
        if not found:
            log.warning("%s: no images in it, so it is no class", root / name)
        ids += found
        classes += [label] * len(found)
    if not ids:
        if has_images(root):
            raise DataError(
                f"{root}: its images lie in no class folder; give the folder above it if it is one class, "
                "else sort them into a folder for each class"
            )
        raise DataError(
            f"{root}: no class folders with images in it; expected {root.name}/CLASS/IMAGE, "
            f"an image ending in {', '.join(sorted(SUFFIXES))}"
        )
    stray = stray_images(root)
    if stray:
        log.warning("%s: %d images in no class folder are left out (%s)", root, len(stray), some(stray))
    alike = repeated_folders(ids)
    if alike:
        log.warning(
            "%s: its folders are taken for the classes, but all hold the same folders (%s): if they are parts, name "
            "them train and val", root, some(alike),
        )  # fmt: skip
    return collect(Folder(root), ids, classes)


def stray_images(root: Path) -> list[str]:
    """The images directly in a folder of class folders, by their names, sorted."""
    return [name for name in _names(root) if os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)]


def repeated_folders(ids: Iterable[str]) -> list[str]:
    """The folders that lie in every class folder, if they are two or more and most of those in each; sorted.

    ids: paths of images.
    """
    inside: dict[str, set[str]] = {}
    for one in ids:
        top, *rest = one.split(os.sep, 2)
        below = inside.setdefault(top, set())
        if len(rest) == 2:
            below.add(rest[0])
    common = sorted(set.intersection(*inside.values())) if len(inside) > 1 else []
    return common if len(common) > 1 and 2 * len(common) >= max(map(len, inside.values())) else []


def open_album(root: Path) -> Samples:
    """All images in a folder and below it; the class of those directly in it is called ""."""
    ids = list_images(root)
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in ids]
    return collect(Folder(root), ids, [folder and class_name(root, folder) for folder in folders])


def has_images(root: Path) -> bool:
    """Whether images lie directly in the folder, by their names. Raises DataError if it cannot be read."""
    return any(os.path.splitext(name)[1].lower() in SUFFIXES for name in _names(root))


def _names(root: Path) -> list[str]:
    """What lies in a folder, sorted. Raises DataError if it cannot be read."""
    try:
        return sorted(os.listdir(root))
    except OSError as error:
        raise DataError(f"{root}: this folder cannot be read ({error.strerror})") from error


def list_images(root: Path, folder: str = "") -> list[str]:
    """Paths of the images below root/folder, relative to root, sorted; links are followed, each folder once.

    Raises DataError naming a folder that cannot be read.
    """
    found: list[str] = []
    others: Counter[str] = Counter()
    for path, suffix in files_below(root, folder):
        if suffix in SUFFIXES:
            found.append(path)
        else:
            others[suffix] += 1
    heic = sum(others[suffix] for suffix in HEIF_SUFFIXES)
    if heic:  # never left out in silence: where they are, they are most of a folder
        raise DataError(f"{root / folder}: {counted(heic, 'image')} in HEIC, as iPhones write it: {NEEDS_HEIF}")
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(3))
        log.warning("%s: files that are no images are left out (%s)", root / folder, kinds)
        left = unread_images(root, folder)
        if left:
            log.warning(
                "%s: %d of these look like images (%s): convert them, or give them a suffix of %s",
                root / folder, len(left), some(left), ", ".join(sorted(SUFFIXES)),
            )  # fmt: skip
    return sorted(found)


def unread_images(root: Path, folder: str = "") -> list[str]:
    """Paths of the files below root/folder that `list_images` leaves out, but look like images, sorted.

    They do by a suffix of images that are not decoded here, or by how their content begins.
    """
    found = []
    looked: Counter[tuple[str, str]] = Counter()
    for path, suffix in files_below(root, folder):
        if suffix in SUFFIXES or suffix in NOTES:
            continue
        place = os.path.dirname(path), suffix
        looked[place] += 1
        if suffix in OTHER_SUFFIXES or (looked[place] <= LOOKED_AT and is_image(root / path)):
            found.append(path)
    return sorted(found)


def files_below(root: Path, folder: str = "") -> Iterator[tuple[str, str]]:
    """Path and suffix of each file below root/folder; the suffix is "that is no file" of a pipe or the like.

    In the order of the names, and links last, so that of two ways to a folder the same is always taken.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        try:
            status = os.stat(root / inside)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / inside) as entries:
                listed = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            raise DataError(
                f"{root / inside}: this folder cannot be read ({error.strerror}): allow it, or move it away"
            ) from error
        folders = []
        for entry in listed:
            if is_hidden(entry.name):
                continue
            path = os.path.join(inside, entry.name)
            suffix = os.path.splitext(entry.name)[1].lower()
            if _is_folder(root / path, entry):
                folders.append(path)
            else:
                yield path, suffix if entry.is_symlink() or entry.is_file() else "that is no file"
        waiting.extend(reversed(folders))


def _is_folder(path: Path, entry: "os.DirEntry[str]") -> bool:
    """Raises DataError if it is a link that cannot be followed; one called like an image is for who reads it."""
    try:
        return entry.is_dir()
    except OSError as error:
        if path.suffix.lower() in SUFFIXES:
            return False
        raise DataError(f"{path}: this link cannot be followed ({error.strerror}): mend or remove it") from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: its name begins with a dot, or it is a system's."""
    return name.startswith(".") or name in SYSTEMS


def class_name(where: Path, folder: str) -> str:
    """The class that a folder is: its name without blanks around it, accents composed: macOS writes them decomposed."""
    try:
        return class_of(folder) or folder
    except ValueError as error:
        raise DataError(f"{where}: the folder name {folder!a} is not UTF-8: rename it") from error


def subfolders(root: Path) -> list[str]:
    """The folders directly below root, sorted, without hidden ones."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if not is_hidden(e.name) and _is_folder(root / e.name, e))
    except OSError as error:
        raise DataError(f"{root}: this folder cannot be read ({error.strerror})") from error
