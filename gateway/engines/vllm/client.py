"""One vLLM server over HTTP: bounded replies, and every failure an error of the engine's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from gateway.engines.base import EngineError, EngineUnavailable
from gateway.engines.vllm.http import Connections, LostError, Reply
from gateway.engines.vllm.refusals import Refusal

# What the server says at once and whole: the log-probabilities of a million tokens fit.
MAX_REPLY_BYTES = 128 << 20
MAX_ERROR_BYTES = 64 << 10
# vLLM closes a connection that was idle for five seconds; one that is used just then would be lost.
_KEEP_ALIVE_S = 4.0
_FAILURES = (LostError, OSError, TimeoutError)


class VllmClient:
    """One server's address, and connections to it that are kept.

    connect_s: how long a connection may take. silence_s: how long the server may say nothing, at the start of an
    answer as in its middle. A server that is stuck is found out by that, and a long queue must be shorter. How many
    requests there are at once is for admission to say.
    """

    def __init__(self, url: str, *, api_key: str | None = None, connect_s: float = 5, silence_s: float = 300) -> None:
        self.url = url.rstrip("/")
        headers = {"Content-Type": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._connections = Connections(
            self.url, headers=headers, connect_s=connect_s, silence_s=silence_s, idle_s=_KEEP_ALIVE_S
        )

    async def close(self) -> None:
        """Let go of the connections; requests under way fail."""
        await self._connections.close()

    @asynccontextmanager
    async def ask(
        self, path: str, body: bytes, *, adapter: str | None, context_tokens: int, request_id: str | None = None
    ) -> AsyncIterator[Reply]:
        """Post a request and hold its reply, whose body is yet to be read; leaving early tells the server to stop.

        adapter, context_tokens: see Refusal.as_error, whose errors it raises when the server refuses.
        """
        headers = None if request_id is None else {"X-Request-Id": request_id}
        try:
            async with await self._sent(path, body, headers) as reply:
                if reply.status != 200:
                    raise await _refusal(reply, adapter=adapter, context_tokens=context_tokens)
                yield reply
        except _FAILURES as error:
            raise self._unavailable(error) from error

    async def post(self, path: str, body: Mapping[str, Any], *, adapter: str | None, context_tokens: int) -> Any:
        """Post a request and read the JSON that answers it. Raises as `ask` does."""
        async with self.ask(path, orjson.dumps(body), adapter=adapter, context_tokens=context_tokens) as reply:
            return parse(await read(reply))

    async def send(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Post a command; returns the status and what was said. Raises EngineUnavailable if nothing was."""
        try:
            async with await self._sent(path, orjson.dumps(body)) as reply:
                return reply.status, await read(reply, MAX_ERROR_BYTES)
        except _FAILURES as error:
            raise self._unavailable(error) from error

    async def get(self, path: str, *, timeout_s: float = 10) -> bytes:
        """What a GET returns. Raises EngineUnavailable on anything but 200."""
        try:
            async with asyncio.timeout(timeout_s), await self._connections.request("GET", path) as reply:
                if reply.status != 200:
                    raise EngineUnavailable(f"GET {path} of the vLLM server at {self.url} answers {reply.status}")
                return await read(reply)
        except _FAILURES as error:
            raise self._unavailable(error) from error

    async def _sent(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a request, once more where a kept connection turned out to be closed. Nothing was answered then."""
        try:
            return await self._connections.request("POST", path, body, headers)
        except LostError as error:
            if error.answering or self._connections.closed:
                raise
            return await self._connections.request("POST", path, body, headers, fresh=True)

    def _unavailable(self, error: Exception) -> EngineUnavailable:
        if self._connections.closed:
            return EngineUnavailable("the engine was closed")
        said = str(error) or type(error).__name__
        return EngineUnavailable(f"the vLLM server at {self.url} does not answer: {said}")


async def read(reply: Reply, limit_bytes: int | None = None) -> bytes:
    """A whole body. Raises EngineUnavailable when it is longer than limit_bytes, which is MAX_REPLY_BYTES if None."""
    limit = MAX_REPLY_BYTES if limit_bytes is None else limit_bytes
    pieces, size = [], 0
    while piece := await reply.some():
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise EngineUnavailable(f"the vLLM server answered more than {limit} bytes")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def parse(body: bytes) -> Any:
    """JSON, or EngineUnavailable."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise EngineUnavailable("the vLLM server answered something that is not JSON") from None


async def _refusal(reply: Reply, *, adapter: str | None, context_tokens: int) -> EngineError:
    refusal = Refusal.read(reply.status, await read(reply, MAX_ERROR_BYTES))
    return refusal.as_error(adapter=adapter, context_tokens=context_tokens)
