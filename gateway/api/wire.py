"""The client's end of the wire: bodies that arrive in time, and streams that are read in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType

import structlog
from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.errors import BadRequestError

log = structlog.get_logger(__name__)

# Told with an error that leaves a body unread, so that the rest of it is not waited for.
_HANG_UP = {"connection": "close"}


async def read_body(receive: Receive, *, limit_bytes: int, within_s: float) -> bytes:
    """Read a request's body. Raises BadRequestError when it is too long, too slow, or the client leaves."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout(within_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BadRequestError("the client left before its request was read", status=499)
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit_bytes:
                    raise BadRequestError(
                        f"the body is over {limit_bytes} bytes, the most this gateway reads",
                        status=413,
                        headers=_HANG_UP,
                    )
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise BadRequestError(
            f"the body did not arrive within {within_s:g} s", code="request_timeout", status=408, headers=_HANG_UP
        ) from None


# Of a stream at once, so that even a client that reads slowly takes it before it is thought to be stalled.
_WRITE_BYTES = 1 << 16


class Last(bytes):
    """The end of a stream: with it goes the end of the reply."""


class EventStream(Response):
    """A stream of server-sent events that tells when it is over, however it ended, and waits for no stalled client.

    events: pieces of it, the last of them a Last. on_end: is told when the client has left, and when all is sent.
    stall_s: how long a write may wait for the client.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], on_end: Callable[[], None], headers: Mapping[str, str], stall_s: float
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._on_end = on_end
        self._stall_s = stall_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; the end is told even when the client left before the first byte.

        What is sent to a client that has left goes nowhere, and the events end by themselves soon after.
        """
        watch = asyncio.create_task(self._watch(receive))
        patience = _Patience(send, self._stall_s)
        try:
            async with patience:
                head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                await self._write(patience.send, head)
        except StalledError:
            # The response stays unfinished, and for that the server closes the connection.
            log.warning("client_stalled", stall_s=self._stall_s)
        finally:
            watch.cancel()
            self._on_end()

    async def _write(self, send: Send, head: Message) -> None:
        await send(head)
        async for piece in self._events:
            ends = isinstance(piece, Last)
            for start in range(0, len(piece) or 1, _WRITE_BYTES):
                more = not ends or start + _WRITE_BYTES < len(piece)
                part = piece[start : start + _WRITE_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": more})

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._on_end()


class StalledError(Exception):
    """The client takes nothing of what it is sent."""


class _Patience:
    """A `send`, and a context that ends with StalledError where it waits for the client for longer than stall_s.

    One timer looks after all that is sent.
    """

    def __init__(self, send: Send, stall_s: float) -> None:
        self._send = send
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        self._waiting_since_s: float | None = None
        self._timer = self._loop.call_later(stall_s, self._look)

    async def send(self, message: Message) -> None:
        """Send a message."""
        self._waiting_since_s = self._loop.time()
        await self._send(message)
        self._waiting_since_s = None

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            raise StalledError from None

    def _look(self) -> None:
        now_s = self._loop.time()
        look_s = (now_s if self._waiting_since_s is None else self._waiting_since_s) + self._stall_s
        if look_s <= now_s:
            self._limit.reschedule(now_s)
        else:
            self._timer = self._loop.call_at(look_s, self._look)
