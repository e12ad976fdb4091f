"""Just enough HTTP/1.1 for clients on this machine: requests in, bytes or a task out, one at a time on a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeAlias

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_MOST_BYTES = 64 * 2**20

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request. headers: names in lower case."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes


Handler: TypeAlias = Callable[[Request, "Connection"], "bytes | Coroutine[Any, Any, None]"]


def response(status: int, body: bytes, content_type: bytes = b"application/json") -> bytes:
    """A whole answer, as uvicorn words it."""
    return b"HTTP/1.1 %d %b\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: %b\r\n\r\n%b" % (
        status,
        _REASONS[status],
        len(body),
        content_type,
        body,
    )


def frame(event: bytes) -> bytes:
    """An event as one part of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(event), event)


class Connection(asyncio.Protocol):
    """One client. The handler answers with bytes at once, or with a coroutine that writes for itself."""

    def __init__(self, handler: Handler, open_ones: set[Connection]) -> None:
        self._handler = handler
        self._open_ones = open_ones
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._open_ones.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the protocol's signature
        self._open_ones.discard(self)
        if self._task is not None:  # as vLLM, which aborts what nobody waits for
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def cut(self) -> None:
        """End the connection in the middle of whatever it was doing, once what was written has left."""
        self.transport.close()

    def _advance(self) -> None:
        while self._task is None and (request := self._take()) is not None:
            answer = self._handler(request, self)
            if isinstance(answer, bytes):
                self.transport.write(answer)
            else:
                self._task = asyncio.get_running_loop().create_task(answer)
                self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            self.transport.abort()
            task.result()
        if not self.transport.is_closing():
            self._advance()

    def _take(self) -> Request | None:
        """The next whole request of the buffer, removed from it; None while it is not whole."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        method, path, _ = first.split(b" ")
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            whole = self._chunked(end + 4)
            if whole is None:
                return None
            body, after = whole
        else:
            after = end + 4 + int(headers.get(b"content-length", b"0"))
            if after > _MOST_BYTES:
                self.transport.abort()
                return None
            if len(self._buffer) < after:
                return None
            body = bytes(self._buffer[end + 4 : after])
        del self._buffer[:after]
        return Request(method=method.decode(), path=path.partition(b"?")[0].decode(), headers=headers, body=body)

    def _chunked(self, at: int) -> tuple[bytes, int] | None:
        parts: list[bytes] = []
        while True:
            line_end = self._buffer.find(b"\r\n", at)
            if line_end < 0:
                return None
            size = int(bytes(self._buffer[at:line_end]).partition(b";")[0], 16)
            after = line_end + 2 + size + 2
            if len(self._buffer) < after:
                return None
            if size == 0:
                return b"".join(parts), after
            parts.append(bytes(self._buffer[line_end + 2 : after - 2]))
            at = after
