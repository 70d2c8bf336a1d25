"""`make proof-serve`: a started server under load, overload, attack and signals.

python serve.py PHOTOS [REQUESTS [WEIGHTS [POINT ...]]]: PHOTOS is a folder with train/ and val/; 10,000 requests of
load unless said; WEIGHTS is an exported network, one of random weights if none or - is given; all points unless some
are named. A line a point, with its figures; exit code 1 if a point fails. The clients share the machine with the
server.

The point "hostile" has 500 connections of each kind of KINDS at once, from 127.0.0.1, while a client at 127.0.0.2 asks
about images. hostile:KIND,KIND names some of them. PYTHONPATH=OTHER/src has another
version of atnet served.
"""

import asyncio
import http.client
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

import atnet

CLIENTS, OVERLOAD, IN_FLIGHT = 64, 4, 100
HOSTILE, HONEST, TIMES = 500, 200, 5
UNFAIR, GAIN = 1.5, 1.2
"""Of what a client waits where all take turns, and of the speed of one client alone, on two cores or more."""
SIZE = 128
Finding = tuple[bool, str]


class Server:
    """A server of its own with the command's defaults, and what it holds of memory, its decoders with it."""

    def __init__(self, weights: Path, *options: str, log: int = subprocess.DEVNULL) -> None:
        words = [sys.executable, "-m", "atnet", "serve", "--weights", str(weights), "--port", "0", *options]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        port = re.search(r":(\d+)$", self.process.stdout.readline())
        if not port:
            sys.exit("the server did not start")
        self.port = int(port[1])
        while not self.process.stdout.readline().startswith("Stop: "):
            pass

    def decoders(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def megabytes(self) -> float:
        held = 0
        for process in (psutil.Process(self.process.pid), *self.decoders()):
            try:
                held += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return held / 1e6


@contextmanager
def served(weights: Path, *options: str, log: int = subprocess.DEVNULL) -> Iterator[Server]:
    server = Server(weights, *options, log=log)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


class Client:
    """A connection that is kept, and made anew when the server closes it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, method: str, path: str, body: bytes = b"") -> None:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await self.writer.drain()

    async def receive(self) -> tuple[int, Any]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        body = await self.reader.readexactly(int(length[1]) if length else 0)
        if b"connection: close" in head:
            self.close()
        return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        await self.send(method, path, body)
        return await self.receive()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class Proof:
    """Photos, and what the network says of them offline."""

    def __init__(self, photos: Path, folder: Path, requests: int, weights: str) -> None:
        self.requests = requests
        self.weights = folder / "model.onnx" if weights == "-" else Path(weights)
        if weights == "-":
            _write_network(self.weights)
        paths = sorted(path for place in sorted((photos / "val").iterdir()) for path in sorted(place.iterdir())[:20])
        self.photos = [path.read_bytes() for path in paths]
        self.expected = [{c: p for c, _, p in answer.top} for answer in atnet.predict(paths, self.weights, top=10_000)]

    def same(self, number: int, answer: Any) -> bool:
        expected = self.expected[number]
        return all(abs(one["probability"] - expected[one["class"]]) <= 1e-5 + 1e-6 for one in answer["top"])

    async def photo(self, client: Client, number: int) -> int:
        """The status of the answer; 0 if it is another one than offline."""
        number %= len(self.photos)
        status, answer = await client.ask("POST", "/predict?top=10000", self.photos[number])
        return status if status != 200 or self.same(number, answer) else 0

    async def crowd(
        self, port: int, clients: int, requests: int, at: Callable[[int], None] = lambda _: None
    ) -> tuple[Counter[Any], list[float]]:
        """Statuses and seconds of so many requests, an error's name for a status.  at: takes each one's number."""
        statuses: Counter[Any] = Counter()
        seconds: list[float] = []
        numbers = iter(range(requests))

        async def work() -> None:
            client = Client(port)
            for number in numbers:
                at(number)
                began = time.perf_counter()
                try:
                    statuses[await self.photo(client, number)] += 1
                except (OSError, EOFError) as error:
                    statuses[type(error).__name__] += 1
                    client.close()
                seconds.append(time.perf_counter() - began)
            client.close()

        await asyncio.gather(*(work() for _ in range(clients)))
        return statuses, seconds


def _write_network(path: Path) -> None:
    """A network of ten classes that is sure of its answers; how right they are is not the question."""
    import torch

    from atnet.data.preprocess import Preprocess
    from atnet.exported.graph import write_onnx
    from atnet.models.load import create_classifier
    from atnet.weights.info import WeightsInfo

    torch.manual_seed(0)
    model = create_classifier("xxxs", classes=10, size=SIZE)
    with torch.no_grad():
        model.head.weight.mul_(20)
    classes = tuple("abcdefghij")
    preprocess = Preprocess(
        size=SIZE, crop_pct=0.875, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    info = WeightsInfo(
        model="atnet_xxxs", classes=classes, class_names=classes, preprocess=preprocess, epoch=0, moving_average=False
    )
    write_onnx(model, (3, SIZE, SIZE), path, info)


def percentile(seconds: list[float]) -> float:
    """The 99th, in milliseconds."""
    return 1000 * sorted(seconds)[min(int(0.99 * len(seconds)), len(seconds) - 1)]


async def load(proof: Proof) -> Finding:
    with served(proof.weights) as server:
        parallel = len(server.decoders())
        _, alone = await proof.crowd(server.port, 1, 60)
        single = 1000 * statistics.median(alone[10:])
        held = [0.0]

        def at(number: int) -> None:
            if number == proof.requests // 5:
                held[0] = server.megabytes()

        began = time.perf_counter()
        statuses, seconds = await proof.crowd(server.port, CLIENTS, proof.requests, at)
        took = time.perf_counter() - began
        growth = server.megabytes() - held[0]
        speed, p99 = proof.requests / took, percentile(seconds)
        allowed = UNFAIR * 1000 * CLIENTS / speed  # a turn of all clients is what each would wait if they took turns
        fine = dict(statuses) == {200: proof.requests} and p99 <= allowed and speed >= GAIN * 1000 / single
        return fine and growth < 20, (
            f"statuses {dict(statuses)} (0: another answer), p99 {p99:.0f} of {allowed:.0f} ms, {speed:.0f} requests/s "
            f"where one client has {1000 / single:.0f}, {parallel} in parallel, memory {growth:+.1f} MB"
        )


async def overload(proof: Proof) -> Finding:
    with served(proof.weights, "--queue", str(CLIENTS)) as server:
        statuses, _ = await proof.crowd(
            server.port, OVERLOAD * CLIENTS, max(proof.requests // 4, 4 * OVERLOAD * CLIENTS)
        )
        after = await proof.photo(Client(server.port), 0)
        fine = set(statuses) <= {200, 429, 503} and statuses[200] > 0 and statuses[503] > 0 and after == 200
        return fine, f"statuses {dict(statuses)}, then {after}"


async def attack(proof: Proof) -> Finding:
    bomb = io.BytesIO()  # before the attacks: while it is made, the others could not go on
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    with served(proof.weights, "--timeout", "5") as server:
        await proof.crowd(server.port, 8, 200)
        before, most = server.megabytes(), [0.0]
        pinging = subprocess.Popen([sys.executable, __file__, "--ping", str(server.port)], stdout=subprocess.PIPE)
        attacks: list[Awaitable[str]] = [
            _trickle(server.port),
            _endless(server.port),
            _bomb(server.port, bomb.getvalue()),
            _wrong(server.port),
            _probe(server.port),
        ]
        watch = asyncio.create_task(_watch(server, most))
        said = await asyncio.gather(*attacks)
        pinging.send_signal(signal.SIGINT)
        pings = json.loads(pinging.communicate()[0])
        watch.cancel()
        after = [await proof.photo(Client(server.port), number) for number in range(20)]
        growth = most[0] - before
        fine = all(not one.startswith("NO") for one in said) and set(after) == {200}
        return fine and growth < 200 and pings["p99"] < 100 and not pings["failed"], (
            f"{'; '.join(said)}; /healthz p99 {pings['p99']:.0f} ms of {pings['count']}, {pings['failed']} failed; "
            f"memory at most {growth:+.0f} MB; then {dict(Counter(after))}"
        )


async def _watch(server: Server, most: list[float], every: float = 0.1) -> None:
    while True:
        most[0] = max(most[0], server.megabytes())
        await asyncio.sleep(every)


async def _trickle(port: int) -> str:
    """Two hundred clients that send a byte a second, half of them of the head, half of the body."""

    async def one(number: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        writer.write(head + b"\r\n" if number % 2 else head)
        try:
            for _ in range(30):
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(1)
        except OSError:
            pass
        finally:
            writer.close()
        try:
            said = await reader.read(12)
        except OSError:
            said = b""
        return said.decode()[-3:] or "closed"

    ends = Counter(await asyncio.gather(*(one(number) for number in range(200))))
    return f"{'' if set(ends) <= {'408', 'closed'} else 'NO '}slow clients {dict(ends)}"


async def _endless(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    sent = 0
    try:
        while sent < 1_000_000_000:
            writer.write(b"100000\r\n" + b"\xff" * 2**20 + b"\r\n")
            await writer.drain()
            sent += 2**20
    except OSError:
        pass
    try:
        said = (await reader.read(12)).decode()[-3:]
    except OSError:
        said = "closed"
    writer.close()
    fine = said in ("413", "closed") and sent < 200_000_000
    return f"{'' if fine else 'NO '}1 GB in chunks: {said} after {sent / 1e6:.0f} MB"


async def _bomb(port: int, content: bytes) -> str:
    statuses = Counter([(await Client(port).ask("POST", "/predict", content))[0] for _ in range(20)])
    return f"{'' if set(statuses) == {422} else 'NO '}100 megapixels {dict(statuses)}"


async def _wrong(port: int) -> str:
    bodies = (
        b"",
        b"text",
        b"<html></html>",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"\xff\xd8\xff\xe0",
        os.urandom(100_000),
        b"\0" * 9,
    )
    statuses = Counter([(await Client(port).ask("POST", "/predict", body))[0] for body in bodies * 5])
    return f"{'' if set(statuses) == {422} else 'NO '}wrong types {dict(statuses)}"


async def _probe(port: int) -> str:
    paths = (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/",
        "/admin",
        "/predict/../metrics",
        "/models",
        "//",
    )
    headers = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}

    def ask(number: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        method = ("GET", "POST", "PUT", "OPTIONS")[number % 4]
        path = paths[number % len(paths)] if number % 5 else "/predict?url=file:///etc/passwd"
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return 0 if any(name.lower().startswith("access-control") for name in answer.headers) else answer.status

    statuses = Counter([await asyncio.to_thread(ask, number) for number in range(100)])
    return f"{'' if set(statuses) <= {400, 404, 405} else 'NO '}probes {dict(statuses)}"


async def stop(proof: Proof) -> Finding:
    with served(proof.weights) as server:
        clients = [Client(server.port) for _ in range(IN_FLIGHT)]
        numbers = [number % len(proof.photos) for number in range(IN_FLIGHT)]
        asked = zip(clients, numbers, strict=True)
        await asyncio.gather(*(one.send("POST", "/predict?top=10000", proof.photos[n]) for one, n in asked))
        server.process.terminate()
        answers = await asyncio.gather(*(one.receive() for one in clients), return_exceptions=True)
        right = sum(
            not isinstance(answer, BaseException) and answer[0] == 200 and proof.same(number, answer[1])
            for number, answer in zip(numbers, answers, strict=True)
        )
        code = await asyncio.to_thread(server.process.wait, 60)
        return right == IN_FLIGHT and code == 0, f"{right} of {IN_FLIGHT} answered, exit code {code}"


async def kill(proof: Proof) -> Finding:
    with served(proof.weights) as server:
        took = []
        for _ in range(5):
            [victim, *_], count = server.decoders(), len(server.decoders())
            victim.kill()
            began = time.perf_counter()
            health = {"decoders": 0}
            while health["decoders"] < count or victim in (now := server.decoders()) or len(now) < count:
                await asyncio.sleep(0.02)
                health = (await Client(server.port).ask("GET", "/healthz"))[1]
            took.append(time.perf_counter() - began)
        statuses, _ = await proof.crowd(server.port, 8, 50)
        return max(took) < 10 and set(statuses) == {200}, (
            f"back after {', '.join(f'{seconds:.1f}' for seconds in took)} s, then {dict(statuses)}"
        )


POST, GET = b"POST /predict HTTP/1.1\r\nHost: x\r\n", b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _send_and_hold(line: Line, content: bytes) -> None:
    """Until the server closes it."""
    line[1].write(content)
    while line[0]._transport.is_reading() and not line[1].is_closing():  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)


async def _idle(line: Line, _: bytes) -> None:
    await line[0].read()


async def _unread(line: Line, _: bytes) -> None:
    """Asks, and reads nothing."""
    line[1].transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(100_000):
        line[1].write(GET * 400)
        await line[1].drain()


async def _slow_reading(line: Line, _: bytes) -> None:
    line[1].transport.pause_reading()  # type: ignore[attr-defined]
    raw = line[1].get_extra_info("socket")
    line[1].write(GET * 400)
    while not line[1].is_closing():
        await asyncio.sleep(0.2)
        with suppress(BlockingIOError):
            raw._sock.recv(1)


async def _slow_head(line: Line, _: bytes) -> None:
    line[1].write(b"GET / HTTP/1.1\r\nX: ")
    while True:
        line[1].write(b"x")
        await line[1].drain()
        await asyncio.sleep(0.2)


async def _slow_body(line: Line, _: bytes) -> None:
    line[1].write(POST + b"Content-Length: 1000000\r\n\r\n")
    while True:
        line[1].write(b"x")
        await line[1].drain()
        await asyncio.sleep(0.2)


async def _half_closed(line: Line, image: bytes) -> None:
    line[1].write(POST + b"Content-Length: %d\r\n\r\n" % len(image) + image)
    line[1].write_eof()
    await line[0].read()


async def _two_lengths(line: Line, _: bytes) -> None:
    line[1].write(POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + GET)
    await line[0].read()


async def _garbage(line: Line, _: bytes) -> None:
    line[1].write(os.urandom(3000) + b"\r\n\r\n")
    await line[0].read()


async def _large_head(line: Line, _: bytes) -> None:
    line[1].write(b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n")
    await line[0].read()


async def _many_lines(line: Line, _: bytes) -> None:
    line[1].write(b"GET /healthz HTTP/1.1\r\n" + b"a:\r\n" * 50_000 + b"\r\n")
    await line[0].read()


async def _tiny_chunks(line: Line, _: bytes) -> None:
    line[1].write(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
    await line[0].read(100)


async def _pipelined(line: Line, _: bytes) -> None:
    while True:
        line[1].write(GET * 100)
        await line[1].drain()
        if not await line[0].read(100_000):
            return


async def _images(line: Line, image: bytes) -> None:
    while True:
        line[1].write(POST + b"Content-Length: %d\r\n\r\n" % len(image) + image)
        await line[1].drain()
        if not await line[0].read(1000):
            return


async def _churn(line: Line, _: bytes) -> None:
    line[1].transport.abort()


KINDS: dict[str, Callable[[Line, bytes], Awaitable[None]]] = {
    "idle": _idle,
    "never read": _unread,
    "slow reading": _slow_reading,
    "slow head": _slow_head,
    "slow body": _slow_body,
    "half closed": _half_closed,
    "two lengths": _two_lengths,
    "garbage": _garbage,
    "large head": _large_head,
    "many lines": _many_lines,
    "tiny chunks": _tiny_chunks,
    "pipelined": _pipelined,
    "large images": _images,
    "small images": _images,
    "churn": _churn,
}
"""What a hostile client does on a connection; then it makes another one."""


async def assault(kind: str, port: int, photo: Path) -> None:
    """Five hundred connections of a kind, until it is killed."""
    file = io.BytesIO()
    size = (64, 64) if kind == "small images" else (3000, 2000)
    Image.open(photo).convert("RGB").resize(size).save(file, "JPEG", quality=90)

    print("ready", flush=True)

    async def one() -> None:
        while True:
            try:
                line = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            with suppress(OSError):
                await KINDS[kind](line, file.getvalue())
            line[1].transport.abort()
            await asyncio.sleep(0.01)

    await asyncio.gather(*(one() for _ in range(HOSTILE)))


def honest(port: int, *names: str) -> None:
    """Asks about photos, a connection each, from another address; prints what it saw."""
    photos, failed = [Path(name).read_bytes() for name in names], 0
    seconds: list[float] = []
    for number in range(HONEST):
        began = time.perf_counter()
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=5, source_address=("127.0.0.2", 0))
        try:
            line.request("POST", "/predict", photos[number % len(photos)])
            failed += line.getresponse().status != 200
        except (OSError, http.client.HTTPException):
            failed += 1
        line.close()
        seconds.append(time.perf_counter() - began)
        if failed > HONEST // 20:
            break
        time.sleep(0.01)
    print(json.dumps({"p99": percentile(seconds), "count": len(seconds), "failed": failed}))


async def hostile(proof: Proof, kinds: Iterable[str] = KINDS) -> Finding:
    fine = True
    with tempfile.TemporaryDirectory() as name:
        photos = [Path(name) / f"{number}.jpg" for number in range(len(proof.photos))]
        for photo, content in zip(photos, proof.photos, strict=True):
            photo.write_bytes(content)

        async def asked(port: int) -> dict[str, Any]:
            words = [sys.executable, __file__, "--honest", str(port), *map(str, photos)]
            client = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
            found: dict[str, Any] = json.loads((await client.communicate())[0])
            return found

        print("| kind | quiet p99, ms | p99, ms | times | failed | connections | memory, MB | log, bytes |", flush=True)
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for kind in kinds:
            log = Path(name) / "log"
            with log.open("wb") as file, served(proof.weights, log=file.fileno()) as server:
                process = psutil.Process(server.process.pid)
                await asked(server.port)
                quiet, before = (await asked(server.port))["p99"], process.num_fds()
                words = [sys.executable, __file__, "--assault", kind, str(server.port), str(photos[0])]
                attackers = subprocess.Popen(["nice", *words], stdout=subprocess.PIPE)
                assert attackers.stdout is not None
                attackers.stdout.readline()
                await asyncio.sleep(4)
                held, most = process.num_fds() - before, [0.0]
                watch = asyncio.create_task(_watch(server, most, 0.5))
                found = await asked(server.port)
                watch.cancel()
                attackers.kill()
                attackers.communicate()
            p99, written = found["p99"], log.stat().st_size
            fine &= p99 <= TIMES * quiet and not found["failed"] and written < 100_000
            failed = f"{found['failed']} of {found['count']}"
            figures = f"{quiet:.0f} | {p99:.0f} | {p99 / quiet:.1f} | {failed} | {held} | {most[0]:.0f} | {written:,}"
            print(f"| {kind} | {figures} |", flush=True)
    return fine, f"{HOSTILE} connections of each kind, see the table"


POINTS: dict[str, tuple[str, Callable[[Proof], Awaitable[Finding]]]] = {
    "load": (f"{CLIENTS} clients: no error, offline's answers, p99 in bounds, memory level", load),
    "overload": (f"{OVERLOAD} times as many clients as the queue takes: 200 or 503 alone", overload),
    "attack": ("slow clients, endless and malicious bodies, probes: it lives, and answers", attack),
    "hostile": (f"an honest client's p99 stays below {TIMES} times that of a quiet server", hostile),
    "stop": (f"SIGTERM with {IN_FLIGHT} in flight: all are answered", stop),
    "kill": ("a killed decoder is back within 10 s", kill),
}


def ping(port: int) -> None:
    """Asks /healthz until Ctrl-C; prints what it saw."""
    seconds, failed = [], 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
    try:
        while True:
            began = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("GET", "/healthz")
                failed += connection.getresponse().status != 200
            except OSError:
                failed += 1
            connection.close()
            seconds.append(time.perf_counter() - began)
            time.sleep(0.02)
    except KeyboardInterrupt:
        print(json.dumps({"p99": percentile(seconds), "count": len(seconds), "failed": failed}))


def main(photos: Path, requests: int = 10_000, weights: str = "-", *points: str) -> None:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(photos, Path(folder), requests, weights)
        for point in points or POINTS:
            name, _, kinds = point.partition(":")
            claim, prove = POINTS[name]
            fine, found = asyncio.run(hostile(proof, kinds.split(",")) if kinds else prove(proof))
            failed += not fine
            print(f"{'yes' if fine else 'NO '}  {claim}: {found}", flush=True)
    sys.exit(f"{failed} points failed" if failed else 0)


if __name__ == "__main__":
    if sys.argv[1] == "--ping":
        ping(int(sys.argv[2]))
    elif sys.argv[1] == "--honest":
        honest(int(sys.argv[2]), *sys.argv[3:])
    elif sys.argv[1] == "--assault":
        asyncio.run(assault(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
    else:
        main(Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:3]), *sys.argv[3:])
