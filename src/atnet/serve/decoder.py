"""A decoding process: images' bytes in, the network's pixels out. `Decoders` starts it, with limits of its own.

On standard input an image is its length, 4 bytes, and its bytes. On standard output an answer is its kind, 1 byte, its
length, 4 bytes, and what follows: the pixels, uint8 (size, size, 3), or why there are none. The first answer says that
the process is ready.
"""

import contextlib
import io
import json
import os
import struct
import sys
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from atnet.data.decode import decode
from atnet.data.preprocess import Preprocess
from atnet.errors import DataError

READY, PIXELS, REFUSED = b"r", b"p", b"e"
LENGTH = struct.Struct("<I")
HEAD = struct.Struct("<cI")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a decoding process is told.

    max_pixels: of an image.  seconds: of the processor, for an image.  megabytes: of address space, in all.
    """

    preprocess: Preprocess
    max_pixels: int
    seconds: float
    megabytes: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        values: dict[str, Any] = json.loads(text)
        return cls(**values | {"preprocess": Preprocess.from_dict(values["preprocess"])})


def main() -> None:
    """Answers until its input ends, as it does when the server is gone."""
    task = Task.from_json(sys.argv[1])
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    _warm_up(task)
    _limit(task.megabytes)
    _say(sink, READY, b"")
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        content = source.read(*LENGTH.unpack(head))
        _limit_processor(task.seconds)
        _say(sink, *_answer(task, content))


def _answer(task: Task, content: bytes) -> tuple[bytes, bytes]:
    try:
        return PIXELS, task.preprocess.resize_and_crop(decode(content, "picture", task.max_pixels)).tobytes()
    except DataError as error:
        return REFUSED, str(error).encode()
    except MemoryError:
        return REFUSED, b"picture: needs more memory than there is; make it smaller"


def _say(sink: io.BufferedWriter, kind: bytes, what: bytes) -> None:
    sink.write(HEAD.pack(kind, len(what)) + what)
    sink.flush()


def _warm_up(task: Task) -> None:
    """Loads what Pillow loads when first used."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    _answer(task, file.getvalue())
    Image.init()


def _limit(megabytes: int) -> None:
    """No more address space than that, no files, no core dumps; where the system has such limits."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has none, macOS not all
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 1_000_000,) * 2)


def _limit_processor(seconds: float) -> None:
    """The system ends this process once it has computed that long from now on."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, most))


if __name__ == "__main__":
    main()
