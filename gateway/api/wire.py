"""The client's end of the wire: bodies that arrive in time, and streams that are read in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

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


class StalledError(Exception):
    """The client takes nothing of what it is sent."""


def unstalled(send: Send, stall_s: float) -> Send:
    """`send`, but that raises StalledError where it would wait for the client for longer than stall_s."""

    async def sending(message: Message) -> None:
        try:
            async with asyncio.timeout(stall_s):
                await send(message)
        except TimeoutError:
            raise StalledError from None

    return sending


class EventStream(Response):
    """A stream of server-sent events that tells when it is over, however it ended, and waits for no stalled client.

    on_end: is told when the client has left, and when all is sent.
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
        send = unstalled(send, self._stall_s)
        watch = asyncio.create_task(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in self._events:
                for start in range(0, len(piece), _WRITE_BYTES):
                    part = piece[start : start + _WRITE_BYTES]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except StalledError:
            # The response stays unfinished, and for that the server closes the connection.
            log.warning("client_stalled", stall_s=self._stall_s)
        finally:
            watch.cancel()
            self._on_end()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._on_end()
