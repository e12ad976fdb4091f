"""Several processes on one database are one gateway, whichever of them dies."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gateway.cli.context import office
from gateway.cli.workers import worker_settings
from gateway.settings import load
from tests.gateway.kit import Site, body

ROOT = Path(__file__).parents[2]
WORKERS = 3
SERVE = """
import sys
from functools import partial
from gateway.app import create_app
from gateway.cli import main, server, workers
from tests.fakes import FakeEngine
from tests.retrieval.kit import HashingEmbedder

parts = {"engine": lambda _: FakeEngine(text="The bell was cast by Petra.", delay_s=0.04)}
server.create_app = partial(create_app, **parts, embedder=lambda _: HashingEmbedder())
workers.PYTHON = [sys.executable, "-c", open(sys.argv[1]).read(), sys.argv.pop(1)]
main()
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    settings = f"[server]\nport = 0\nworkers = {WORKERS}\n"
    elsewhere = '[engine]\nkind = "vllm"\nservers = ["http://127.0.0.1:9"]'  # a fake takes its place
    site.config.write_text(settings + site.config.read_text().replace("[engine]", elsewhere))
    return site


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[tuple[httpx.AsyncClient, subprocess.Popen[bytes]]]:
    """The parent with all its workers up, and a client that takes a new connection for every request."""
    script = site.folder / "serve.py"
    script.write_text(SERVE)
    said = site.folder / "said"
    with said.open("wb") as stderr:
        parent = subprocess.Popen(  # noqa: ASYNC220  starting it takes no time
            [sys.executable, "-c", SERVE, str(script), "serve"],
            cwd=site.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=stderr,
        )
    try:
        await until(lambda: "workers_serving" in said.read_text() or parent.poll() is not None, 120)
        assert parent.poll() is None, said.read_text()
        url = re.search(r'"url":"([^"]+)"', said.read_text())
        assert url
        limits = httpx.Limits(max_keepalive_connections=0)
        headers = {"Authorization": f"Bearer {site.secret}"}
        async with httpx.AsyncClient(base_url=url[1], headers=headers, limits=limits, timeout=60) as client:
            yield client, parent
    finally:
        parent.terminate()
        parent.wait(60)


async def until(condition: Callable[[], bool], wait_s: float = 30) -> None:
    async with asyncio.timeout(wait_s):
        while not condition():
            await asyncio.sleep(0.05)


async def eventually(condition: Callable[[], Awaitable[bool]], wait_s: float = 30) -> None:
    async with asyncio.timeout(wait_s):
        while not await condition():
            await asyncio.sleep(0.05)


def children(parent: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
    return [int(pid) for pid in found.split()]


async def ask(client: httpx.AsyncClient) -> int:
    try:
        return (await client.post("/v1/chat/completions", json=body())).status_code
    except httpx.TransportError:
        return 0


async def test_workers_share_the_books_and_one_may_die(site: Site) -> None:
    async with serving(site) as (client, parent):
        first = await asyncio.gather(*(ask(client) for _ in range(60)))
        assert set(first) == {200}
        counted = (await client.get("/metrics")).text
        assert re.search(r"^tributary_requests_answering 0.0$", counted, re.MULTILINE)
        answers = re.findall(r"^gen_ai_client_token_usage_count.*output.* (.*)$", counted, re.MULTILINE)
        assert sum(map(float, answers)) == 60

        workers = children(parent)
        assert len(workers) == WORKERS
        asking = [asyncio.create_task(ask(client)) for _ in range(60)]
        await asyncio.sleep(0.6)  # most are admitted, none is answered
        os.kill(workers[1], signal.SIGKILL)
        answered = (await asyncio.gather(*asking)).count(200)
        assert answered > 0
        await until(lambda: len(children(parent)) == WORKERS and workers[1] not in children(parent))
        # It comes up again, and voids what it left.
        await eventually(lambda: settled(client))
        assert set(await asyncio.gather(*(ask(client) for _ in range(20)))) == {200}
        await eventually(lambda: settled(client))
    charged = len(site.entries("usage.recorded"))
    assert charged >= 80 + answered
    voided = len(site.entries("request.voided"))
    assert voided > 0
    assert site.sql("select count(*) from intent") == [(charged + voided,)]
    assert len(site.entries("answer.attributed")) == charged, "the first of them works off the queue of all"
    site.check()


async def settled(client: httpx.AsyncClient) -> bool:
    text = (await client.get("/metrics")).text
    names = ("tributary_ledger_open_intents", "tributary_attribution_backlog")
    return all(f"{name} 0.0" in text for name in names)


async def test_workers_whose_parent_dies_stop(site: Site) -> None:
    async with serving(site) as (client, parent):
        workers = children(parent)
        assert await ask(client) == 200
        parent.kill()
        parent.wait()
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 60)
    with office(site.config) as o:
        assert o.database.engine  # nobody holds it any more
    site.check()


async def test_a_worker_that_does_not_come_up_ends_it_all(site: Site) -> None:
    (site.folder / "log.key").unlink()
    with pytest.raises(AssertionError, match="there is no signing key"):
        async with serving(site):
            pass


def test_workers_have_ids_and_parts_of_their_own(site: Site) -> None:
    settings = load(site.config)
    parts = [worker_settings(settings, number) for number in range(WORKERS)]
    assert [part.server.id for part in parts] == ["gateway-1", "gateway-1-2", "gateway-1-3"]
    assert sum(part.limits.concurrent for part in parts) >= settings.limits.concurrent
