"""Files that are whole or absent, and the pointer to the newest run."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def resolve_run(where: str | Path) -> Path:
    """The path, a pointer file (where links cannot be made) being followed."""
    path = Path(where).expanduser()
    if path.name == "last" and path.is_file() and path.stat().st_size < 4096:
        return path.parent / path.read_text(encoding="utf-8").strip()
    return path
