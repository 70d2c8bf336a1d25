"""An exported network behind HTTP. Free of torch."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from atnet.deploy.onnx import OnnxNetwork
from atnet.deploy.service import Limits, Service
from atnet.errors import ConfigError, WeightsError
from atnet.model.info import WeightsInfo
from atnet.prediction import weights_to_ask

CONNECTIONS = 1500
"""More are closed as they come; a connection costs a few kilobytes."""

LAST_SECONDS = 0.5
"""After the signal to stop, in which what clients have sent already is still read."""


def serve(
    weights: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    limits: Limits | None = None,
    ready: Callable[[str, WeightsInfo, Limits], None] = lambda *_: None,
) -> int:
    """Answers requests until SIGTERM or Ctrl-C; returns how many pictures were answered, those in flight too.

    weights: an ONNX file of `atnet export`, or the name of a network that comes with AT-Net; see `weights_to_ask`.
    host: an address of this machine.  port: 0 takes a free one.
    token: what clients have to give, as "Authorization: Bearer TOKEN"; needed unless host is this machine alone.
    ready: takes the address, http://HOST:PORT, when requests are answered, what serves there, and within which limits.
    Raises WeightsError on unusable weights, ConfigError on an address or limits that cannot be had.
    """
    _require_safe(host, token)
    limits = (limits or Limits()).settled()
    network = OnnxNetwork(file_to_serve(weights), limits.threads, limits.batch)
    network.require_images("the server")
    service = Service(network, limits, token)
    with _listening(host, port) as listening, _signals_end_quietly():
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            service.app,
            http=_Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=max(int(limits.timeout), 1),
            timeout_graceful_shutdown=int(2 * limits.timeout) + 1,
        )
        server = _Server(config, service, lambda: ready(address, service.info, limits))
        server.run([listening])
    return service.answered


def file_to_serve(weights: str | Path | None = None) -> Path:
    """The ONNX file meant. Raises WeightsError that says how to make it of a run or a safetensors file."""
    path = weights_to_ask(weights, "cpu")
    if path.suffix == ".onnx":
        return path
    exported = path.with_name("model.onnx")
    if exported.is_file():
        raise WeightsError(f"{path}: only an ONNX file is served; here is one: atnet serve --weights {exported}")
    where = weights or "runs/last"
    raise WeightsError(f"{path}: only an ONNX file is served; write it first: atnet export --weights {where}")


def _require_safe(host: str, token: str | None) -> None:
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError("the token must be letters, digits and signs without a space, at least one")
    try:
        alone = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        alone = False
    if token is None and not alone:
        raise ConfigError(
            f"--host {host} lets other machines ask: set a token they have to give, in ATNET_TOKEN or by --token; "
            "or leave --host at 127.0.0.1"
        )


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{host}, port {port}: cannot be served at ({why}); take another --port or --host") from error
    with listening:
        yield listening


@contextlib.contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn repeats the signal that ended it, once it has ended; here that is no error."""
    try:
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where signals are not uvicorn's either
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """Starts its service before requests are taken, and stops it after the last answer."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.service, self.ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.service.start()
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_SECONDS)
        await super().shutdown(sockets)
        await self.service.stop()


class _Connection(H11Protocol):
    """A connection that is closed when nothing whole has been asked on it for a while; uvicorn waits for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._seen: Any = self
        self._check = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)
        if len(self.connections) > CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._check.cancel()
        super().connection_lost(exc)

    def _close_if_idle(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._seen is self.cycle:
            self.transport.abort()
            return
        self._seen = self.cycle if idle else self
        self._check = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)
