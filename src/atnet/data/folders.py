"""Pictures in folders: the class is the folder directly below the top. Free of torch."""

import logging
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from atnet.data.decode import SUFFIXES, read_file
from atnet.data.pictures import Pictures, collect
from atnet.errors import DataError

log = logging.getLogger("atnet")

SYSTEMS = {"@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""Folders that systems put there: thumbnails, resource forks, bins."""


@dataclass(frozen=True)
class Folder:
    """Files below a folder, called by their paths in it."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    def locate(self, picture: str, place: int) -> str:
        return str(self.root / picture)

    def read(self, picture: str, place: int) -> bytes:
        return read_file(self.root / picture)


def open_folder(root: Path) -> Pictures:
    """All pictures in the folders below root. Raises DataError if there are none, or two folders are one class."""
    classes: list[str] = []
    ids: list[str] = []
    folders: dict[str, str] = {}
    for name in subfolders(root):
        label = class_name(root, name)
        if label in folders:
            raise DataError(f"{root}: two folders are called {label!r} ({folders[label]!a} and {name!a}): merge them")
        folders[label] = name
        found = list_pictures(root, name)
        if not found:
            log.warning("%s: no pictures in it, so it is no class", root / name)
        ids += found
        classes += [label] * len(found)
    if not ids:
        if has_pictures(root):
            raise DataError(
                f"{root}: its pictures lie in no class folder; give the folder above it if it is one class, "
                "else sort them into a folder for each class"
            )
        raise DataError(
            f"{root}: no class folders with pictures in it; expected {root.name}/CLASS/PICTURE, "
            f"a picture ending in {', '.join(sorted(SUFFIXES))}"
        )
    return collect(Folder(root), ids, classes)


def open_album(root: Path) -> Pictures:
    """All pictures in a folder and below it; the class of those directly in it is called ""."""
    ids = list_pictures(root)
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in ids]
    return collect(Folder(root), ids, [folder and class_name(root, folder) for folder in folders])


def has_pictures(root: Path) -> bool:
    """Whether pictures lie directly in the folder, by their names. Raises DataError if it cannot be read."""
    try:
        return any(os.path.splitext(name)[1].lower() in SUFFIXES for name in os.listdir(root))
    except OSError as error:
        raise DataError(f"{root}: this folder cannot be read ({error.strerror})") from error


def list_pictures(root: Path, folder: str = "") -> list[str]:
    """Paths of the pictures below root/folder, relative to root, sorted; links are followed, each folder once.

    Raises DataError naming a folder that cannot be read.
    """
    found: list[str] = []
    others: Counter[str] = Counter()
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
                for entry in entries:
                    path = os.path.join(inside, entry.name)
                    if is_hidden(entry.name):
                        continue
                    suffix = os.path.splitext(entry.name)[1].lower()
                    if entry.is_dir():
                        waiting.append(path)
                    elif suffix in SUFFIXES and (entry.is_file() or entry.is_symlink()):
                        found.append(path)
                    else:
                        others[suffix if suffix not in SUFFIXES else "that is no file"] += 1
        except OSError as error:
            raise DataError(
                f"{root / inside}: this folder cannot be read ({error.strerror}): allow it, or move it away"
            ) from error
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(3))
        log.warning("%s: files that are no pictures are left out (%s)", root / folder, kinds)
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: its name begins with a dot, or it is a system's."""
    return name.startswith(".") or name in SYSTEMS


def class_name(where: Path, folder: str) -> str:
    """The class that a folder is: its name, accents composed, for macOS writes them decomposed."""
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: the folder name {folder!a} is not UTF-8: rename it") from error
    return unicodedata.normalize("NFC", folder)


def subfolders(root: Path) -> list[str]:
    """The folders directly below root, sorted, without hidden ones."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    except OSError as error:
        raise DataError(f"{root}: this folder cannot be read ({error.strerror})") from error
