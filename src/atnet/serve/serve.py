"""An exported network behind HTTP. Free of torch."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from atnet.errors import ConfigError, WeightsError
from atnet.exported.onnx import OnnxNetwork
from atnet.inference.prediction import weights_to_ask
from atnet.serve.app import Limits, Network, Service
from atnet.serve.connections import SEND_BYTES, Address, Connection, Door
from atnet.weights.info import WeightsInfo

SELDOM_SECONDS = 1.0
"""Between two lines of a kind in the log."""

LAST_SECONDS = 0.5
"""After the signal to stop, in which what clients have sent already is still read."""


def serve(
    weights: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    limits: Limits | None = None,
    proxies: Sequence[str] = (),
    ready: Callable[[str, WeightsInfo, Limits], None] = lambda *_: None,
) -> int:
    """Answers requests until SIGTERM or Ctrl-C; returns how many images were answered, those in flight too.

    weights: an ONNX file of `atnet export`, or the name of a network that comes with AT-Net; see `weights_to_ask`.
    host: an address of this machine.  port: 0 takes a free one.
    token: what clients have to give, as "Authorization: Bearer TOKEN"; needed unless host is this machine alone.
    proxies: addresses or networks (10.0.0.0/8) of proxies, whose X-Forwarded-For says who the client is.
    ready: takes the address, http://HOST:PORT, when requests are answered, what serves there, and within which limits.
    Raises WeightsError on unusable weights, ConfigError on an address or limits that cannot be had.
    """
    _require_safe(host, token)
    limits = (limits or Limits()).settled()
    limits.allow_files()
    trusted = _networks(proxies)
    network = OnnxNetwork(file_to_serve(weights), limits.threads, limits.batch)
    network.require_images("the server")
    service = Service(network, limits, token, trusted)
    with _listening(host, port) as listening, _signals_end_quietly(), _log_seldom():
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            service.app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(2 * limits.timeout) + 1,
        )
        _Server(config, service, listening, lambda: ready(address, service.info, limits)).run()
    return service.answered


def file_to_serve(weights: str | Path | None = None) -> Path:
    """The ONNX file meant. Raises WeightsError that says how to make it of a run or a safetensors file."""
    path = weights_to_ask(weights, "cpu").path
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
        listening = socket.create_server((host, port), family=family, backlog=4096)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)  # each connection has it from here
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


@contextlib.contextmanager
def _log_seldom() -> Iterator[None]:
    seldom, loggers = _Seldom(), [logging.getLogger(name) for name in ("atnet", "asyncio", "uvicorn.error")]
    for logger in loggers:
        logger.addFilter(seldom)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(seldom)


class _Seldom(logging.Filter):
    """Of lines from one place in the program, one a second, and how many were left out; a traceback once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, int, str], tuple[float, int]] = {}
        self._traced: dict[tuple[str, int, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        kind = (record.pathname, record.lineno, type(error).__name__)
        now = time.monotonic()
        last, left_out = self._last.get(kind, (-SELDOM_SECONDS, 0))
        if now - last < SELDOM_SECONDS:
            self._last[kind] = last, left_out + 1
            return False
        self._last[kind] = now, 0
        if error is not None and now - self._traced.get(kind, -60.0) < 60.0:
            record.msg, record.args = f"{record.getMessage().strip()}: {error!r}", None
            record.exc_info = record.exc_text = None
        elif error is not None:
            self._traced[kind] = now
        if left_out:
            record.msg, record.args = f"{record.getMessage().strip()} ({left_out:,} more of this kind)", None
        return True


def _networks(proxies: Sequence[str]) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(proxy, strict=False) for proxy in proxies)
    except ValueError as error:
        raise ConfigError(f"--proxy: {error}; give an address or a network, as 10.0.0.0/8") from error


class _Server(uvicorn.Server):
    """Starts its service before connections are taken, and stops it after the last answer."""

    def __init__(
        self, config: uvicorn.Config, service: Service, listening: socket.socket, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.servers = []  # uvicorn's own would take connections without limits
        self.service, self.listening, self.ready = service, listening, ready
        limits = service.limits
        self.door = Door(
            self._connection,
            most=limits.connections,
            share=limits.per_address,
            shareless=service.is_proxy,
            timeout=limits.timeout,
        )

    def _connection(self, door: Door, address: Address) -> Connection:
        return Connection(door, address, config=self.config, server_state=self.server_state, app_state={})

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.service.start()
        gc.collect()
        gc.freeze()  # all that stays: to look through it again takes a tenth of a second, in which nobody is answered
        self.door.open(self.listening)
        self.started = True
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.door.close()
        self.listening.close()
        await asyncio.sleep(LAST_SECONDS)
        await super().shutdown(sockets)
        await self.door.stop()
        gc.unfreeze()
        await self.service.stop()
