"""A served network, asked over HTTP: real processes, real sockets."""

import asyncio
import http.client
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import uvicorn
from PIL import Image

import atnet
from atnet.cli import main
from atnet.data.preprocess import Preprocess
from atnet.errors import ConfigError, WeightsError
from atnet.exported.graph import write_onnx
from atnet.models.load import create_classifier
from atnet.serve.app import Limits, _Places
from atnet.serve.connections import Address, Connection, Door, Turns, client_of
from atnet.serve.serve import _log_seldom, file_to_serve, serve
from atnet.weights.info import WeightsInfo

TOKEN = "a word that others do not know".replace(" ", "-")
INFO = WeightsInfo(
    model="atnet_xxxs",
    classes=tuple("0123456789"),
    class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    preprocess=Preprocess(size=32, crop_pct=1.0, interpolation="bicubic", mean=(0.4,) * 3, std=(0.2,) * 3),
    epoch=1,
    moving_average=True,
    facts={"top1": 97.5},
)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


class Server:
    """A started server.  ask: (method, path, body) to (status, JSON or text, headers), on a connection of its own."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.port = process, port

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, **options)
            answer = connection.getresponse()
            text = answer.read().decode()
            kind = answer.headers.get_content_type()
            return answer.status, json.loads(text) if kind == "application/json" and text else text, answer.headers
        finally:
            connection.close()

    def predict(self, content: Any, query: str = "", **options: Any) -> tuple[int, Any]:
        return self.ask("POST", f"/predict{query}", content, **options)[:2]

    def measure(self, name: str) -> float:
        """A figure of /metrics; 0 if it is not there yet."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("GET", "/metrics")[1], re.M)
        return float(found[1]) if found else 0.0

    def decoders(self) -> list[int]:
        return sorted(child.pid for child in psutil.Process(self.process.pid).children())

    @contextmanager
    def decoders_stopped(self) -> Iterator[list[int]]:
        """The decoders hold their image, as long as this lasts."""
        until(lambda: self.ask("GET", "/healthz")[1]["decoders"] == len(self.decoders()))
        pids = self.decoders()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield pids
        finally:
            for pid in pids:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGCONT)


@contextmanager
def served(
    weights: Path,
    *options: object,
    end: signal.Signals | None = signal.SIGTERM,
    files: int | None = None,
    log: Path | None = None,
    **environment: str,
) -> Iterator[Server]:
    """A server, and that it ends as it should by that signal.  files: that it may open.  log: what it writes there."""
    words = [sys.executable, "-m", "atnet", "serve", "--weights", weights, "--port", 0, *options]
    few = [] if files is None else ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    with ExitStack() as stack:
        process = subprocess.Popen(
            few + list(map(str, words)),
            stdout=subprocess.PIPE,
            stderr=None if log is None else stack.enter_context(log.open("wb")),
            text=True,
            env={**os.environ, **environment},
        )
    assert process.stdout is not None
    try:
        port = None
        for line in process.stdout:
            port = port or re.search(r" at http://\S+:(\d+)$", line)
            if line.startswith("Stop: "):
                break
        assert port, "it did not start"
        yield Server(process, int(port[1]))
        if end is not None:
            process.send_signal(end)
            said = process.stdout.read()
            assert process.wait(60) == 0
            assert re.search(r"^Stopped: \d+ images answered$", said, re.M)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until(holds: Callable[[], bool]) -> None:
    """Waits for what has to come."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is sure of its answers, though it was never trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_classifier("xxxs", classes=10, size=32)
        with torch.no_grad():
            model.head.weight.mul_(30)
    path = tmp_path_factory.mktemp("served") / "model.onnx"
    write_onnx(model, (3, 32, 32), path, INFO)
    return path


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with served(weights, "--max-megabytes", 1, "--decoders", 2) as found:
        yield found


@pytest.fixture
def images(digits: Path) -> list[Path]:
    return sorted((digits / "val").rglob("*.png"))


def plain(answer: atnet.inference.prediction.Prediction) -> list[dict[str, Any]]:
    return [{"class": c, "name": name, "probability": round(p, 6)} for c, name, p in answer.top]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_answers_are_those_of_predict(server, weights, images):
    expected = [plain(answer) for answer in atnet.predict(images, weights, top=3)]
    assert len({str(top) for top in expected}) > 40, "images differ"
    for image, top in zip(images, expected, strict=True):
        status, answer = server.predict(image.read_bytes(), "?top=3")
        assert (status, answer["top"]) == (200, top)
        assert answer["milliseconds"] > 0
    assert len(server.predict(images[0].read_bytes())[1]["top"]) == 5
    assert len(server.predict(images[0].read_bytes(), "?top=99")[1]["top"]) == 10


def test_photos_are_turned_converted_and_answered_as_by_predict(server, weights, photos):
    some = sorted((photos / "val" / "n03394916").iterdir())[:8]
    for image, answer in zip(some, atnet.predict(some, weights), strict=True):
        assert server.predict(image.read_bytes())[1]["top"] == plain(answer)


def test_images_that_come_together_are_answered_together_as_each_alone(weights, images):
    some = images[:16]
    expected = atnet.predict(some, weights, top=10)
    with served(weights, "--batch", 8, "--wait-ms", 10_000, "--decoders", 1) as server:
        with server.decoders_stopped(), ThreadPoolExecutor(16) as threads:
            answers = [threads.submit(server.predict, image.read_bytes(), "?top=10") for image in some]
            until(lambda: server.measure("atnet_admitted_images") == 16)
            os.kill(server.decoders()[0], signal.SIGCONT)
            for future, answer in zip(answers, expected, strict=True):
                status, found = future.result()
                assert status == 200
                shares = {one["class"]: one["probability"] for one in found["top"]}
                assert shares == pytest.approx({c: p for c, _, p in answer.top}, abs=1e-5)
        assert server.measure("atnet_batch_images_sum") == 16
        assert server.measure("atnet_batch_images_count") == 2


def test_it_says_what_it_serves(server):
    assert server.ask("GET", "/healthz")[:2] == (200, {"status": "ok", "decoders": 2})
    said = server.ask("GET", "/metadata")[1]
    assert WeightsInfo.from_metadata({"atnet": json.dumps(said)}, Path("it")) == INFO
    document = server.ask("GET", "/openapi.json")[1]
    assert document["openapi"].startswith("3.")
    assert set(document["paths"]) == {"/predict", "/healthz", "/metadata", "/metrics"}
    answer = document["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["required"] == ["top", "milliseconds"]


def bomb() -> bytes:
    return png(Image.new("1", (10_000, 10_000)))


def truncated() -> bytes:
    return png(Image.effect_noise((64, 64), 50))[:1500]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"a shopping list", "image: text, not a whole JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF image"),
        (lambda: b"", "image: an empty file; replace or remove it"),
        (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image: an SVG drawing, not a whole JPEG"),
        (truncated, "image: not a whole JPEG"),
        (bomb, "image: 10000 x 10000 pixels are more than the 50,000,000 allowed; make it smaller"),
        (lambda: png(Image.new("1", (20_000, 10))), "image: sides of 20000 x 10 pixels are too unequal; crop it"),
    ],
)
def test_what_is_no_image_is_refused_by_the_decoders_word(server, content, message):
    status, answer = server.predict(content(), headers={"Content-Type": "image/jpeg"})
    assert (status, list(answer)) == (422, ["error"])
    assert answer["error"].startswith(message)


@pytest.mark.parametrize(
    ("query", "headers", "status", "message"),
    [
        ("?top=0", {}, 400, "top must be a whole number, 1 or more"),
        ("?top=many", {}, 400, "top must be a whole number, 1 or more"),
        ("?url=http://127.0.0.1/", {}, 400, "top is the only parameter; the image's bytes are the body"),
        ("", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "curl --data-binary @photo.jpg"),
        ("", {"Content-Type": "application/json"}, 415, "send the image's bytes alone"),
        ("", {"Content-Encoding": "gzip"}, 415, "send the image's bytes alone"),
    ],
)
def test_a_question_of_another_form_is_told_the_right_one(server, query, headers, status, message):
    found, answer = server.predict(b"anything", query, headers=headers)
    assert found == status
    assert message in answer["error"]


def test_other_addresses_and_methods_are_not_there(server):
    for path in ("/", "/predict/", "/admin", "/../etc/passwd", "/%2e%2e/etc/passwd", "/docs", "//predict"):
        status, answer, _ = server.ask("POST", path, b"x")
        assert (status, answer) == (404, {"error": "there is no such address; /openapi.json lists all"}), path
    for method, path in (("GET", "/predict"), ("DELETE", "/metadata"), ("OPTIONS", "/predict"), ("POST", "/healthz")):
        status, answer, headers = server.ask(method, path, headers={"Origin": "http://elsewhere.example"})
        assert (status, answer) == (405, {"error": "this address takes another method"})
        assert not [name for name in headers if name.lower().startswith("access-control")]


def test_a_large_body_is_refused_however_it_is_sent(server):
    large = b"\xff" * 1_500_000
    error = {"error": "the body has more than 1,000,000 bytes; send a smaller image, or serve with --max-megabytes"}
    assert server.predict(large) == (413, error)
    assert server.predict(iter([large[:700_000], large[700_000:]]), encode_chunked=True) == (413, error)
    head = "POST /predict HTTP/1.1\r\nHost: x\r\n"
    for rest in (
        "Content-Length: 1000000000000\r\nExpect: 100-continue\r\n\r\n",
        "Content-Length: 90000000000\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
            line.sendall((head + rest).encode())
            if "Expect" not in rest:
                line.sendall(b"\0" * 2_100_000)
            said = line.recv(65536).decode()
        assert said.startswith("HTTP/1.1 413 ")
        assert "connection: close" in said
    endless, sent = b"10000\r\n" + b"\0" * 65536 + b"\r\n", 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
        line.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        with suppress(ConnectionError):
            while sent < 1_000_000_000:
                line.sendall(endless)
                sent += len(endless)
    assert sent < 100_000_000, "the server stops reading"


def test_bodies_on_their_way_take_no_more_memory_than_eight_of_the_largest(server, images):
    content = images[0].read_bytes()
    with ExitStack() as lines:
        for _ in range(8):
            line = lines.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"\0" * 999_999)
        time.sleep(2)  # until all have come: one that is late would be refused in the small one's place
        full = {"error": "too many bodies are on their way; try again later"}
        until(lambda: server.predict(content) == (503, full))
    until(lambda: server.predict(content)[0] == 200)


@pytest.fixture(scope="module")
def guarded(weights: Path) -> Iterator[Server]:
    """A server with small limits."""
    options = ("--connections", 10, "--per-address", 6, "--timeout", 5, "--decoders", 1, "--queue", 2)
    with served(weights, *options, "--max-megabytes", 1) as found:
        yield found


def line_to(server: Server, host: str = "127.0.0.1") -> socket.socket:
    """A connection from that address."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.settimeout(60)
    line.bind((host, 0))
    line.connect(("127.0.0.1", server.port))
    return line


def everything(line: socket.socket) -> bytes:
    """What comes until the server closes."""
    said = b""
    with line, suppress(ConnectionResetError):
        while chunk := line.recv(65536):
            said += chunk
    return said


def is_closed(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
HERE, ELSEWHERE = {"source_address": ("127.0.0.1", 0)}, {"source_address": ("127.0.0.2", 0)}


def test_an_address_has_a_share_of_the_connections_and_its_oldest_make_room(guarded):
    with ExitStack() as lines:
        many = []
        for _ in range(9):
            many.append(lines.enter_context(line_to(guarded)))
            many[-1].sendall(HEALTHZ)
            assert many[-1].recv(65536).startswith(b"HTTP/1.1 200 ")
        until(lambda: [is_closed(line) for line in many] == [True] * 3 + [False] * 6)
        others = [lines.enter_context(line_to(guarded, "127.0.0.3")) for _ in range(4)]
        last = lines.enter_context(line_to(guarded, "127.0.0.2"))
        last.sendall(HEALTHZ)
        assert last.recv(65536).startswith(b"HTTP/1.1 200 ")
        until(lambda: [is_closed(line) for line in many] == [True] * 4 + [False] * 5)
        assert not any(map(is_closed, others))


def test_whoever_does_not_read_or_sends_byte_by_byte_is_not_waited_for(guarded):
    """Three clients: one reads nothing, one a byte at a time, one never ends its head."""
    process = psutil.Process(guarded.process.pid)
    with ExitStack() as lines:
        unread, slow, endless = (lines.enter_context(line_to(guarded)) for _ in range(3))
        for line in (unread, slow, endless):
            line.sendall(HEALTHZ)
            line.recv(1)
            line.setblocking(False)
        held = process.num_fds()
        for line in (unread, slow):
            with suppress(BlockingIOError):
                for _ in range(8):
                    line.send(DOCUMENT * 400)

        def all_closed() -> bool:
            with suppress(OSError):
                endless.send(b"x")
            with suppress(OSError):
                slow.recv(1)
            return process.num_fds() <= held - 3

        until(all_closed)


def test_what_is_sent_ahead_is_answered_in_turn_even_if_the_client_has_ended(guarded, images):
    content = images[0].read_bytes()
    ask = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    line = line_to(guarded)
    line.sendall((HEALTHZ + ask) * 5)
    line.shutdown(socket.SHUT_WR)
    said = everything(line)
    assert (
        re.findall(rb'HTTP/1.1 200|"status"|"top"', said)
        == [b"HTTP/1.1 200", b'"status"', b"HTTP/1.1 200", b'"top"'] * 5
    )


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n0\r\n\r\n" + HEALTHZ,
            b"422",
            b"connection: close",
        ),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 101 + b"\r\n" + HEALTHZ, b"431", b"100 lines"),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 30_000 + b"\r\n\r\n", b"431", b"16,384 bytes"),
        (b"nothing that is HTTP\r\n\r\n" + HEALTHZ, b"400", b"not a valid HTTP request"),
        (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 3000,
            b"400",
            b"lines around a chunk",
        ),
        (b"POST /predict?" + b"top=1&" * 50 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"400", b"top is"),
    ],
)
def test_a_request_of_doubtful_extent_is_answered_once_and_the_connection_closed(guarded, content, status, word):
    line = line_to(guarded)
    line.sendall(content)
    said = everything(line)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [status]
    assert word in said


def test_a_body_in_the_smallest_chunks_is_a_body(guarded, images):
    content = images[0].read_bytes()
    assert guarded.predict((bytes([byte]) for byte in content), encode_chunked=True)[0] == 200


@pytest.mark.parametrize("proxied", [False, True])
def test_a_full_queue_has_room_for_a_client_with_less_in_it(weights, guarded, images, proxied):
    content = images[0].read_bytes()
    options = ("--queue", 3, "--decoders", 1, "--proxy", "127.0.0.1")
    with ExitStack() as stack:
        server = stack.enter_context(served(weights, *options)) if proxied else guarded
        one, other = ({"headers": {"X-Forwarded-For": name}} for name in ("10.0.0.1", "spoofed, 10.0.0.2"))
        threads = stack.enter_context(ThreadPoolExecutor(5))
        predict = (lambda options: server.predict(content, **options)) if proxied else ask_from(server, content)
        count = 3 if proxied else 2
        with server.decoders_stopped() as [pid]:
            held = []
            for number in range(count):
                held.append(threads.submit(predict, one if proxied else HERE))
                until(lambda many=number + 1: server.measure("atnet_admitted_images") == many)
            last = threads.submit(predict, other if proxied else ELSEWHERE)
            full = {"error": f"{count} images are waiting already; try again later"}
            assert held[-1].result() == (503, full)
            os.kill(pid, signal.SIGCONT)
            assert [future.result()[0] for future in (*held[:-1], last)] == [200] * count


def ask_from(server: Server, content: bytes) -> Callable[[dict[str, Any]], tuple[int, Any]]:
    def ask(options: dict[str, Any]) -> tuple[int, Any]:
        line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60, **options)
        line.request("POST", "/predict", content)
        answer = line.getresponse()
        said = answer.status, json.loads(answer.read())
        line.close()
        return said

    return ask


def test_bodies_of_one_client_leave_room_for_those_of_another(server, images):
    content = images[0].read_bytes()
    with ExitStack() as lines:
        many = [lines.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60)) for _ in range(8)]
        for line in many:
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"\0" * 999_999)
        time.sleep(2)  # until all have come
        assert ask_from(server, content)(ELSEWHERE)[0] == 200
        for line in many:
            line.setblocking(False)
        said = []
        for line in many:
            with suppress(BlockingIOError):
                said.append(line.recv(12))
        assert said == [b"HTTP/1.1 503"], "one of the client that holds most"


def test_fewer_files_than_clients_are_a_limit_and_no_fault(weights, images, tmp_path):
    content, log = images[0].read_bytes(), tmp_path / "log"
    with ExitStack() as lines:
        server = lines.enter_context(served(weights, "--decoders", 1, files=180, log=log))
        many = [lines.enter_context(line_to(server)) for _ in range(300)]
        until(lambda: sum(map(is_closed, many)) == 300 - 25)
        assert ask_from(server, content)(ELSEWHERE)[0] == 200
        for line in many:
            line.close()
    text = log.read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert "connections are open" in text
    assert len(text) < 2000


def test_the_limit_of_open_files_is_raised_and_says_what_is_missing(monkeypatch):
    resource = pytest.importorskip("resource")
    known, limits = [], {"soft": 256, "hard": 1000}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limits["soft"], limits["hard"]))
    monkeypatch.setattr(resource, "setrlimit", lambda _, values: known.append(values))
    settled = Limits(decoders=4).settled()
    assert (settled.connections, settled.per_address) == (860, 430)
    settled.allow_files()
    assert known == [(1000, 1000)]
    assert Limits(decoders=4, connections=100).settled().per_address == 50
    with pytest.raises(ConfigError, match="ulimit -n"):
        Limits(decoders=4, connections=900).settled()
    limits["hard"] = 100
    with pytest.raises(ConfigError, match="ulimit -n"):
        Limits(decoders=4).settled()


def test_who_counts_as_one_client():
    hosts = ("192.0.2.7", "::ffff:192.0.2.7", "2001:db8:1:2:3::4", "2001:db8:1:2::9", "2001:db8:1:3::9", "fe80::1%eth0")
    assert [client_of(host) for host in hosts] == [
        "192.0.2.7",
        "192.0.2.7",
        "2001:db8:1:2::/64",
        "2001:db8:1:2::/64",
        "2001:db8:1:3::/64",
        "fe80::/64",
    ]


def test_addresses_have_turns_one_after_another():
    done = []

    async def ask() -> None:
        turns, busy, quiet = Turns(), Address("busy"), Address("quiet")
        for number in range(20):
            turns.take(busy, lambda number=number: done.append(number))
        await asyncio.sleep(0)
        turns.take(quiet, lambda: done.append("quiet"))
        while len(done) < 21:
            await asyncio.sleep(0.01)

    asyncio.run(ask())
    assert done.index("quiet") < 5
    assert [number for number in done if number != "quiet"] == list(range(20))


def test_one_client_has_all_decoders_but_for_one_while_another_asks():
    async def ask() -> list[str]:
        places, began = _Places(2), []

        async def image(client: str) -> None:
            async with places.taken(client) as place:
                began.append(client)
                await asyncio.sleep(0.01)
                place.free()
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(image("many"))
            await asyncio.sleep(0)
            assert began == ["many"] * 2, "alone it has all"
            group.create_task(image("few"))
            group.create_task(image("few"))
        return began

    began = asyncio.run(ask())
    assert began[:4].count("few") == 1
    assert began.count("many") == 6
    assert began.index("few", began.index("few") + 1) < 7


def test_answers_are_sent_at_once():
    """Without Nagle's algorithm, which would hold an answer's second part until the client has confirmed the first."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    async def ask() -> int:
        config = uvicorn.Config(app, http="h11", lifespan="off", log_config=None)
        config.load()
        state = uvicorn.server.ServerState()
        made = []

        def protocol(door: Door, address: Address) -> Connection:
            made.append(Connection(door, address, config=config, server_state=state, app_state={}))
            return made[-1]

        door = Door(protocol, most=2, share=2, shareless=lambda _: False, timeout=10)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            door.open(listening)
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(HEALTHZ)
            assert (await reader.readline()).startswith(b"HTTP/1.1 204")
            line = made[0].transport.get_extra_info("socket")
            found = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            await writer.wait_closed()
            while made[0] in state.connections:
                await asyncio.sleep(0.01)
            await door.close()
            await door.stop()
            return int(found)

    assert asyncio.run(ask())


def test_the_log_has_a_line_a_second_of_what_is_repeated(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr("atnet.serve.serve.time.monotonic", lambda: now[0])
    with caplog.at_level(logging.WARNING, "atnet"), _log_seldom():
        for number in range(2000):
            now[0] += 0.001
            try:
                raise OSError(f"fault {number}")
            except OSError:
                logging.getLogger("atnet").exception("it failed")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "it failed"
    assert 2 <= len(lines) <= 3
    assert "fault 999" in lines[1] or "fault 1000" in lines[1]
    assert "999 more" in lines[1] or "1,000 more" in lines[1]
    assert [bool(record.exc_info) for record in caplog.records][:2] == [True, False]
    logging.getLogger("atnet").warning("outside of a server nothing is left out")


def test_metrics_count_what_was_answered(server, images):
    names = ('atnet_requests_total{path="/predict",status="200"}', 'atnet_requests_total{path="other",status="404"}')
    before = [server.measure(name) for name in names]
    for image in images[:3]:
        server.predict(image.read_bytes())
    server.ask("GET", "/nowhere")
    assert [server.measure(name) for name in names] == [before[0] + 3, before[1] + 1]
    assert server.ask("GET", "/metrics")[2]["Content-Type"].startswith("text/plain; version=")


def test_a_killed_decoder_is_replaced_and_its_image_given_to_another(server, weights, images):
    content = images[0].read_bytes()
    expected = plain(atnet.predict(images[0], weights)[0])
    before, lost = server.decoders(), server.measure("atnet_decoders_replaced")
    os.kill(before[0], signal.SIGKILL)  # without an image
    until(lambda: len(server.decoders()) == 2 and before[0] not in server.decoders())
    until(lambda: server.ask("GET", "/healthz")[1]["decoders"] == 2)
    assert server.predict(content)[1]["top"] == expected
    with server.decoders_stopped() as pids, ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(server.predict, content) for _ in range(2)]
        until(lambda: server.measure("atnet_admitted_images") == 2)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for answer in answers:
            status, found = answer.result()
            assert (status, found["top"]) == (200, expected)
    assert server.measure("atnet_decoders_replaced") == lost + 3


def test_a_full_queue_refuses_and_what_it_held_is_answered(weights, images):
    content = images[0].read_bytes()
    with served(weights, "--queue", 2, "--decoders", 1, end=signal.SIGINT) as server:
        with server.decoders_stopped() as [pid], ThreadPoolExecutor(2) as threads:
            held = [threads.submit(server.predict, content) for _ in range(2)]
            until(lambda: server.measure("atnet_admitted_images") == 2)
            status, answer, headers = server.ask("POST", "/predict", content)
            assert (status, answer) == (503, {"error": "2 images are waiting already; try again later"})
            assert headers["Retry-After"] == "1"
            assert server.ask("GET", "/healthz")[0] == 200
            os.kill(pid, signal.SIGCONT)
            assert [future.result()[0] for future in held] == [200, 200]
        assert server.predict(content)[0] == 200


def test_whoever_is_slow_is_not_waited_for(weights, images):
    content = images[0].read_bytes()
    with served(weights, "--timeout", 1, "--decoders", 1) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
            assert line.recv(65536).startswith(b"HTTP/1.1 408 ")
        for begun in (b"", b"GET /healthz HTTP/1.1\r\nHost"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
                line.sendall(begun)
                with suppress(ConnectionResetError):
                    assert line.recv(65536) == b""
        with server.decoders_stopped():
            status, answer = server.predict(content)
        assert (status, answer) == (504, {"error": "no answer within 1 s; try again later"})
        until(lambda: server.predict(content)[0] == 200)


def test_decoding_has_its_limits(weights, images):
    content = images[0].read_bytes()
    with served(weights, "--decoders", 1, "--decoder-seconds", 1, "--decoder-megabytes", 500) as server:
        with server.decoders_stopped():
            status, answer = server.predict(content)
        assert (status, answer) == (422, {"error": "image: takes more than 1 s to decode; make it smaller"})
        until(lambda: server.predict(content)[0] == 200)
    with served(weights, "--decoders", 1, "--decoder-megabytes", 500) as server:
        status, answer = server.predict(png(Image.new("RGBA", (7000, 7000))))
        assert (status, answer) == (422, {"error": "image: needs more memory than there is; make it smaller"})
        assert server.predict(content)[0] == 200
        assert server.measure("atnet_decoders_replaced") == 0


def test_other_machines_need_a_token(weights, images):
    content = images[0].read_bytes()
    error = {"error": 'give the token: -H "Authorization: Bearer TOKEN"'}
    with served(weights, "--host", "0.0.0.0", "--decoders", 1, ATNET_TOKEN=TOKEN) as server:
        for header in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Bearer é"},
        ):
            for method, path in (("POST", "/predict"), ("GET", "/metadata"), ("GET", "/metrics")):
                status, answer, headers = server.ask(
                    method, path, content if method == "POST" else None, headers=header
                )
                assert (status, answer, headers["WWW-Authenticate"]) == (401, error, "Bearer")
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert server.predict(content, headers=right)[0] == 200
        assert server.ask("GET", "/metadata", headers=right)[0] == 200
        assert server.ask("GET", "/metrics", headers=right)[0] == 200
        assert server.ask("GET", "/healthz")[0] == 200


def test_a_stopped_server_answers_what_it_was_asked(weights, images):
    expected = [plain(answer) for answer in atnet.predict(images[:20], weights)]
    with served(weights, "--decoders", 2) as server, ThreadPoolExecutor(20) as threads:
        with server.decoders_stopped():
            answers = [threads.submit(server.predict, image.read_bytes()) for image in images[:20]]
            until(lambda: server.measure("atnet_admitted_images") == 20)
            server.process.terminate()
            until(lambda: not accepts(server.port))
        for future, top in zip(answers, expected, strict=True):
            status, answer = future.result()
            assert status == 200
            for one, other in zip(answer["top"], top, strict=True):
                assert one["class"] == other["class"]
                assert one["probability"] == pytest.approx(other["probability"], abs=2e-5)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        return True
    except ConnectionError:
        return False


def test_nothing_is_left_of_a_server_that_was_killed(weights):
    with served(weights, "--decoders", 1, end=None) as server:
        [decoder] = server.decoders()
        server.process.kill()
        server.process.wait()
        until(lambda: not psutil.pid_exists(decoder) or psutil.Process(decoder).status() == psutil.STATUS_ZOMBIE)


def test_the_server_is_free_of_torch():
    code = "import sys, atnet.cli.serve, atnet.serve.serve, atnet.serve.decoder; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_only_an_exported_file_is_served(weights, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "ema.safetensors").write_bytes(b"weights")
    with pytest.raises(
        WeightsError, match=r"only an ONNX file is served; write it first: atnet export --weights \S+run$"
    ):
        serve(run)
    (run / "model.onnx").write_bytes(b"text")
    with pytest.raises(WeightsError, match=r"here is one: atnet serve --weights \S+run/model.onnx$"):
        serve(run)
    with pytest.raises(WeightsError, match=r"model.onnx: not an ONNX file"):
        serve(run / "model.onnx")
    assert file_to_serve(weights) == weights


def test_the_image_serves_other_machines_as_another_user_than_root_and_with_a_token(weights, capfd):
    text = (Path(__file__).parent.parent.parent / "Dockerfile").read_text(encoding="utf-8")
    entry = re.search(r"^ENTRYPOINT (.*)$", text, re.M)
    assert entry is not None
    assert re.findall(r"^USER (\w+)$", text, re.M) == ["atnet"]
    program, *words, _ = json.loads(entry[1])
    assert program == "atnet"
    with pytest.raises(SystemExit) as ended:
        main([*words, str(weights)])
    assert ended.value.code == 2
    assert "--host 0.0.0.0 lets other machines ask: set a token" in capfd.readouterr().err


def test_what_cannot_be_had_is_said(weights, monkeypatch):
    with pytest.raises(ConfigError, match=r"--host 0.0.0.0 lets other machines ask: set a token .* ATNET_TOKEN"):
        serve(weights, host="0.0.0.0")
    for token in ("", "two words", "schlüssel", "new\nline"):
        with pytest.raises(ConfigError, match="the token must be letters, digits and signs without a space"):
            serve(weights, token=token)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1, port {port}: cannot be served at \(Address already in use"):
            serve(weights, port=port)
    with pytest.raises(ConfigError, match=r"--queue 0 is out of range: use 1 to 10,000"):
        Limits(queue=0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="a decoding process does not come up"):
        serve(weights, port=0)


def test_a_machine_of_many_cores_is_served_within_the_limits(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(600)), raising=False)
    settled = Limits(decoders=3).settled()
    assert (Limits().settled().decoders, settled.decoders, settled.threads) == (256, 3, 256)
