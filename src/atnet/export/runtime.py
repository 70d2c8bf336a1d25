"""onnxruntime-web, which runs a network in a browser: fetched by npm at the first `atnet web`, and kept.

It is one version, whose checksum is known.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from atnet.errors import ConfigError
from atnet.files import cache_folder
from atnet.progress import working

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of npm's archive of that version, in base64, as npm states it."""

FILES = {"ort.wasm.bundle.min.mjs": "ort.js", "ort-wasm-simd-threaded.wasm": "ort.wasm"}
"""Those of the archive that one thread on a CPU needs; .js, for not every host knows what an .mjs is."""

LICENCE = Path(__file__).with_name("onnxruntime-web.LICENSE")


def find_runtime() -> Path:
    """The folder with the files, fetched if they are not in the cache yet.

    Raises ConfigError if they can't be fetched, or are not those that were published.
    """
    folder = cache_folder() / f"onnxruntime-web-{VERSION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as place:
            with working(f"Fetching onnxruntime-web {VERSION}"):
                archive = _fetch(Path(place))
            unpack(archive, Path(place, "files"))
            try:
                os.replace(Path(place, "files"), folder)
            except OSError:
                if not folder.is_dir():  # as it is if another process was faster
                    raise
    return folder


def _fetch(folder: Path) -> Path:
    """The archive, in the folder. npm fetches it, for it knows the user's registry and proxy."""
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(f"no npm here, which fetches onnxruntime-web {VERSION} for the page, once: install Node.js")
    archive = folder / f"onnxruntime-web-{VERSION}.tgz"
    words = ["pack", "--silent", "--pack-destination", str(folder), f"onnxruntime-web@{VERSION}"]
    try:
        done = subprocess.run([npm, *words], capture_output=True, text=True, cwd=folder, timeout=600)
        why = "" if archive.is_file() and not done.returncode else done.stderr.strip() or done.stdout or "no archive"
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        said = " ".join(why.split())[:200]
        raise ConfigError(f"onnxruntime-web {VERSION}, which the page needs, can't be fetched by npm ({said})")
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """Writes FILES and their licence to a new folder. Raises ConfigError if it is not the archive meant."""
    content = archive.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise ConfigError(f"{archive}: not onnxruntime-web {VERSION} as it was published (SHA-512 differs)")
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for inside, name in FILES.items():
            file = tar.extractfile(f"package/dist/{inside}")
            assert file is not None
            (folder / name).write_bytes(file.read())
    shutil.copy(LICENCE, folder / "LICENSE")
