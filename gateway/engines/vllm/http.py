"""HTTP/1.1 to one server, and no more of it than an engine needs: kept connections, replies read as they come.

A general client costs more than the rest of a request's way through the gateway. The parsing is llhttp's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

# So much of a reply may wait to be read before the server is left waiting.
_HIGH_BYTES = 1 << 20


class LostError(Exception):
    """The connection ended, or what came over it is no HTTP. answering: whether a reply had begun."""

    def __init__(self, message: str, *, answering: bool) -> None:
        super().__init__(message)
        self.answering = answering


class Reply:
    """A status, and a body that is yet to be read. Leave it to give the connection back; unread, it is closed."""

    def __init__(self, status: int, connection: _Connection, connections: Connections) -> None:
        self.status = status
        self._connection = connection
        self._connections = connections

    async def some(self) -> bytes:
        """What came since the last time, at least a byte; nothing at the end.

        Raises LostError, and TimeoutError when the server is silent for too long.
        """
        return await self._connection.some()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connections.take_back(self._connection)


class Connections:
    """Connections to one server, made when none is idle.

    headers: of every request. connect_s: how long a connection may take to make. silence_s: how long a server may say
    nothing that is waited for. idle_s: how long a connection is kept for another request.
    """

    def __init__(
        self, url: str, *, headers: Mapping[str, str], connect_s: float, silence_s: float, idle_s: float
    ) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        of_all = {"Host": parts.netloc.rpartition("@")[2], **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in of_all.items())
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._idle_s = idle_s
        self._idle: list[tuple[float, _Connection]] = []  # since when; the newest last
        self._open: set[_Connection] = set()
        self.closed = False

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        fresh: bool = False,
    ) -> Reply:
        """Send a request and wait for the head of its reply. fresh: not on a connection that was used before.

        Raises LostError, OSError when no connection can be made, and TimeoutError.
        """
        own = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) if headers else ""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}{own}Content-Length: {len(body)}\r\n\r\n"
        connection = None if fresh else self._kept()
        if connection is None:
            connection = await self._connect()
        try:
            status = await connection.ask(head.encode("latin-1") + body)
        except BaseException:
            connection.abort()
            raise
        return Reply(status, connection, self)

    def take_back(self, connection: _Connection) -> None:
        """Keep a connection for another request, if its reply was read to the end and the server agrees."""
        if connection.reusable and not self.closed:
            self._idle.append((asyncio.get_running_loop().time(), connection))
        else:
            connection.abort()

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        self.closed = True
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()

    def _kept(self) -> _Connection | None:
        now_s = asyncio.get_running_loop().time()
        while self._idle:
            since_s, connection = self._idle.pop()
            if connection.reusable and now_s - since_s < self._idle_s:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        if self.closed:
            raise LostError("the engine was closed", answering=False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_s):
            _, connection = await loop.create_connection(
                lambda: _Connection(loop, self._open, self._silence_s), self._host, self._port, ssl=self._tls
            )
        return connection


class _Connection(asyncio.Protocol):
    """One connection, with at most one request under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: set[_Connection], silence_s: float) -> None:
        self._loop = loop
        self._connections = connections
        self._silence_s = silence_s
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_s = self._waiting_s = 0.0
        self._error: LostError | None = None
        self._keep_alive = True
        self._idle = True
        self._begin()

    def _begin(self) -> None:
        self._status = 0
        self._complete = False
        self._delimited = False  # whether the reply says where it ends
        self._pieces: list[bytes] = []
        self._held_bytes = 0

    @property
    def reusable(self) -> bool:
        """Whether another request may follow the last."""
        return self._idle and self._keep_alive and self._error is None and not self._pieces

    # What its user calls.

    async def ask(self, request: bytes) -> int:
        """Send a request and return the status of its reply."""
        if self._error is not None or self._transport is None:
            raise LostError("the connection was closed", answering=False)
        self._begin()
        self._idle = False
        self._transport.write(request)
        while not self._status:
            await self._more()
        return self._status

    async def some(self) -> bytes:
        """See Reply.some."""
        while not self._pieces:
            if self._complete:
                return b""
            await self._more()
        said = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._held_bytes > _HIGH_BYTES and self._transport is not None:
            self._transport.resume_reading()
        self._held_bytes = 0
        return said

    def abort(self) -> None:
        """Close it at once."""
        self._fail("the engine was closed")
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence_s, self._listen)
        self._waiter = self._loop.create_future()
        self._waiting_s = self._loop.time()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _listen(self) -> None:
        """Find out whether the server is silent. One timer goes on for as long as the connection is used."""
        self._timer = None
        if self._idle or self._error is not None:
            return
        left_s = max(self._heard_s, self._waiting_s) + self._silence_s - self._loop.time()
        if left_s <= 0 and self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_exception(TimeoutError(f"it said nothing for {self._silence_s:g} s"))
            return
        self._timer = self._loop.call_later(max(left_s, self._silence_s / 16), self._listen)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, message: str) -> None:
        if self._error is None:
            self._error = LostError(message, answering=bool(self._status))
            if self._timer is not None:
                self._timer.cancel()
        self._wake()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        if self._idle:
            self.abort()  # nothing was asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"it answered no HTTP: {error}")
            self.abort()
            return
        if self._held_bytes > _HIGH_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        if self._status and not self._delimited and not self._complete and error is None:
            self._complete = True  # such a reply ends where the connection does
            self._keep_alive = False
            self._wake()
        else:
            self._fail(str(error) if error else "the connection was closed")

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a reply that nobody asked for")

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in {b"content-length", b"transfer-encoding"}:
            self._delimited = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._status = status if status >= 200 else 0  # others announce the reply

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._held_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = self._idle = True
            self._keep_alive = self._parser.should_keep_alive()
