"""Images decoded by processes that may be killed: an image that takes a decoder with it takes nothing else.

`Decoders` is the server's side; `main` is a process, which has limits of its own. On its standard input an image is its
length, 4 bytes, and its bytes. On standard output an answer is its kind, 1 byte, its length, 4 bytes, and what follows:
the pixels, uint8 (size, size, 3), or why there are none. The first answer says that the process is ready.
"""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import struct
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atnet.data.decode import decode
from atnet.data.preprocess import Preprocess
from atnet.errors import ConfigError, DataError

READY, PIXELS, REFUSED = b"r", b"p", b"e"
LENGTH = struct.Struct("<I")
HEAD = struct.Struct("<cI")
START_SECONDS = 60.0
PAUSE_SECONDS = 1.0
"""Before another process is started after one that did not come up."""

log = logging.getLogger("atnet")
Process = asyncio.subprocess.Process


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


class Decoders:
    """A few decoding processes; one that ends is replaced at once.

    ready: how many take images.  replaced: how many ended before they were told to.
    """

    def __init__(self, task: Task, count: int) -> None:
        self.task = task
        self.count = count
        self.replaced = 0
        self.ready = 0
        self._idle: asyncio.Queue[Process] = asyncio.Queue()
        self._processes: set[Process] = set()
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when all processes are ready. Raises ConfigError if one does not come up."""
        try:
            started = await asyncio.gather(*(self._start() for _ in range(self.count)))
        except (OSError, EOFError, TimeoutError) as error:
            await self.stop()
            raise ConfigError(
                f"a decoding process does not come up ({error or type(error).__name__}); what it said is above; try "
                "--decoders 1, or a larger --decoder-megabytes"
            ) from error
        self._keepers = [asyncio.create_task(self._keep(process)) for process in started]

    async def stop(self) -> None:
        """Ends the processes."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for process in list(self._processes):
            await self._end(process)

    async def decode(self, content: bytes | bytearray) -> NDArray[np.uint8]:
        """The network's pixels, uint8 (size, size, 3), of an image's bytes.

        An image whose decoder ends is given to another one, once; where decoders are killed, which no image does, as
        often as there are of them.
        Raises DataError if it cannot be decoded, or not within the limits.
        """
        ended = 0
        for _ in range(2 + self.count):
            process = await self._take()
            try:
                async with asyncio.timeout(2 * self.task.seconds):  # the processor's limit is the nearer one
                    kind, answer = await _ask(process, content)
            except TimeoutError as error:
                _kill(process)
                raise self._too_slow() from error
            except (OSError, EOFError) as error:
                code = await process.wait()
                if code == -getattr(signal, "SIGXCPU", 0):
                    raise self._too_slow() from error
                ended += code != -getattr(signal, "SIGKILL", 0)
                if ended == 2:
                    break
                continue
            except BaseException:  # cancelled: its answer would be taken for the next image's
                _kill(process)
                raise
            self._idle.put_nowait(process)
            if kind != PIXELS:
                raise DataError(answer.decode())
            size = self.task.preprocess.size
            return np.frombuffer(answer, np.uint8).reshape(size, size, 3)
        raise DataError("image: two decoding processes ended over it; save it anew")

    def _too_slow(self) -> DataError:
        return DataError(f"image: takes more than {self.task.seconds:g} s to decode; make it smaller")

    async def _take(self) -> Process:
        while True:
            process = await self._idle.get()
            if process.returncode is None:
                return process

    async def _keep(self, process: Process) -> None:
        """Has one process in this one's place, whatever becomes of it."""
        while True:
            self.ready += 1
            self._idle.put_nowait(process)
            code = await process.wait()
            self._processes.discard(process)
            self.ready -= 1
            self.replaced += 1
            log.warning("a decoding process ended (%s) and is replaced", code)
            while True:
                try:
                    process = await self._start()
                    break
                except (OSError, EOFError, TimeoutError):
                    log.warning("no decoding process comes up; the next try is in %g s", PAUSE_SECONDS)
                    await asyncio.sleep(PAUSE_SECONDS)

    async def _start(self) -> Process:
        """A process that is ready. Raises OSError, EOFError or TimeoutError if it does not come up."""
        environment = {name: value for name, value in os.environ.items() if name != "ATNET_TOKEN"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "atnet.serve.decoder",
            self.task.to_json(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the server, which still needs it
        )
        self._processes.add(process)
        try:
            async with asyncio.timeout(START_SECONDS):
                kind, _ = await _hear(process)
            assert kind == READY
        except BaseException:
            await self._end(process)
            raise
        return process

    async def _end(self, process: Process) -> None:
        _kill(process)
        await process.wait()
        self._processes.discard(process)


async def _ask(process: Process, content: bytes | bytearray) -> tuple[bytes, bytes]:
    """Kind and body of the process's answer. Raises OSError or EOFError if it ends over it."""
    assert process.stdin is not None
    process.stdin.write(LENGTH.pack(len(content)))
    process.stdin.write(content)
    await process.stdin.drain()
    return await _hear(process)


async def _hear(process: Process) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    kind, length = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
    return kind, await process.stdout.readexactly(length)


def _kill(process: Process) -> None:
    """Unless it is ending by itself: a signal would then take its exit code from asyncio."""
    assert process.stdout is not None
    if not process.stdout.at_eof():
        with contextlib.suppress(ProcessLookupError):
            process.kill()


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
        return PIXELS, task.preprocess.resize_and_crop(decode(content, "image", task.max_pixels)).tobytes()
    except DataError as error:
        return REFUSED, str(error).encode()
    except MemoryError:
        return REFUSED, b"image: needs more memory than there is; make it smaller"


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
