"""The gateway in front of a fleet: what clients and operators see while replicas come and go."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import create_app, make_engine, open_one
from gateway.cli import server as serving
from gateway.engines import EngineUnavailable
from gateway.settings import SettingsError, load
from tests.gateway.kit import Site, body, until
from tests.gateway.routing.kit import Server, opener, servers
from tests.stand_in.kit import stand_in


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@asynccontextmanager
async def serve(site: Site, made: dict[str, Server]) -> AsyncIterator[httpx.AsyncClient]:
    replicas = {name: opener(server) for name, server in made.items()}
    app = create_app(site.settings, engine=lambda _: replicas, embedder=lambda _: site.embedder)
    async with app.router.lifespan_context(app):
        headers = {"Authorization": f"Bearer {site.secret}"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://site", headers=headers) as client:
            yield client
            await app.state.gateway.engine.close()  # drains at once: nothing runs any more


async def poll(client: httpx.AsyncClient) -> None:
    """Have the fleet look at its replicas, as it does every few seconds."""
    await client._transport.app.state.gateway.engine.poll()  # type: ignore[attr-defined]


async def test_answers_come_from_whoever_is_left_until_nobody_is(site: Site) -> None:
    made = servers(3, text="The bell was cast by Petra.")
    async with serve(site, made) as client:
        for down in (None, "r0", "r1"):
            if down:
                made[down].down = True
            for _ in range(4):
                answer = await client.post("/v1/chat/completions", json=body())
                assert answer.status_code == 200
                assert answer.json()["choices"][0]["message"]["content"] == "The bell was cast by Petra."
            await poll(client)
            assert (await client.get("/readyz")).status_code == 200
        made["r2"].down = True
        refused = await client.post("/v1/chat/completions", json=body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        await poll(client)
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["problems"]) == (503, {"engine": "it takes no work"})
        made["r1"].restart()
        await poll(client)
        assert (await client.get("/readyz")).status_code == 200
    site.check()


async def test_what_the_fleet_does_is_counted_by_replica(site: Site) -> None:
    made = servers(2)
    async with serve(site, made) as client:
        made["r0"].down = True
        for _ in range(12):
            assert (await client.post("/v1/chat/completions", json=body())).status_code == 200
        await poll(client)
        metrics = (await client.get("/metrics")).text
    samples = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line[0] != "#"
    }
    decided = [samples.get(f'tributary_fleet_decisions_total{{reason="base",replica="{name}"}}', 0) for name in made]
    assert decided[1] >= 12
    assert samples['tributary_fleet_retries_total{replica="r0"}'] == decided[0] > 0
    assert samples['tributary_fleet_replica_ready{replica="r0"}'] == 0
    assert samples['tributary_fleet_replica_ready{replica="r1"}'] == 1
    assert samples['tributary_fleet_breaker_state{replica="r1",state="closed"}'] == 1
    site.check()


async def test_a_signal_lets_what_is_answered_finish(site: Site) -> None:
    made = servers(2, text="The bell was cast by Petra.", delay_s=0.02)
    replicas = {name: opener(server) for name, server in made.items()}
    app = create_app(site.settings, engine=lambda _: replicas, embedder=lambda _: site.embedder)
    listener = serving.bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    running = asyncio.create_task(serving.run(app, listener))

    async def ask(client: httpx.AsyncClient) -> str:
        answer = await client.post("/v1/chat/completions", json=body())
        answer.raise_for_status()
        said: str = answer.json()["choices"][0]["message"]["content"]
        return said

    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {site.secret}"}) as client:
        await until(lambda: hasattr(app.state, "gateway"))
        asked = [asyncio.create_task(ask(client)) for _ in range(6)]
        await until(lambda: sum(server.begun for server in made.values()) == 6)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.gather(*asked) == ["The bell was cast by Petra."] * 6
    await running
    assert all(server.closed for server in made.values())
    assert sum(server.abandoned for server in made.values()) == 0
    assert len(site.entries("usage.recorded")) == 6
    site.check()


CONFIG = """
[engine]
kind = "vllm"
name = "stand-in"
digest = "{digest}"
servers = {servers}
slots = 3
"""


def configured(folder: Path, urls: list[str]) -> Any:
    (folder / "t.toml").write_text(CONFIG.format(digest="0" * 64, servers=urls).replace("'", '"'))
    return load(folder / "t.toml")


async def test_one_of_the_servers_that_answers_is_enough_to_try_an_adapter_on(tmp_path: Path) -> None:
    async with stand_in() as server:
        settings = configured(tmp_path, ["http://127.0.0.1:9", server.url])
        engine = await open_one(settings)
        assert (engine.name, engine.base_model, engine.base_digest) == ("vllm", "stand-in", "0" * 64)
        await engine.close()
        assert list(make_engine(settings)) == ["127.0.0.1:9", server.url.removeprefix("http://")]  # type: ignore[call-overload]
    with pytest.raises(EngineUnavailable):
        await open_one(settings)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('servers = ["http://a:1"]', "servers are of kind"),
        ('kind = "vllm"\nservers = ["http://a:1", "http://a:1"]', "servers has http://a:1 twice"),
        ('kind = "vllm"\nservers = ["ftp://a"]', "engine.servers.0"),
        ('kind = "vllm"\nslots = 0', "engine.slots"),
        (f'model = "/"\ndigest = "{"0" * 64}"', "give one of them"),
        ('digest = "abc"', "engine.digest"),
    ],
)
def test_a_fleet_that_makes_no_sense_is_refused(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "t.toml").write_text(f"[engine]\n{lines}\n")
    with pytest.raises(SettingsError, match=said):
        load(tmp_path / "t.toml")
