"""What the server answers: an image's bytes in, JSON out, and nothing beyond its limits."""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import prometheus_client
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import atnet
from atnet.config import Whole
from atnet.data.decode import MAX_PIXELS
from atnet.errors import ConfigError, DataError
from atnet.exported.onnx import OnnxNetwork, require_finite
from atnet.inference.prediction import as_json, likeliest
from atnet.serve.batching import Batches
from atnet.serve.connections import Several, client_of
from atnet.serve.decoder import Decoders, Task
from atnet.serve.openapi import openapi
from atnet.system import cores

BODIES = 8
"""As many bodies of the largest size are held at once; smaller ones, more."""

CONNECTIONS = 1500
"""A connection costs a few kilobytes."""

FILES, DECODER_FILES = 128, 3
"""Open files beside the connections': the log, connections closed as they come; the pipes of a decoding process."""

QUERY_BYTES = 100
TOP = 5
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_RANGES = {
    "batch": (1, 1024),
    "wait_ms": (0, 10_000),
    "queue": (1, 10_000),
    "decoders": (0, 256),
    "threads": (0, 256),
    "max_megabytes": (1, 200),
    "max_pixels": (1, MAX_PIXELS),
    "timeout": (0.1, 3600),
    "decoder_seconds": (0.1, 600),
    "decoder_megabytes": (300, 1_000_000),
    "connections": (0, 100_000),
    "per_address": (0, 100_000),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much the server does at once, and what it refuses."""

    batch: Whole = 16
    """Images that the network takes at once, at most."""
    wait_ms: float = 2.0
    """Milliseconds that a decoded image waits for others that are being decoded."""
    queue: Whole = 128
    """Images that are waited for or worked on; more are refused with status 503."""
    decoders: Whole = 0
    """Decoding processes; 0: one a processor core, but two at least."""
    threads: Whole = 0
    """Threads of the network; 0: half of the processor cores."""
    max_megabytes: Whole = 16
    """Of a body; larger ones are refused with status 413."""
    max_pixels: Whole = MAX_PIXELS
    """Of an image; larger ones are refused with status 422."""
    timeout: float = 30.0
    """Seconds for a request's head to come, again for its body, for its answer, and for the client to take that."""
    decoder_seconds: float = 10.0
    """Seconds of a processor that an image may take to decode."""
    decoder_megabytes: Whole = 2000
    """Address space of a decoding process."""
    connections: Whole = 0
    """Connections at once; 0: 1,500, or as many as the limit of open files allows."""
    per_address: Whole = 0
    """Connections of a client address at once, of a network of 64 bits with IPv6; 0: half of all."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} {value:g} is out of range: use {low:,.9g} to {high:,.9g}")

    def settled(self) -> "Limits":
        """With numbers for what depends on the machine. Raises ConfigError if it allows too few open files."""
        decoders = self.decoders or min(max(cores(), 2), _RANGES["decoders"][1])
        others = FILES + DECODER_FILES * decoders
        most = _most_files() - others
        if most < max(self.connections, 1):
            raise ConfigError(
                f"the system allows {most + others:,} open files, and {max(self.connections, 1):,} connections and "
                f"{decoders:,} decoding processes take {max(self.connections, 1) + others:,}: raise `ulimit -n`, or "
                "lower --connections or --decoders"
            )
        connections = self.connections or min(CONNECTIONS, most)
        return replace(
            self,
            decoders=decoders,
            threads=self.threads or min(max(cores() // 2, 1), _RANGES["threads"][1]),
            connections=connections,
            per_address=min(self.per_address or (connections + 1) // 2, connections),
        )

    def allow_files(self) -> None:
        """Raises this process's limit of open files as far as these limits, once settled, need it."""
        with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has none
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            need = self.connections + FILES + DECODER_FILES * self.decoders
            if soft != resource.RLIM_INFINITY and soft < need:
                resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def _most_files() -> int:
    """That the system lets a process open."""
    try:
        import resource
    except ImportError:  # Windows
        return 1_000_000
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1_000_000 if hard == resource.RLIM_INFINITY else hard


class RefusedError(Exception):
    """A status, why, and headers."""

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.status, self.headers = status, headers


@dataclass(eq=False)
class _Image:
    """One that is asked about.

    content: its bytes, as far as they have come.  waits: ends what it waits for.
    movable: whether it may be refused for another client's sake.
    """

    client: str
    content: bytearray = field(default_factory=bytearray)
    waits: asyncio.Timeout | None = None
    movable: bool = True
    admitted: bool = False
    moved: bool = False


@dataclass(eq=False)
class _Client:
    """What a client has of the server: images, oldest first, their bytes, and how many of them are admitted."""

    images: dict[_Image, None] = field(default_factory=dict)
    held: int = 0
    admitted: int = 0


class Service:
    """A network behind HTTP, an ASGI application between `start` and `stop`.

    token: what /predict, /metadata and /metrics ask for; nothing if None.
    proxies: networks whose X-Forwarded-For says who the client is.
    answered: how many images got an answer.
    """

    def __init__(
        self, network: OnnxNetwork, limits: Limits, token: str | None = None, proxies: Sequence[Network] = ()
    ) -> None:
        self.limits = limits.settled()
        self.answered = 0
        self.info, self._network, self._token = network.info, network, token
        self._proxies = proxies
        self._admitted = self._held = 0
        self._clients: dict[str, _Client] = {}
        self._decoders = Decoders(
            Task(
                preprocess=self.info.preprocess,
                max_pixels=self.limits.max_pixels,
                seconds=self.limits.decoder_seconds,
                megabytes=self.limits.decoder_megabytes,
            ),
            self.limits.decoders,
        )
        self._places = _Places(self.limits.decoders)
        self._measures = _Measures(lambda: self._admitted, lambda: self._decoders.replaced)
        self._batches = Batches(
            self._run,
            most=self.limits.batch,
            wait=self.limits.wait_ms / 1000,
            expected=lambda: self._admitted,
            ran=self._measures.batch.observe,
        )
        self._openapi = json.dumps(openapi(self.info, atnet.__version__, token is not None)).encode()
        self._info = json.dumps(asdict(self.info)).encode()
        self.app = _Counted(self._routes(), self._measures)

    async def start(self) -> None:
        """Raises ConfigError if no decoding process comes up."""
        size = self.info.preprocess.size
        for count in (self.limits.batch, 1):  # the first run is slow, and the largest takes the memory
            self._run([np.zeros((size, size, 3), np.uint8)] * count)
        await self._decoders.start()
        self._batches.start()

    async def stop(self) -> None:
        """When nothing is to be answered any more."""
        await self._batches.stop()
        await self._decoders.stop()

    def _run(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return self._network(np.stack([self.info.preprocess.normalise(pixels) for pixels in images]))

    def _routes(self) -> ASGIApp:
        app = Starlette(
            routes=[
                Route("/predict", self._predict, methods=["POST"]),
                Route("/healthz", self._healthz),
                Route("/metadata", self._metadata),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._document),
            ],
            exception_handlers={RefusedError: _refused, HTTPException: _unknown, Exception: _failed},
        )
        app.router.redirect_slashes = False
        return app

    async def _predict(self, request: Request) -> Response:
        began = time.perf_counter()
        top, refusal = TOP, None
        try:
            self._require_token(request)
            _require_plain_body(request)
            top = _top(request)
        except RefusedError as early:
            refusal = early
        async with self._body(request, refusal) as image:
            self._admit(image)
            try:
                async with asyncio.timeout(self.limits.timeout) as image.waits:
                    async with self._places.taken(image.client) as place:
                        image.movable = False
                        pixels = await self._decoders.decode(image.content)
                        place.free()
                        logits = await self._batches.answer(pixels)
                        require_finite(logits)
            except TimeoutError as error:
                if image.moved:
                    raise self._full() from error
                raise RefusedError(504, f"no answer within {self.limits.timeout:g} s; try again later") from error
            except DataError as error:
                raise RefusedError(422, str(error)) from error
            finally:
                self._admitted -= 1
                self._clients[image.client].admitted -= 1
        self.answered += 1
        seconds = time.perf_counter() - began
        self._measures.seconds.observe(seconds)
        answer = {"top": as_json(likeliest(logits, self.info, top)), "milliseconds": round(1000 * seconds, 1)}
        return JSONResponse(answer)

    async def _healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "decoders": self._decoders.ready})

    async def _metadata(self, request: Request) -> Response:
        self._require_token(request)
        return Response(self._info, media_type="application/json")

    async def _metrics(self, request: Request) -> Response:
        self._require_token(request)
        return Response(
            prometheus_client.generate_latest(self._measures.registry),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )

    async def _document(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    def _require_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if self._token is not None and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise RefusedError(
                401, 'give the token: -H "Authorization: Bearer TOKEN"', **{"WWW-Authenticate": "Bearer"}
            )

    def is_proxy(self, host: str) -> bool:
        """Whether it is one whose X-Forwarded-For is believed."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._proxies)

    def _client(self, request: Request) -> str:
        """Who asks; by a proxy's word, the last address on the way that is no proxy's."""
        host = request.client.host if request.client else ""
        way = ",".join(request.headers.getlist("x-forwarded-for")).split(",") if self._proxies else []
        while way and self.is_proxy(host):
            host = way.pop().strip() or host
        return client_of(host)

    def _admit(self, image: _Image) -> None:
        """Raises RefusedError if the queue is full, and none of it is of a client that has more in it."""
        client = self._clients[image.client]
        if self._admitted >= self.limits.queue:
            most = max(self._clients.values(), key=lambda other: other.admitted)
            if most.admitted <= client.admitted + 1 or not _move(most, lambda other: other.admitted):
                raise self._full()
        image.admitted = True
        self._admitted += 1
        client.admitted += 1

    def _full(self) -> RefusedError:
        return _busy(f"{self.limits.queue:,} images are waiting already")

    def _hold(self, image: _Image, chunk: bytes) -> bool:
        """Whether more of the image may be held; those of clients that hold more are given up for it."""
        client, allowed = self._clients[image.client], BODIES * self.limits.max_megabytes * 1_000_000
        while self._held + len(chunk) > allowed:
            most = max(self._clients.values(), key=lambda other: other.held)
            if most.held <= client.held + len(chunk) or not (moved := _move(most, lambda other: bool(other.content))):
                return False
            self._drop(moved)
        image.content += chunk
        client.held += len(chunk)
        self._held += len(chunk)
        return True

    def _drop(self, image: _Image) -> None:
        self._held -= len(image.content)
        self._clients[image.client].held -= len(image.content)
        image.content = bytearray()

    @asynccontextmanager
    async def _body(self, request: Request, refusal: RefusedError | None) -> AsyncIterator[_Image]:
        """The image whose bytes are the body, held until the end of the block.

        Of a body that is refused, as much more as would be allowed is read and dropped: many clients write all of it
        before they read an answer. Raises the refusal given, or one of its own.
        """
        allowed = self.limits.max_megabytes * 1_000_000
        large = RefusedError(
            413, f"the body has more than {allowed:,} bytes; send a smaller image, or serve with --max-megabytes"
        )
        if _declared(request) > allowed:
            refusal = refusal or large
        image, came, whole = _Image(self._client(request)), 0, False
        client = self._clients.setdefault(image.client, _Client())
        client.images[image] = None
        try:
            try:
                async with asyncio.timeout(self.limits.timeout) as image.waits:
                    while not whole and (refusal is None or (came <= 2 * allowed and not _waits_to_send(request))):
                        message = await request.receive()
                        if message["type"] != "http.request":
                            refusal = RefusedError(400, "the client went away")
                            break
                        chunk = message.get("body", b"")
                        whole = not message.get("more_body", False)
                        came += len(chunk)
                        if came > allowed:
                            refusal = refusal or large
                        elif refusal is None and not self._hold(image, chunk):
                            refusal = _many_bodies()
                        if refusal is not None:
                            self._drop(image)
            except TimeoutError:
                late = RefusedError(408, f"the body did not come within {self.limits.timeout:g} s; try again")
                refusal = _many_bodies() if image.moved else refusal or late
            if refusal is not None:
                if not whole:
                    refusal.headers["Connection"] = "close"
                raise refusal
            yield image
        finally:
            self._drop(image)
            del client.images[image]
            if not client.images:
                self._clients.pop(image.client, None)


class _Places:
    """Where images are decoded, one a decoding process. Clients who wait for one have them in turn.

    While several ask, none has all of them, and keeps its place until the answer.
    """

    def __init__(self, count: int) -> None:
        self._free, self._share = count, max(count - 1, 1)
        self._several = Several()
        self._has: Counts[str] = Counts()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def taken(self, client: str) -> AsyncIterator["_Place"]:
        """One, when it is the client's turn."""
        self._several.saw(client)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._hand_out()
        place = _Place(self.free)
        try:
            await turn
            yield place
        finally:
            if turn.done() and not turn.cancelled():
                place.free()
                self._has[client] -= 1
                if not self._has[client]:
                    del self._has[client]
                self._hand_out()

    def free(self) -> None:
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        handed = True
        while handed and self._free:
            handed = False
            for client in list(self._waiting):
                turns = self._waiting[client]
                while turns and turns[0].done():  # given up
                    turns.popleft()
                if turns and self._free and (self._has[client] < self._share or not self._several):
                    handed = True
                    self._free -= 1
                    self._has[client] += 1
                    turns.popleft().set_result(None)
                    self._waiting[client] = self._waiting.pop(client)  # behind the others
                if not turns:
                    del self._waiting[client]


class _Place:
    """free: gives it back, once."""

    def __init__(self, free: Callable[[], None]) -> None:
        self._free: Callable[[], None] | None = free

    def free(self) -> None:
        if self._free is not None:
            free, self._free = self._free, None
            free()


class _Measures:
    """What /metrics tells."""

    def __init__(self, admitted: Callable[[], int], replaced: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self.requests = Counter("atnet_requests", "Answers.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "atnet_predict_seconds", "From an image's first byte to its answer.", registry=self.registry
        )
        self.batch = Histogram(
            "atnet_batch_images",
            "Images that the network took at once.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        waiting = Gauge("atnet_admitted_images", "Images waiting or worked on.", registry=self.registry)
        waiting.set_function(admitted)
        lost = Gauge("atnet_decoders_replaced", "Decoding processes that ended.", registry=self.registry)
        lost.set_function(replaced)


class _Counted:
    """An application whose answers are counted by path and status."""

    def __init__(self, app: ASGIApp, measures: _Measures) -> None:
        self._app, self._measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = scope["path"] in ("/predict", "/healthz", "/metadata", "/metrics", "/openapi.json")
                self._measures.requests.labels(scope["path"] if known else "other", message["status"]).inc()
            await send(message)

        await self._app(scope, receive, count)


def _busy(why: str) -> RefusedError:
    return RefusedError(503, f"{why}; try again later", **{"Retry-After": "1"})


def _many_bodies() -> RefusedError:
    return _busy("too many bodies are on their way")


def _move(client: _Client, when: Callable[[_Image], bool]) -> _Image | None:
    """The newest image of those that is not worked on, refused."""
    for image in reversed(client.images):
        if image.movable and when(image) and image.waits is not None:
            image.moved, image.movable = True, False
            image.waits.reschedule(0.0)
            return image
    return None


def _top(request: Request) -> int:
    """The number of classes asked for. Raises RefusedError if it is none, or if anything else is asked."""
    if len(request.scope["query_string"]) > QUERY_BYTES:
        raise RefusedError(400, "top is the only parameter; the image's bytes are the body")
    for name in request.query_params:
        if name != "top":
            raise RefusedError(400, "top is the only parameter; the image's bytes are the body")
    word = request.query_params.get("top", str(TOP))
    if not (word.isascii() and word.isdecimal() and len(word) < 7 and int(word)):
        raise RefusedError(400, "top must be a whole number, 1 or more")
    return int(word)


def _require_plain_body(request: Request) -> None:
    """Raises RefusedError if the body is said to be something around an image."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/") or kind == "application/json" or "content-encoding" in request.headers:
        raise RefusedError(415, "send the image's bytes alone as the body: curl --data-binary @photo.jpg")


def _declared(request: Request) -> int:
    """The body's size by its header, 0 if it is not said."""
    word = request.headers.get("content-length", "0")
    return int(word) if word.isascii() and word.isdecimal() else 0


def _waits_to_send(request: Request) -> bool:
    return request.headers.get("expect", "").lower() == "100-continue"


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return JSONResponse({"error": str(error)}, error.status, error.headers)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    why = {404: "there is no such address; /openapi.json lists all", 405: "this address takes another method"}
    return JSONResponse({"error": why.get(error.status_code, error.detail)}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says more"}, 500)
