"""Where images come from, and which are for training and which for validation. Free of torch.

A source is a folder of class folders, of ImageNet's archives, of tar shards or of Parquet files; a list; an fsspec
address of tar shards; or "digits". Each becomes `Images` in one order, with one class list.
"""

import logging
import os
import re
import stat
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from atnet.config import DataConfig
from atnet.data.decode import is_too_dark
from atnet.data.digits import DIGITS, open_digits
from atnet.data.folders import has_images, open_album, open_folder, subfolders
from atnet.data.ilsvrc import data_root, open_flat_validation
from atnet.data.lists import SUFFIXES as LISTS
from atnet.data.lists import open_list
from atnet.data.samples import Samples, hash_of, some
from atnet.data.shards import CLASSES, INDEX, expand, files_in, is_address, open_shards, read_class_list
from atnet.errors import ConfigError, DataError
from atnet.files import did_you_mean, quoted
from atnet.progress import progress_bar

ARCHIVES = {
    (".zip",): "python -m zipfile -e {archive} {folder}",
    (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"): "mkdir {folder} && tar -xf {archive} -C {folder}",
    (".7z", ".rar"): "7z x {archive} -o{folder}",
}
"""How archives end, and what unpacks them. A plain .tar is read: as shards are."""

T = TypeVar("T")
log = logging.getLogger("atnet")

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "eval", "dev", "test", "testing")}
Mismatch = Literal["error", "ignore"]

LOOKED_AT = 16
"""Images of a training whose shades are looked at before it begins."""


def open_parts(
    source: str, val_share: float, classes: str = "", mismatch: Mismatch = "error"
) -> tuple[Samples, Samples]:
    """Training and validation images of a source, with one class list, training's.

    Without a validation part, val_share of each class is held out: the images whose hashed names
    come first, so that the same images are held out in every run.

    classes and mismatch as for `open_whole`, which says what is raised.
    """
    parts = open_whole(source, classes, mismatch)
    return (parts["train"], parts["val"]) if "val" in parts else split(parts[""], val_share)


def open_whole(source: str, classes: str = "", mismatch: Mismatch = "error") -> dict[str, Samples]:
    """The images of a source by part, "train" and "val", with one class list; under "" where there is one part only.

    classes: a file with the class list, in the order of the labels; else classes.txt in the source, or the classes
    of training in order.
    mismatch: ignore leaves images of unknown classes out, and takes a class without images as it is.
    Raises DataError if there are no two classes, or the classes of the parts are not the same.
    """
    parts = _open(source)
    ignore = mismatch == "ignore"
    if "val" in parts and "train" not in parts:
        raise DataError(
            f"{source}: {parts['val'].store.name} without a training part: name it train, or leave both out"
        )
    whole = parts.get("train", parts.get(""))
    assert whole is not None
    listed = _class_list(source, classes)
    train = whole if listed is None else whole.relabel(listed, ignore)
    present = len(np.unique(train.labels))
    if present < 2:
        raise DataError(
            f"{train.store.name}: {present} class{' folder' if Path(source).is_dir() else ''} with images; "
            "a classifier needs two or more, one folder a class"
        )
    if listed is not None:
        _require_all(train, ignore)
    if "val" not in parts:
        return {"": train}
    val = parts["val"].relabel(train.classes, ignore)
    _require_all(val, ignore)
    if not len(val):
        raise DataError(f"{val.store.name}: no images of the {len(train.classes)} classes to validate on")
    return {"train": train, "val": val}


def open_configured(data: DataConfig) -> tuple[Samples, Samples]:
    """Training and validation images as the configuration says; a warning if they would be nearly black."""
    train, val = open_parts(data.source, data.val_share, data.classes, data.mismatch)
    dark = []
    for i in np.unique(np.linspace(0, len(train) - 1, LOOKED_AT).astype(int)).tolist():
        try:
            if is_too_dark(train.read_bytes(i), train.locate(i)):
                dark.append(train.locate(i))
        except DataError:
            continue  # training lists it
    if dark:
        log.warning(
            "%s: nearly black, for 14 or fewer of its 16 bits a channel are used; scale such images to all 16 bits, "
            "or save them with 8 (`atnet doctor` finds them)", dark[0],
        )  # fmt: skip
    return train, val


def open_held_out(data: DataConfig) -> Samples:
    """The images that a run of the configuration validates on, whatever classes are among them now."""
    parts = _open(data.source)
    return parts["val"] if "val" in parts else open_configured(data)[1]


def open_labelled(source: str, part: Literal["train", "val"] = "val") -> Samples:
    """Labelled images to evaluate on: the source's part, or all of it where it has no parts."""
    if source == DIGITS:
        train, val = open_parts(source, 0.2)
        return val if part == "val" else train
    parts = _open(source)
    if part not in parts and "" not in parts:
        raise DataError(f"{source}: no {part} part in it; name the folder to use, {source}/train for example")
    return parts[part] if part in parts else parts[""]


def open_any(source: str) -> dict[str, Samples]:
    """The images of a source by part, to look at: one class is enough, and images directly in a folder have none.

    The class of these is called "".  Raises DataError if there are no images.
    """
    root, kind = _path_of(source)
    return {"": open_album(root)} if kind == "folder" and has_images(root) else _open(source)


def write_digits(out: Path) -> tuple[int, int]:
    """Writes the digits as PNG files, out/train/CLASS/ID.png and out/val/...; returns how many of each.

    Raises ConfigError if there is something in out.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not empty; choose another folder")
    parts = dict(zip(("train", "val"), open_parts(DIGITS, 0.2), strict=True))
    with progress_bar("Writing digits", sum(map(len, parts.values()))) as advance:
        for part, samples in parts.items():
            for i, name in enumerate(samples.ids):
                folder = out / part / samples.classes[samples.labels[i]]
                folder.mkdir(parents=True, exist_ok=True)
                samples.read(i).convert("L").save(folder / f"{name}.png")
                advance(1)
    return len(parts["train"]), len(parts["val"])


def _open(source: str) -> dict[str, Samples]:
    """The source's parts, train and val; all of it under "" where it has none."""
    if source == DIGITS:
        return {"": open_digits()}
    path, kind = _path_of(source)
    if is_address(source) or (("{" in source or "*" in source) and not kind):
        return _open_tars(source, expand(source))
    suffix = path.suffix.lower()
    if kind == "file" and suffix == ".tar":
        return _open_tars(source, [str(path)])
    if kind == "file" and suffix in LISTS:
        return _open_list(path)
    if kind == "file" and (command := unpacking(path)):
        raise DataError(
            f"{source}: an archive, which is not read as it is: unpack it (`{command}`), and give the folder"
        )
    if kind != "folder":
        near = "" if kind else did_you_mean(path)
        kinds = ", ".join(sorted(LISTS))
        what = f"neither a folder nor a list ({kinds}) nor .tar" if kind else "no such folder or file"
        shown = source if len(source) < 500 else f"{source[:500]}..."
        raise DataError(f"{shown}: {what}{near}; give a folder of class folders, a list, tar shards, or 'digits'")
    root = _root_of(path)
    if not _part_folders(root):
        tars = _shards_in(path)
        if tars:
            return _open_tars(source, tars)
        tables = _tables_in(path)
        if tables:
            return _open_parquet(source, tables)
    return _open_folders(root)


def unpacking(path: Path) -> str:
    """The command that unpacks an archive into a folder beside it; "" of other files."""
    for endings, command in ARCHIVES.items():
        if ending := next((one for one in endings if path.name.lower().endswith(one)), ""):
            folder = path.with_name(path.name[: -len(ending)] or "unpacked")
            return command.format(archive=quoted(path), folder=quoted(folder))
    return ""


def _path_of(source: str) -> tuple[Path, str]:
    """Where the source is, and whether a folder or a file, or "other"; "" if it is not there.

    Raises DataError if that cannot be told.
    """
    try:
        path = Path(source).expanduser()
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path, ""
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a null character, the home of nobody
        if ("{" in source or "*" in source) and len(source) < 10_000_000:
            return Path(source), ""
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{source[:500]!r}: cannot be opened ({why}); give another folder, list or tar") from error
    return path, "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def _root_of(path: Path) -> Path:
    """The folder with the parts in it: the path, the one in Kaggle's archive, or the only one with both parts."""
    root = data_root(path)
    if root != path or _part_folders(root):
        return root
    inside = [path / name for name in subfolders(path)]
    both = [one for one in inside if set(_part_folders(one)) == {"train", "val"}] if len(inside) <= 3 else []
    if len(both) != 1 or any(has_images(one) for one in inside):
        return root
    log.info("%s: the parts are in %s", path, both[0])
    return both[0]


def _open_folders(root: Path) -> dict[str, Samples]:
    found = _part_folders(root)
    if not found:
        return {"": open_folder(root)}
    if len(found) == 2 and found["train"].samefile(found["val"]):
        raise DataError(
            f"{root}: {found['train'].name} and {found['val'].name} are the same folder, so validation would be of "
            "what is trained on"
        )
    if any(part.name.lower() not in PARTS[name] for name, part in found.items()):
        log.warning("%s: %s is taken for training, %s for validation", root, found["train"].name, found["val"].name)
    parts = {}
    for name, part in found.items():
        tars = _shards_in(part)
        flat = open_flat_validation(root, part) if name == "val" and not tars else None
        parts[name] = open_shards(str(part), tars) if tars else open_folder(part) if flat is None else flat
    return parts


def _shards_in(folder: Path) -> list[str]:
    """The tar shards in a folder; none where it has images or folders of them too, beside which a tar is a stray."""
    tars = files_in(folder, ".tar")
    if not os.path.isdir(folder / INDEX) and (subfolders(folder) or has_images(folder)):
        return []
    return [str(tar) for tar in tars]


def _part_folders(root: Path) -> dict[str, Path]:
    """The folders of the parts by their usual names in any case; else by a word of their names, as in seg_train.

    Empty if there are none. By words they are told only if there are both then, with folders in them: a class may be
    called so. Raises DataError if two could be the same part.
    """
    words_of = {name: _words(name) for name in subfolders(root)}
    exact = {
        part: [name for word in words for name in words_of if name.lower() == word] for part, words in PARTS.items()
    }
    worded = {
        part: [name for word in words for name, own in words_of.items() if word in own and subfolders(root / name)]
        for part, words in PARTS.items()
    }
    found = {part: exact[part] or worded[part] for part in PARTS}
    if not all(found.values()) or set(found["train"]) & set(found["val"]):
        found = exact
    for part, names in found.items():
        if len(names) > 1 and words_of[names[0]] & words_of[names[1]] & set(PARTS[part]):
            raise DataError(
                f"{root}: {names[0]!r} and {names[1]!r} could both be the part called {part}: rename one of them"
            )
    return {part: root / names[0] for part, names in found.items() if names}


def _words(name: str) -> set[str]:
    """The words of a folder's name, in lower case: those of TrainingSet are training and set, of testset, test."""
    return {word.lower().removesuffix("set") or "set" for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}


def _open_tars(source: str, files: list[str]) -> dict[str, Samples]:
    """Tar shards, their parts told by their names."""
    return {part: open_shards(source, names) for part, names in _by_part(source, files).items()}


def _by_part(source: str, files: list[str]) -> dict[str, list[str]]:
    """Files by the part that is a word of their names, as in imagenet-train-000017.tar; under "" if none is."""
    found: dict[str, list[str]] = {}
    for file in files:
        stem = file.replace("\\", "/").rpartition("/")[2].lower()
        words = re.split(r"[-_.]", stem)
        part = next((word for word in words if any(word in known for known in PARTS.values())), "")
        found.setdefault(part, []).append(file)
    return _parts_of(found, source)


def _parts_of(found: dict[str, T], source: str) -> dict[str, T]:
    """What stands under names of parts, by part; all of it under "" if there is but one, of no part's name."""
    names = {name: next((part for part, known in PARTS.items() if name.strip().lower() in known), "") for name in found}
    if len(found) == 1 and not next(iter(names.values())):
        return {"": next(iter(found.values()))}
    parts: dict[str, T] = {}
    for part, known in PARTS.items():
        order = [name for word in known for name in found if name.strip().lower() == word]
        if order:
            parts[part] = found[order[0]]
    unknown = [name for name, part in names.items() if not part]
    if unknown or not parts:
        raise DataError(
            f"{source}: {some(unknown)} names no part: expected {' or '.join(PARTS['train'])}, and "
            f"{', '.join(PARTS['val'])}"
        )
    left = [name for name in found if not any(found[name] is part for part in parts.values())]
    if left:
        log.warning("%s: %s left out, as the part for validation is another", source, some(left))
    return parts


def _open_list(path: Path) -> dict[str, Samples]:
    if path.suffix.lower() == ".parquet":
        from atnet.data.parquet import image_columns

        if image_columns(path) is not None:
            return _unpack({"": [path]}, str(path))
    return _parts_of(open_list(path), str(path))


def _tables_in(folder: Path) -> list[str]:
    """The Parquet files with images in a folder or in its data/, where Hugging Face's datasets have them."""
    from atnet.data.parquet import image_columns

    inside = folder / "data"
    files = files_in(folder, ".parquet") or (files_in(inside, ".parquet") if os.path.isdir(inside) else [])
    return [str(file) for file in files] if files and image_columns(files[0]) is not None else []


def _open_parquet(source: str, files: list[str]) -> dict[str, Samples]:
    """Parquet files with images in them, their parts told by their names."""
    parts = _by_part(source, files)
    return _unpack({part: [Path(name) for name in names] for part, names in parts.items()}, source)


def _unpack(files: dict[str, list[Path]], source: str) -> dict[str, Samples]:
    from atnet.data.unpack import unpack

    return {part: open_shards(source, unpack(names)) for part, names in files.items()}


def _class_list(source: str, classes: str) -> tuple[str, ...] | None:
    if classes:
        return read_class_list(Path(classes).expanduser())
    beside = Path(source).expanduser() / CLASSES
    if source != DIGITS and not is_address(source) and os.path.lexists(beside):
        log.info("%s: the class list is that of %s", source, beside)
        return read_class_list(beside)
    return None


def _require_all(samples: Samples, ignore: bool) -> None:
    """Raises DataError if a class has no images; if that is to be ignored, it is said."""
    present = set(samples.labels.tolist())
    absent = [name for i, name in enumerate(samples.classes) if i not in present]
    if not absent:
        return
    if not ignore:
        raise DataError(
            f"{samples.store.name}: no images of {some(absent)}, so its figures would not be of all classes: "
            "add some, or go on without with --data.mismatch ignore"
        )
    log.warning("%s: no images of %s; their labels stay what they are", samples.store.name, some(absent))


def split(samples: Samples, val_share: float) -> tuple[Samples, Samples]:
    """Training and validation part, stratified; each class keeps a training image at least."""
    train: list[int] = []
    val: list[int] = []
    names = list(samples.ids)
    for label in range(len(samples.classes)):
        members = np.flatnonzero(samples.labels == label).tolist()
        members.sort(key=lambda i: hash_of(names[i]))
        held = min(max(1, round(val_share * len(members))), max(len(members) - 1, 0))
        val += members[:held]
        train += members[held:]
    if not val:
        raise DataError(f"{samples.store.name}: one image a class leaves none to validate on; give more")
    return samples.only(sorted(train)), samples.only(sorted(val))
