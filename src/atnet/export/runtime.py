"""onnxruntime-web, which runs a network in a browser: fetched from npm's registry once, when the package is built.

`python -m atnet.export.runtime` does it later, where npm was not at hand then. Of the standard library alone, for it
runs before anything else is installed.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from atnet.errors import ConfigError

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of npm's archive of that version, in base64, as npm states it."""

FILES = {"ort.wasm.bundle.min.mjs": "ort.js", "ort-wasm-simd-threaded.wasm": "ort.wasm"}
"""Those of the archive that one thread on a CPU needs; .js, for not every host knows what an .mjs is."""

HERE = Path(__file__).parent
FOLDER = HERE / f"onnxruntime-web-{VERSION}"


def find_runtime() -> Path:
    """The folder with the files. Raises ConfigError if this installation has none."""
    if not FOLDER.is_dir():
        raise ConfigError(
            f"onnxruntime-web {VERSION} is not in this installation, and the page needs it: "
            f"with npm (of Node.js) installed, `{Path(sys.executable).name} -m atnet.export.runtime` fetches it, once"
        )
    return FOLDER


def fetch_runtime() -> Path:
    """The folder, its files fetched by npm unless they are there.

    Raises ConfigError if there is no npm, or it fails, or what it brings is not the archive meant.
    """
    if FOLDER.is_dir():
        return FOLDER
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError("no npm here, which fetches onnxruntime-web: install Node.js")
    with tempfile.TemporaryDirectory(dir=HERE, prefix=".partial-") as place:
        done = subprocess.run(
            [npm, "pack", "--silent", "--pack-destination", place, f"onnxruntime-web@{VERSION}"],
            capture_output=True, text=True, cwd=place,
        )  # fmt: skip
        archive = Path(place, f"onnxruntime-web-{VERSION}.tgz")
        if done.returncode or not archive.is_file():
            raise ConfigError(f"npm could not fetch onnxruntime-web {VERSION}: {done.stderr.strip() or done.stdout}")
        unpack(archive, Path(place, "files"))
        os.replace(Path(place, "files"), FOLDER)
    return FOLDER


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
    shutil.copy(HERE / "onnxruntime-web.LICENSE", folder / "LICENSE")


if __name__ == "__main__":
    try:
        print(f"Written: {fetch_runtime()}\nNext: atnet web OUT")
    except ConfigError as error:
        sys.exit(f"atnet: {error}")
