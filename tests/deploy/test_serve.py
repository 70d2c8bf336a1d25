"""A served network, asked over HTTP: real processes, real sockets."""

import http.client
import io
import json
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
from PIL import Image

import atnet
from atnet.cli import main
from atnet.data.preprocess import Preprocess
from atnet.deploy.export import write_onnx
from atnet.deploy.serve import file_to_serve, serve
from atnet.deploy.service import Limits
from atnet.errors import ConfigError, WeightsError
from atnet.model.info import WeightsInfo
from atnet.model.load import create_classifier

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
        """The decoders hold their picture, as long as this lasts."""
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
    weights: Path, *options: object, end: signal.Signals | None = signal.SIGTERM, **environment: str
) -> Iterator[Server]:
    """A server, and that it ends as it should by that signal."""
    words = [sys.executable, "-m", "atnet", "serve", "--weights", weights, "--port", 0, *options]
    process = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
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
            assert re.search(r"^Stopped: \d+ pictures answered$", said, re.M)
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
def pictures(digits: Path) -> list[Path]:
    return sorted((digits / "val").rglob("*.png"))


def plain(answer: atnet.prediction.Prediction) -> list[dict[str, Any]]:
    return [{"class": c, "name": name, "probability": round(p, 6)} for c, name, p in answer.top]


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_answers_are_those_of_predict(server, weights, pictures):
    expected = [plain(answer) for answer in atnet.predict(pictures, weights, top=3)]
    assert len({str(top) for top in expected}) > 40, "pictures differ"
    for picture, top in zip(pictures, expected, strict=True):
        status, answer = server.predict(picture.read_bytes(), "?top=3")
        assert (status, answer["top"]) == (200, top)
        assert answer["milliseconds"] > 0
    assert len(server.predict(pictures[0].read_bytes())[1]["top"]) == 5
    assert len(server.predict(pictures[0].read_bytes(), "?top=99")[1]["top"]) == 10


def test_photos_are_turned_converted_and_answered_as_by_predict(server, weights, photos):
    some = sorted((photos / "val" / "n03394916").iterdir())[:8]
    for picture, answer in zip(some, atnet.predict(some, weights), strict=True):
        assert server.predict(picture.read_bytes())[1]["top"] == plain(answer)


def test_pictures_that_come_together_are_answered_together_as_each_alone(weights, pictures):
    some = pictures[:16]
    expected = atnet.predict(some, weights, top=10)
    with served(weights, "--batch", 8, "--wait-ms", 10_000, "--decoders", 1) as server:
        with server.decoders_stopped(), ThreadPoolExecutor(16) as threads:
            answers = [threads.submit(server.predict, picture.read_bytes(), "?top=10") for picture in some]
            until(lambda: server.measure("atnet_admitted_pictures") == 16)
            os.kill(server.decoders()[0], signal.SIGCONT)
            for future, answer in zip(answers, expected, strict=True):
                status, found = future.result()
                assert status == 200
                shares = {one["class"]: one["probability"] for one in found["top"]}
                assert shares == pytest.approx({c: p for c, _, p in answer.top}, abs=1e-5)
        assert server.measure("atnet_batch_pictures_sum") == 16
        assert server.measure("atnet_batch_pictures_count") == 2


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
        (lambda: b"a shopping list", "picture: text, not a whole JPEG, PNG, WEBP, BMP, GIF, TIFF picture"),
        (lambda: b"", "picture: an empty file; replace or remove it"),
        (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "picture: an SVG drawing, not a whole JPEG"),
        (truncated, "picture: not a whole JPEG"),
        (bomb, "picture: 10000 x 10000 pixels are more than the 50,000,000 allowed; make it smaller"),
        (lambda: png(Image.new("1", (20_000, 10))), "picture: sides of 20000 x 10 pixels are too unequal; crop it"),
    ],
)
def test_what_is_no_picture_is_refused_by_the_decoders_word(server, content, message):
    status, answer = server.predict(content(), headers={"Content-Type": "image/jpeg"})
    assert (status, list(answer)) == (422, ["error"])
    assert answer["error"].startswith(message)


@pytest.mark.parametrize(
    ("query", "headers", "status", "message"),
    [
        ("?top=0", {}, 400, "top must be a whole number, 1 or more"),
        ("?top=many", {}, 400, "top must be a whole number, 1 or more"),
        ("?url=http://127.0.0.1/", {}, 400, "top is the only parameter; the picture's bytes are the body"),
        ("", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "curl --data-binary @photo.jpg"),
        ("", {"Content-Type": "application/json"}, 415, "send the picture's bytes alone"),
        ("", {"Content-Encoding": "gzip"}, 415, "send the picture's bytes alone"),
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
    error = {"error": "the body has more than 1,000,000 bytes; send a smaller picture, or serve with --max-megabytes"}
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


def test_bodies_on_their_way_take_no_more_memory_than_eight_of_the_largest(server, pictures):
    content = pictures[0].read_bytes()
    with ExitStack() as lines:
        for _ in range(8):
            line = lines.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"\0" * 999_999)
        time.sleep(2)  # until all have come: one that is late would be refused in the small one's place
        full = {"error": "too many bodies are on their way; try again later"}
        until(lambda: server.predict(content) == (503, full))
    until(lambda: server.predict(content)[0] == 200)


def test_metrics_count_what_was_answered(server, pictures):
    names = ('atnet_requests_total{path="/predict",status="200"}', 'atnet_requests_total{path="other",status="404"}')
    before = [server.measure(name) for name in names]
    for picture in pictures[:3]:
        server.predict(picture.read_bytes())
    server.ask("GET", "/nowhere")
    assert [server.measure(name) for name in names] == [before[0] + 3, before[1] + 1]
    assert server.ask("GET", "/metrics")[2]["Content-Type"].startswith("text/plain; version=")


def test_a_killed_decoder_is_replaced_and_its_picture_given_to_another(server, weights, pictures):
    content = pictures[0].read_bytes()
    expected = plain(atnet.predict(pictures[0], weights)[0])
    before, lost = server.decoders(), server.measure("atnet_decoders_replaced")
    os.kill(before[0], signal.SIGKILL)  # without a picture
    until(lambda: len(server.decoders()) == 2 and before[0] not in server.decoders())
    until(lambda: server.ask("GET", "/healthz")[1]["decoders"] == 2)
    assert server.predict(content)[1]["top"] == expected
    with server.decoders_stopped() as pids, ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(server.predict, content) for _ in range(2)]
        until(lambda: server.measure("atnet_admitted_pictures") == 2)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for answer in answers:
            status, found = answer.result()
            assert (status, found["top"]) == (200, expected)
    assert server.measure("atnet_decoders_replaced") == lost + 3


def test_a_full_queue_refuses_and_what_it_held_is_answered(weights, pictures):
    content = pictures[0].read_bytes()
    with served(weights, "--queue", 2, "--decoders", 1, end=signal.SIGINT) as server:
        with server.decoders_stopped() as [pid], ThreadPoolExecutor(2) as threads:
            held = [threads.submit(server.predict, content) for _ in range(2)]
            until(lambda: server.measure("atnet_admitted_pictures") == 2)
            status, answer, headers = server.ask("POST", "/predict", content)
            assert (status, answer) == (503, {"error": "2 pictures are waiting already; try again later"})
            assert headers["Retry-After"] == "1"
            assert server.ask("GET", "/healthz")[0] == 200
            os.kill(pid, signal.SIGCONT)
            assert [future.result()[0] for future in held] == [200, 200]
        assert server.predict(content)[0] == 200


def test_whoever_is_slow_is_not_waited_for(weights, pictures):
    content = pictures[0].read_bytes()
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


def test_decoding_has_its_limits(weights, pictures):
    content = pictures[0].read_bytes()
    with served(weights, "--decoders", 1, "--decoder-seconds", 1, "--decoder-megabytes", 500) as server:
        with server.decoders_stopped():
            status, answer = server.predict(content)
        assert (status, answer) == (422, {"error": "picture: takes more than 1 s to decode; make it smaller"})
        until(lambda: server.predict(content)[0] == 200)
    with served(weights, "--decoders", 1, "--decoder-megabytes", 500) as server:
        status, answer = server.predict(png(Image.new("RGBA", (7000, 7000))))
        assert (status, answer) == (422, {"error": "picture: needs more memory than there is; make it smaller"})
        assert server.predict(content)[0] == 200
        assert server.measure("atnet_decoders_replaced") == 0


def test_other_machines_need_a_token(weights, pictures):
    content = pictures[0].read_bytes()
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


def test_a_stopped_server_answers_what_it_was_asked(weights, pictures):
    expected = [plain(answer) for answer in atnet.predict(pictures[:20], weights)]
    with served(weights, "--decoders", 2) as server, ThreadPoolExecutor(20) as threads:
        with server.decoders_stopped():
            answers = [threads.submit(server.predict, picture.read_bytes()) for picture in pictures[:20]]
            until(lambda: server.measure("atnet_admitted_pictures") == 20)
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
    code = "import sys, atnet.cli.serve, atnet.deploy.serve, atnet.deploy.decoder; print('torch' in sys.modules)"
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
