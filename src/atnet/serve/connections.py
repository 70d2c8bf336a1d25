"""Connections of clients who may mean harm: none is waited for without end, and none takes what belongs to others.

A client address has a share of the connections, and of the event loop's time: whatever its connections ask for is done
in turns, one a pass of the loop, and each waiting address has its own.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

ACCEPTED, AT_ONCE = 128, 32
"""Connections taken, and addresses that have a turn, in a pass of the event loop."""

HEAD_BYTES, HEAD_LINES = 16_384, 100
"""Of a request before its body; larger ones are refused with status 431."""

SEND_BYTES = 16_384
"""Of a connection's answers that the system holds for a client who does not read; Linux doubles it."""

PIECE, FINE_PIECE, FINE_LINES = 65_536, 1024, 600
"""Bytes parsed in a turn: few where they have many line ends, since each may end a chunk, which is slow to parse. A
image has about one in 256 bytes."""

FRAMING_BYTES = 2048
"""Of a chunk's size line or the lines after the last chunk."""

REST = 3
"""An address that always has more to do rests so many times as long as its turn took, while others ask, too."""

SEVERAL_SECONDS = 10.0
"""Since another address asked, in which there is more than one."""

PAUSE_SECONDS = 0.5
"""Before connections are taken again, after the system could not give one."""

_HEAD_END = re.compile(rb"\n\r?\n")
log = logging.getLogger("atnet")


@lru_cache(4096)
def client_of(host: str) -> str:
    """Who counts as one client: an IPv4 address, or the 64 bits of an IPv6 address that a network gives to a host."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


class Several:
    """Whether more than one client has asked lately."""

    def __init__(self) -> None:
        self._last, self._changed = "", -SEVERAL_SECONDS

    def saw(self, client: str) -> None:
        """That it asks."""
        if client != self._last:
            if self._last:
                self._changed = time.monotonic()
            self._last = client

    def __bool__(self) -> bool:
        return time.monotonic() - self._changed < SEVERAL_SECONDS


class Address:
    """What a client address has.

    open: connections.  coming: those of them that are not read from yet.  waiting: those that wait for their client,
    longest first.  turns: what is to be done.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = 0
        self.coming: deque[socket.socket] = deque()
        self.waiting: dict[Connection, None] = {}
        self.turns: deque[Callable[[], None]] = deque()
        self.rests_until = 0.0


class Turns:
    """The event loop's time, in turns: one for each address in a pass of the loop."""

    def __init__(self) -> None:
        self._queue: deque[Address] = deque()
        self._had: set[Address] = set()
        self._several = Several()
        self._next: asyncio.Handle | None = None

    def take(self, address: Address, turn: Callable[[], None]) -> None:
        """Does it at once if the address has not had its turn, else when it has one."""
        self._several.saw(address.name)
        if address.turns:
            address.turns.append(turn)
        elif address in self._had or address.rests_until > time.monotonic():
            address.turns.append(turn)
            self._queue.append(address)
        else:
            self._had.add(address)
            turn()
        if self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        self._next = None
        self._had.clear()
        began, wake = time.monotonic(), float("inf")
        for _ in range(min(len(self._queue), AT_ONCE)):
            address = self._queue.popleft()
            if address.rests_until > began:
                wake = min(wake, address.rests_until)
                self._queue.append(address)
                continue
            turn = address.turns.popleft()
            if address.turns:
                self._queue.append(address)
            self._had.add(address)
            start = time.monotonic()
            turn()
            if address.turns and self._several:
                end = time.monotonic()
                address.rests_until = end + REST * (end - start)
        if self._next is None and (self._queue or self._had):
            loop = asyncio.get_running_loop()
            if self._had:
                self._next = loop.call_soon(self._pass)
            else:
                self._next = loop.call_later(wake - began, self._pass)


class Door:
    """Takes connections, as many as there may be, and lets those go whose client keeps the server waiting.

    protocol: makes what speaks on a connection.  most: connections.  share: of them, for each address.
    shareless: whether an address has no such limit.  timeout: seconds that a client is waited for.
    """

    def __init__(
        self,
        protocol: Callable[["Door", Address], "Connection"],
        *,
        most: int,
        share: int,
        shareless: Callable[[str], bool],
        timeout: float,
    ) -> None:
        self.turns = Turns()
        self.timeout = timeout
        self._protocol, self._most, self._share, self._shareless = protocol, most, share, shareless
        self._addresses: dict[str, Address] = {}
        self._count = 0
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, listening: socket.socket) -> None:
        """Takes connections from now on."""
        listening.setblocking(False)
        self._tasks = [asyncio.create_task(self._accept(listening)), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        """Takes no more of them."""
        self._tasks[0].cancel()
        await asyncio.gather(self._tasks[0], return_exceptions=True)

    async def stop(self) -> None:
        """When all are closed."""
        for task in (*self._tasks, *self._opening):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._opening, return_exceptions=True)

    def made(self, connection: "Connection") -> None:
        self._connections.add(connection)

    def lost(self, connection: "Connection") -> None:
        self._connections.discard(connection)
        connection.address.waiting.pop(connection, None)
        self._gone(connection.address)

    def _gone(self, address: Address) -> None:
        self._count -= 1
        address.open -= 1
        if not address.open:
            self._addresses.pop(address.name, None)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, peer = await loop.sock_accept(listening)
                self._admit(taken, peer[0])
                for _ in range(ACCEPTED - 1):  # those that are there already: asyncio takes a while for each
                    taken, peer = listening.accept()
                    taken.setblocking(False)
                    self._admit(taken, peer[0])
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                pass
            except OSError as error:
                log.warning("no connection can be taken (%s); raise `ulimit -n`", error.strerror)
                await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.sleep(0)

    def _admit(self, taken: socket.socket, host: str) -> None:
        """Opens the connection, in a turn; where there are too many, instead of one that waits for its client."""
        name = client_of(host)
        address = self._addresses.get(name) or Address(name)
        full = None
        if address.open >= self._share and not self._shareless(host):
            full = address
        elif self._count >= self._most:
            full = max(self._addresses.values(), key=lambda other: other.open)
        if full is not None:
            log.warning(
                "%d connections are open, %d of them of %s: too many, so that some are closed; --connections and "
                "--per-address say how many there may be",
                self._count,
                full.open,
                full.name,
            )
            if not self._let_go(full):
                taken.close()
                return
        self._addresses[name] = address
        self._count += 1
        address.open += 1
        address.coming.append(taken)
        self.turns.take(address, lambda: self._begin(address))

    def _let_go(self, address: Address) -> bool:
        """Closes the connection that has waited longest for its client, if one does."""
        if address.waiting:
            next(iter(address.waiting)).drop()
        elif address.coming:
            address.coming.popleft().close()
            self._gone(address)
        else:
            return False
        return True

    def _begin(self, address: Address) -> None:
        while address.coming:
            taken = address.coming.popleft()
            if _is_closed(taken):  # at a hundredth of what a connection costs
                taken.close()
                self._gone(address)
                continue
            task = asyncio.get_running_loop().create_task(self._connect(address, taken))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            return

    async def _connect(self, address: Address, taken: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self._protocol(self, address), taken)
        except OSError:  # it is gone already
            taken.close()
            self._gone(address)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.timeout / 10))
            late = time.monotonic() - self.timeout
            for connection in list(self._connections):
                if connection.waited_since <= late:
                    connection.drop()


def _is_closed(taken: socket.socket) -> bool:
    """Whether the client has closed its connection, and sent nothing before."""
    try:
        return not taken.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True


class Connection(H11Protocol):
    """A connection whose requests are read in its address's turns, each when the answer before it has been taken.

    waited_since: when the client began to be waited for, by `time.monotonic`; inf if it is not.
    """

    def __init__(self, door: Door, address: Address, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.door, self.address = door, address
        self.waited_since = float("inf")
        self._unread = b""
        self._queued = self._ended = self._asked = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # paused whenever an answer is not all with the system
        vars(transport)["max_size"] = PIECE  # of a read; asyncio's own is four times as much
        with contextlib.suppress(OSError):  # the client is gone already
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = self.client or (self.address.name, 0)
        self.door.made(self)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.door.lost(self)

    def drop(self) -> None:
        """Closes it at once, and what the client has not read is lost."""
        self.address.waiting.pop(self, None)
        with contextlib.suppress(OSError):  # the client has closed it already
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._unread and not self._asked and self._answered():  # a request begins
            self._asked = True
            self.waited_since = time.monotonic()
        self._unread += data
        self._ask_for_turn()
        if self._queued:
            self.transport.pause_reading()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether something is still to be answered: a client may close its own direction after it has asked."""
        self._ended = True
        return self._queued or bool(self._unread) or not (self._answered() or self.cycle.more_body)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._asked = False
        if not self.flow.write_paused:
            self._wait()
            self._go_on()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.transport.is_closing():
            return
        if self._answered():
            self._wait()
            self._go_on()
        else:
            self._work()
            self._ask_for_turn()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "not a valid HTTP request")

    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        """For the client, from now on."""
        self.waited_since = time.monotonic()
        self.address.waiting.pop(self, None)
        self.address.waiting[self] = None

    def _work(self) -> None:
        """For the client: it is not waited for."""
        self.waited_since = float("inf")
        if not self.cycle.more_body:
            self.address.waiting.pop(self, None)

    def _ask_for_turn(self) -> None:
        if not self._queued:
            self._queued = True
            self.door.turns.take(self.address, self._turn)

    def _turn(self) -> None:
        self._queued = False
        if self.transport.is_closing():
            return
        if self.flow.write_paused:
            self.transport.pause_reading()
            return
        if self.conn.their_state is h11.MUST_CLOSE:  # what comes after the last request
            self._unread = b""
        elif self.conn.their_state is not h11.DONE:
            size = FINE_PIECE if self._unread.count(b"\n", 0, PIECE) > FINE_LINES else PIECE
            piece, self._unread = self._unread[:size], self._unread[size:]
            if piece:
                self.conn.receive_data(piece)
            self.handle_events()
        if self.transport.is_closing():
            return
        if self._unread:
            self.transport.pause_reading()
            if self.conn.their_state is not h11.DONE:
                self._ask_for_turn()
        elif self._ended and (self._answered() or self.cycle.more_body):
            self.transport.close()
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def _go_on(self) -> None:
        """With what has been sent behind the request that is answered."""
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            self.conn.start_next_cycle()
        self.flow.read_paused = False
        if self._unread or self._ended or self.conn.trailing_data[0]:
            self._ask_for_turn()
        else:
            self.transport.resume_reading()

    def handle_events(self) -> None:
        if self.conn.their_state is h11.IDLE and not self._head_fits():
            self._refuse(431, f"the head has more than {HEAD_BYTES:,} bytes or {HEAD_LINES} lines")
            return
        before = self.cycle
        super().handle_events()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY and len(self.conn.trailing_data[0]) > FRAMING_BYTES:
            self._refuse(400, "the lines around a chunk are too long")
        elif self.cycle is not None and not self.cycle.response_complete:
            if self.cycle is not before:
                names = {name for name, _ in self.headers}
                if {b"content-length", b"transfer-encoding"} <= names:  # RFC 9112, 6.1
                    self.headers.append(CLOSE_HEADER)  # which the answer repeats
            self._work()

    def _head_fits(self) -> bool:
        content = self.conn.trailing_data[0][: HEAD_BYTES + 1]
        end = _HEAD_END.search(content)
        head = content[: end.end()] if end else content
        return len(head) <= HEAD_BYTES and head.count(b"\n") <= HEAD_LINES

    def _refuse(self, status: int, why: str) -> None:
        """And closes; whatever is being done for the connection is not answered."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": why}).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            said = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            with contextlib.suppress(h11.LocalProtocolError):  # to HEAD there is no body
                self.transport.write(b"".join(self.conn.send(event) or b"" for event in said))
        if not self._answered():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
