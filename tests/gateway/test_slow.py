"""Clients that send or read slowly, and engines that answer slowly, over real sockets: each is cut off in its time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from gateway.app import create_app
from gateway.cli.server import bind, drop_stalled
from gateway.engines import GenerationRequest
from tests.fakes import FakeEngine
from tests.gateway.kit import CREDIT_NANO, Site, body, until

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A site on a socket. state: what uvicorn knows of its connections."""

    site: Site
    port: int
    state: Any

    async def connect(self, receive_bytes: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        client = socket.socket()
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=client, limit=1024)

    def head(self, length: int) -> bytes:
        lines = (
            f"POST {CHAT} HTTP/1.1",
            "Host: site",
            f"Authorization: Bearer {self.site.secret}",
            f"Content-Length: {length}",
        )
        return "\r\n".join((*lines, "", "")).encode()


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Served]:
    app = create_app(site.settings, engine=lambda _: site.engine, embedder=lambda _: site.embedder)
    with bind("127.0.0.1", 0) as listener:
        drop_stalled(listener, site.settings.limits.stall_s)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # else the kernel takes megabytes unread
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
        server.capture_signals = nullcontext  # type: ignore[method-assign]
        async with app.router.lifespan_context(app):
            listener.listen()
            running = asyncio.create_task(server.serve(sockets=[listener]))
            yield Served(site=site, port=listener.getsockname()[1], state=server.server_state)
            server.should_exit = True
            await running


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a byte at a time, for longer than any limit here."""
    with suppress(ConnectionError):
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)


async def test_a_body_that_drips_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(Site(tmp_path, "body_s = 0.3")) as served:
        reader, writer = await served.connect()
        writer.write(served.head(1000))
        dripping = asyncio.create_task(drip(writer))
        async with asyncio.timeout(5):
            said = await reader.readuntil(b"}}")
        dripping.cancel()
        writer.close()
        await until(lambda: not served.state.connections)
    head, _, content = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert json.loads(content)["error"]["code"] == "request_timeout"
    assert served.site.engine.begun == 0
    assert served.site.check()[served.site.caller] == CREDIT_NANO


async def test_a_body_that_never_ends_is_not_read_to_its_end(tmp_path: Path) -> None:
    async with serving(Site(tmp_path, "body_bytes = 2048\nbody_s = 20")) as served:
        reader, writer = await served.connect()
        writer.write(served.head(1 << 40) + b" " * 4096)
        async with asyncio.timeout(5):
            said = await reader.read()
        writer.close()
    assert said.startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_does_not_read_its_stream_is_cut_and_charged(tmp_path: Path) -> None:
    site = Site(tmp_path, "stall_s = 0.5")
    site.engine = FakeEngine(text="x" * 90_000, context_tokens=1_000_000)
    async with serving(site) as served:
        content = json.dumps(body(stream=True, max_tokens=90_000)).encode()
        reader, writer = await served.connect(receive_bytes=4096)
        writer.transport.pause_reading()
        writer.write(served.head(len(content)) + content)
        await until(lambda: site.engine.begun == 1)
        await until(lambda: bool(site.entries("usage.recorded")))
        # The client still holds its end; ours is gone all the same.
        await until(lambda: not served.state.connections)
        writer.transport.resume_reading()
        with suppress(ConnectionError):
            said = await reader.read()
            assert b"[DONE]" not in said
        writer.close()
    (usage,) = site.entries("usage.recorded")
    assert usage["finish_reason"] == "cancelled"
    assert 0 < usage["completion_tokens"] < 90_000
    assert site.engine.abandoned == 1
    site.check()


async def test_a_client_that_reads_slowly_but_reads_gets_it_all(tmp_path: Path) -> None:
    site = Site(tmp_path, "stall_s = 1")
    site.engine = FakeEngine(text="x" * 2000)
    async with serving(site) as served:
        content = json.dumps(body(stream=True, max_tokens=2000)).encode()
        reader, writer = await served.connect(receive_bytes=4096)
        writer.write(served.head(len(content)) + content)
        said = b""
        while b"[DONE]" not in said:
            said += await reader.read(1 << 16)
            await asyncio.sleep(0.01)
        writer.close()
    assert said.count(b'"content":"x"') == 2000


class Mute(FakeEngine):
    """Takes a request and gives nothing of an answer."""

    async def generate(self, request: GenerationRequest) -> Any:
        await asyncio.sleep(60)
        async for delta in super().generate(request):
            yield delta


@pytest.mark.parametrize("engine", [FakeEngine(delay_s=60), Mute()])
async def test_a_stream_that_does_not_begin_is_refused_and_costs_nothing(tmp_path: Path, engine: FakeEngine) -> None:
    site = Site(tmp_path, "first_token_s = 0.3")
    site.engine = engine
    async with serving(site) as served, httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
        headers = {"Authorization": f"Bearer {site.secret}"}
        response = await client.post(CHAT, json=body(stream=True), headers=headers, timeout=20)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (504, "engine_timeout")
    assert "first_token_s" in error["message"]
    assert len(site.entries("request.voided")) == 1
    assert site.check()[site.caller] == CREDIT_NANO


@pytest.mark.parametrize("stream", [False, True])
async def test_only_the_first_token_of_a_stream_is_owed_early(tmp_path: Path, stream: bool) -> None:
    site = Site(tmp_path, "first_token_s = 0.2")
    site.engine.delay_s = 0.02 if stream else 0.3
    site.engine.text = "x" * 30 if stream else "x"
    async with site.serve() as (client, _):
        response = await client.post(CHAT, json=body(stream=stream))
    assert response.status_code == 200
    (usage,) = site.entries("usage.recorded")
    assert (usage["completion_tokens"], usage["finish_reason"]) == (len(site.engine.text), "stop")


async def test_a_stream_whose_engine_fails_before_a_token_has_a_status_of_its_own(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.engine.fail_after = 0
    async with site.serve() as (client, _):
        response = await client.post(CHAT, json=body(stream=True))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert site.check()[site.caller] == CREDIT_NANO
