"""A stand-in as a process of its own, to use, to break and to kill."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.stand_in.faults import Fault, Work

_ROOT = Path(__file__).parents[2]


class Server:
    """url: where it serves, kept over `kill` and `start`. flags: as `python -m tests.stand_in` takes them."""

    def __init__(self, *flags: str) -> None:
        self._flags = flags
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, and return once it serves."""
        command = (sys.executable, "-m", "tests.stand_in", "--port", str(self._port), *self._flags)
        self._process = await asyncio.create_subprocess_exec(*command, cwd=_ROOT, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        self.url = (await asyncio.wait_for(self._process.stdout.readline(), 30)).decode().strip()
        assert self.url, "the stand-in did not start"
        self._port = int(self.url.rpartition(":")[2])

    async def kill(self) -> None:
        """Kill it as a crash would (SIGKILL)."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def fail(self, fault: Fault, *, work: Work = "generate", times: int = 1) -> None:
        """Let its next requests of this kind of work fail."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            asked = {"fault": fault, "work": work, "times": times}
            (await client.post("/stand_in/faults", json=asked)).raise_for_status()

    async def pace(self, **milliseconds: float) -> None:
        """Take other times from now on: delay_ms, chunk_ms, load_ms."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            (await client.post("/stand_in/pace", json=milliseconds)).raise_for_status()

    async def state(self) -> dict[str, Any]:
        """adapters: name → path. loads, unloads: names, in order. count: of requests by path. active: by adapter."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            state: dict[str, Any] = (await client.get("/stand_in/state")).json()
            return state


@asynccontextmanager
async def stand_in(*flags: str) -> AsyncIterator[Server]:
    """A stand-in that serves for as long as the block lasts."""
    server = Server(*flags)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
