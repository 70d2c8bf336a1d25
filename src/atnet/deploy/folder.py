"""Folders that are whole or absent."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atnet.errors import ConfigError


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name when all is written; else nothing is left.

    Raises ConfigError if there is something in it, or it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: exists and is not empty; choose another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as place:
            folder = Path(place, "folder")
            folder.mkdir()
            yield folder
            if path.exists():
                path.rmdir()
            os.replace(folder, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error
