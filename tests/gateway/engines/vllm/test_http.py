"""The engine's HTTP against servers that are byte strings: however they are cut, and whatever is wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.engines.vllm import http
from gateway.engines.vllm.http import Connections, LostError

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\n\r\nhello"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
ANNOUNCED = b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE


class Server:
    """Answers each request with the next of the pieces that it was given; hangs up after a None."""

    def __init__(self, *replies: list[bytes | None]) -> None:
        self.replies = list(replies)
        self.requests: list[bytes] = []
        self.connections = 0
        self.hung_up = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.requests.append(head + await reader.readexactly(length))
                for piece in self.replies.pop(0):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            self.hung_up.set()
        finally:
            writer.close()

    @asynccontextmanager
    async def reached(self, *, silence_s: float = 5, idle_s: float = 5) -> AsyncIterator[Connections]:
        listening = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        own = {"X-Own": "yes"}
        url = f"http://127.0.0.1:{port}/prefix"
        connections = Connections(url, headers=own, connect_s=5, silence_s=silence_s, idle_s=idle_s)
        try:
            yield connections
        finally:
            await connections.close()
            listening.close()


async def ask(connections: Connections) -> tuple[int, bytes]:
    async with await connections.request("POST", "/path", b"{}", {"X-Request-Id": "req_1"}) as reply:
        said = [piece async for piece in pieces(reply)]
    return reply.status, b"".join(said)


async def pieces(reply: http.Reply) -> AsyncIterator[bytes]:
    while piece := await reply.some():
        yield piece


@pytest.mark.parametrize(
    ("written", "read"),
    [(WHOLE, (200, b"hello")), (CHUNKED, (200, b"hello")), (EMPTY, (204, b"")), (ANNOUNCED, (200, b"hello"))],
)
async def test_a_reply_is_read_however_it_is_cut(written: bytes, read: tuple[int, bytes]) -> None:
    cuts = [[written[:cut], written[cut:]] for cut in range(1, len(written))]
    server = Server(*cuts, [bytes([byte]) for byte in written])
    async with server.reached() as connections:
        for _ in range(len(cuts) + 1):
            assert await ask(connections) == read
    assert server.connections == 1
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /prefix/path HTTP/1.1\r\nHost: 127.0.0.1:")
    assert {b"X-Own: yes", b"X-Request-Id: req_1", b"Content-Length: 2"} <= set(head.split(b"\r\n"))
    assert body == b"{}"


async def test_a_reply_without_a_length_ends_with_its_connection() -> None:
    server = Server([UNTIL_CLOSED, None], [WHOLE])
    async with server.reached() as connections:
        assert await ask(connections) == (200, b"hello")
        assert await ask(connections) == (200, b"hello")
    assert server.connections == 2


@pytest.mark.parametrize("written", [WHOLE, CHUNKED])
async def test_a_reply_that_breaks_off_is_lost(written: bytes) -> None:
    for cut in range(len(written)):
        server = Server([written[:cut] or None, None])
        async with server.reached() as connections:
            with pytest.raises(LostError) as lost:
                await ask(connections)
        assert lost.value.answering == (b"\r\n\r\n" in written[:cut])


async def test_what_is_no_http_is_lost() -> None:
    async with Server([b"SMTP ready\r\n"]).reached() as connections:
        with pytest.raises(LostError, match="no HTTP"):
            await ask(connections)


async def test_what_is_said_unasked_ends_the_connection() -> None:
    server = Server([WHOLE + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], [WHOLE])
    async with server.reached() as connections:
        assert (await ask(connections))[0] == 200
        assert await ask(connections) == (200, b"hello")
    assert server.connections == 2


async def test_a_connection_is_kept_no_longer_than_it_may_be() -> None:
    server = Server([WHOLE], [WHOLE])
    async with server.reached(idle_s=0.05) as connections:
        await ask(connections)
        await asyncio.sleep(0.1)
        await ask(connections)
    assert server.connections == 2


async def test_a_server_that_wants_to_close_is_let() -> None:
    server = Server([WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")], [WHOLE])
    async with server.reached() as connections:
        await ask(connections)
        await ask(connections)
    assert server.connections == 2


@pytest.mark.parametrize("said", [[], [CHUNKED[:55]]])
async def test_silence_has_an_end(said: list[bytes | None]) -> None:
    server = Server(said)
    async with server.reached(silence_s=0.1) as connections:
        async with asyncio.timeout(5):
            with pytest.raises(TimeoutError, match="said nothing"):
                await ask(connections)
            await server.hung_up.wait()


async def test_a_reader_that_takes_its_time_is_not_taken_for_silence() -> None:
    server = Server([CHUNKED[:55], CHUNKED[55:]])
    async with server.reached(silence_s=0.1) as connections, await connections.request("POST", "/", b"{}") as reply:
        await asyncio.sleep(0.3)
        assert b"".join([piece async for piece in pieces(reply)]) == b"hello"


async def test_to_leave_early_tells_the_server() -> None:
    server = Server([CHUNKED[:55]])
    async with server.reached() as connections, asyncio.timeout(5):
        async with await connections.request("POST", "/", b"{}") as reply:
            assert await reply.some() == b"he"
        await server.hung_up.wait()


async def test_a_long_reply_waits_for_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_HIGH_BYTES", 1 << 16)
    said = b"x" * (64 << 20)
    server = Server([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said), said])
    async with server.reached() as connections, await connections.request("POST", "/", b"{}") as reply:
        await asyncio.sleep(0.2)
        first = await reply.some()
        assert len(first) < 4 << 20
        assert len(first) + sum([len(piece) async for piece in pieces(reply)]) == len(said)


async def test_to_close_fails_what_is_under_way() -> None:
    async with Server([]).reached() as connections:
        asking = asyncio.create_task(ask(connections))
        await asyncio.sleep(0.05)
        await connections.close()
        with pytest.raises(LostError):
            await asking
        with pytest.raises(LostError):
            await ask(connections)
