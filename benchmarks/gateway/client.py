"""A client that costs little beside what it measures: HTTP/1.1 on one keep-alive connection, nothing parsed twice."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WORDS_BYTES = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came back. whole: its last byte too, and of a stream its `[DONE]`. Seconds from the request's last byte."""

    status: int
    head: bytes
    body: bytes
    whole: bool
    first_s: float
    total_s: float

    @property
    def ok(self) -> bool:
        """A whole answer, rather than a refusal or a part of one."""
        return self.whole and self.status == 200

    def header(self, name: str) -> str | None:
        """A header's value."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.encode():
                return value.strip().decode()
        return None


class Client(asyncio.Protocol):
    """One connection, opened when it is first needed and again when it was closed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._done: asyncio.Future[Reply] | None = None
        self._leave_after_bytes: int | None = None
        self._sent_s = self._first_s = 0.0
        self._body_at = -1
        self._ends_at: int | None = None

    async def send(self, request: bytes, *, leave_after_bytes: int | None = None) -> Reply:
        """Send a request and wait for its end, or until so many bytes have come: then the connection is cut.

        Raises OSError when nobody listens.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            await loop.create_connection(lambda: self, *self._address)
        assert self._transport is not None
        self._buffer.clear()
        self._body_at, self._ends_at, self._first_s = -1, None, 0.0
        self._leave_after_bytes = leave_after_bytes
        self._done = loop.create_future()
        self._transport.write(request)
        self._sent_s = time.perf_counter()
        if leave_after_bytes == 0:
            await asyncio.sleep(0)  # let it leave
            self.close()
        return await self._done

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102  of asyncio.Protocol
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self._done is None or self._done.done():
            return
        self._buffer += data
        if self._body_at < 0:
            self._read_head()
        if self._body_at >= 0:
            if not self._first_s and len(self._buffer) > self._body_at:
                self._first_s = time.perf_counter()
            if self._is_whole():
                self._finish(whole=True)
                return
        if self._leave_after_bytes is not None and len(self._buffer) >= self._leave_after_bytes:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, D102
        self._transport = None
        self._finish(whole=False)

    def _read_head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        self._body_at = end + 4
        head = bytes(self._buffer[:end]).lower()
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            self._ends_at = self._body_at + int(head[at + 17 :].partition(b"\r\n")[0])

    def _is_whole(self) -> bool:
        if self._ends_at is not None:
            return len(self._buffer) >= self._ends_at
        # JSON has no bare line ends, so that nothing within the body looks like the end of its last part.
        return self._buffer.endswith(b"0\r\n\r\n", max(self._body_at, len(self._buffer) - 5))

    def _finish(self, *, whole: bool) -> None:
        if self._done is None or self._done.done():
            return
        now_s = time.perf_counter()
        at = max(self._body_at, 0)
        head, body = bytes(self._buffer[:at]), bytes(self._buffer[at:])
        if whole and self._ends_at is None and b"data: [DONE]" not in body:
            whole = False
        status = int(head[9:12]) if head else 0
        first_s = (self._first_s or now_s) - self._sent_s
        reply = Reply(status=status, head=head, body=body, whole=whole, first_s=first_s, total_s=now_s - self._sent_s)
        self._done.set_result(reply)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How requests of one kind are written.

    model: what is asked for; of several names with commas between them, each in its turn. key: of the caller. headers:
    that a peer wants besides.
    """

    url: str
    model: str
    key: str = "none"
    path: str = "/v1/chat/completions"
    headers: tuple[tuple[str, str], ...] = ()
    max_tokens: int = 64

    @property
    def models(self) -> list[str]:
        """The names that are asked for."""
        return self.model.split(",")

    def request(self, number: int, *, stream: bool) -> bytes:
        """A chat of about 0.4 KB, unlike that of any other number."""
        words = f"Question {number:08}: where does the river meet the harbour, and who keeps the bell there? "
        content = (words * (1 + WORDS_BYTES // len(words)))[:WORDS_BYTES]
        body: dict[str, Any] = {
            "model": self.models[number % len(self.models)],
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
        }
        if stream:
            body["stream"] = True
        text = json.dumps(body).encode()
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"host: {urlsplit(self.url).netloc}",
            f"authorization: Bearer {self.key}",
            "content-type: application/json",
            f"content-length: {len(text)}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + text
