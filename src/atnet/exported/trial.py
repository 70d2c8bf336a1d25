"""An ONNX file judged and run by a process of its own before ours runs it: what it does to one it does to that one.

`require_harmless` leaves only networks whose runs are alike whatever the images, so that one tells of all with as many.
The file comes on standard input; exit code 0 says that it runs, REFUSED that it is not to be run, and why; anything
else that the process did not survive it.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from atnet.errors import WeightsError
from atnet.files import cache_folder, write_whole

REFUSED = 3
BASE_MEGABYTES, CORE_MEGABYTES, IMAGE_MEGABYTES = 1000, 100, 300
"""Of address space, for Python and ONNX Runtime; and more for the threads of each core and each image of a batch."""

SECONDS = 20
"""Of each processor core, for a process to start, and as many for each image of a batch."""

PATIENCE = 5
"""As many times longer it may take where others have the processor too."""

MORE_SECONDS = 3
"""In which batches are tried that are neither the largest nor a single image; those that then are left are not."""

IMAGES = ((1, 1), (40, 300), (300, 40))
"""Heights and widths of the images that a network is tried on which takes them as they are."""


def require_survivable(content: bytes, path: Path, batch: int = 1, threads: int = 0) -> None:
    """Raises WeightsError unless an ONNX file's content is harmless, see `require_harmless`, and a process survives it.

    batch: images at a time, at most.  threads: of the network, 0 for one a core.  path: the file, for the error.
    What passed is noted by its SHA-256 in the user's cache folder, and passes at once the next time.
    """
    note = _note(content, batch)
    if note is not None and os.path.isfile(note):
        return
    seconds = SECONDS * (1 + batch)
    cores = os.cpu_count() or 1
    megabytes = BASE_MEGABYTES + CORE_MEGABYTES * cores + IMAGE_MEGABYTES * batch + 8 * len(content) // 1_000_000
    words = (str(path), *map(str, (batch, threads, megabytes, seconds)))
    environment = {name: value for name, value in os.environ.items() if name != "ATNET_TOKEN"}
    environment["MALLOC_ARENA_MAX"] = "4"  # of glibc, which else reserves address space for each thread
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "atnet.exported.trial", *words],
            input=content, capture_output=True, env=environment, timeout=PATIENCE * seconds,
        )  # fmt: skip
    except OSError as error:
        raise WeightsError(f"{path}: no process can be started to try it ({error.strerror or error})") from error
    except subprocess.TimeoutExpired as error:
        raise WeightsError(
            f"{path}: takes more than {PATIENCE * seconds:g} s to open and run: it is not run"
        ) from error
    if ended.returncode == REFUSED:
        raise WeightsError(" ".join(ended.stdout.decode("utf-8", "surrogateescape").split()))
    if ended.returncode:
        how = f"exit code {ended.returncode}"
        with contextlib.suppress(ValueError):
            how = signal.Signals(-ended.returncode).name
        raise WeightsError(f"{path}: a process that tried it did not survive ({how}): it is not run")
    if note is not None:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, b"")


def _note(content: bytes, batch: int) -> Path | None:
    """The file that says that the content passed, by what judged it; None where there is no home folder."""
    rules = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("trial.py", "untrusted.py"))
    told = f"{onnxruntime.__version__} {batch} {hashlib.sha256(rules).hexdigest()} ".encode()
    try:
        cache = cache_folder()
    except RuntimeError:
        return None
    return cache / "onnx" / hashlib.sha256(told + content).hexdigest()


def main() -> None:
    """The process that tries."""
    from atnet.exported.untrusted import require_harmless

    path = Path(sys.argv[1])
    batch, threads, megabytes, seconds = map(int, sys.argv[2:])
    content = sys.stdin.buffer.read()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    _limit(megabytes, seconds)
    try:
        require_harmless(content, path, batch)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        [entry] = session.get_inputs()
        if entry.type == "tensor(uint8)":
            tries = [np.ones((*sides, 3), np.uint8) for sides in IMAGES]
        else:
            images = np.ones((batch, *entry.shape[1:]), np.float32)
            tries = [images[:count] for count in (batch, *range(1, batch))]
        began = time.monotonic()
        for number, given in enumerate(tries):
            if number < len(IMAGES) or time.monotonic() - began < MORE_SECONDS:
                session.run(None, {entry.name: given})
    except WeightsError as error:
        _end(str(error))
    except Exception as error:  # of several kinds, that have no base of their own
        _end(f"{path}: not an ONNX file, or a damaged one ({str(error)[:300] or type(error).__name__})")
    os._exit(0)


def _end(why: str) -> None:
    """Ends this process at once: what there is of it may be spoilt."""
    sys.stdout.buffer.write(why.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()
    os._exit(REFUSED)


def _limit(megabytes: int, seconds: int) -> None:
    """No more memory and time, and no files; where the system has such limits."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has none, macOS not all
        import resource

        cores = os.cpu_count() or 1
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (cores * seconds, cores * seconds))
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 1_000_000,) * 2)


if __name__ == "__main__":
    main()
