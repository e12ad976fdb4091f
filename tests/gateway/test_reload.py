"""A configuration that changes while the gateway runs: all of it comes into force at once, or none."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from gateway.cli.adapters import pull, register
from gateway.cli.context import office
from gateway.settings import load
from gateway.state import Gateway
from tests.gateway.kit import CONFIG, Site, body, until
from tests.gateway.test_workers import ROOT, SERVE

CHAT = "/v1/chat/completions"
DEARER = CONFIG.replace("1.000", "3.000")
ALIAS = '\n[[aliases]]\nname = "stable"\ntargets = [{ model = "plain" }]\n'


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def reload(site: Site, gateway: Gateway, config: str) -> tuple[bool, list[dict[str, Any]]]:
    """Whether a new configuration was taken, and what was logged of it."""
    site.config.write_text(config)
    with capture_logs() as logged:
        taken = await gateway.reloader.reload(lambda: load(site.config))
    return taken, [dict(entry) for entry in logged if entry["event"].startswith("reload")]


async def charge_of(client: httpx.AsyncClient, name: str = "plain") -> tuple[int, dict[str, int]]:
    answer = await client.post(CHAT, json=body(name))
    assert answer.status_code == 200, answer.text
    return int(answer.json()["attribution"]["charge_nano"]), answer.json()["usage"]


def gauge(gateway: Gateway, name: str) -> float:
    value = gateway.metrics.registry.get_sample_value(name)
    assert value is not None
    return value


async def test_an_answer_in_flight_is_charged_at_the_price_it_began_with_and_the_next_at_the_new(site: Site) -> None:
    site.engine.delay_s = 0.2
    async with site.serve() as (client, gateway):
        asking = asyncio.create_task(charge_of(client))
        await until(lambda: site.engine.begun == 1)
        taken, _ = await reload(site, gateway, DEARER)
        assert taken
        assert not asking.done()
        site.engine.delay_s = 0
        after, usage_after = await charge_of(client)
        before, usage_before = await asking
    assert before == usage_before["prompt_tokens"] + usage_before["completion_tokens"] * 1000
    assert after == usage_after["prompt_tokens"] + usage_after["completion_tokens"] * 3000
    prices = [entry for entry in site.entries("price.published") if entry["served_model"] == "plain"]
    assert [entry["completion_nano_per_token"] for entry in prices] == ["1000", "3000"]
    site.check()


async def test_an_answer_in_flight_is_split_by_the_policy_it_began_with(site: Site) -> None:
    site.engine.score_as = lambda prompt, answer: [-0.1 if "Petra in 1803" in prompt else -2.0] * len(answer)
    site.engine.delay_s = 0.2
    greedy = CONFIG.replace('name = "default"', 'name = "default"\nversion = 2\nfixed = { platform = 1000000 }', 1)
    async with site.serve() as (client, gateway):
        ask = body("guide", attribution={"mode": "inline"})
        asking = asyncio.create_task(client.post(CHAT, json=ask))
        await until(lambda: site.engine.begun == 1)
        assert (await reload(site, gateway, greedy))[0]
        assert not asking.done()
        site.engine.delay_s = 0
        late = (await client.post(CHAT, json=ask)).json()["attribution"]
        early = (await asking).json()["attribution"]
    assert {line["account"] for line in late["split"] if int(line["amount_nano"])} == {"platform"}
    assert "contributor:ada" in {line["account"] for line in early["split"]}
    site.check()


async def test_models_aliases_and_auto_come_and_go(site: Site) -> None:
    auto = '\n[routing]\nauto_fallback = "plain"\n'
    async with site.serve() as (client, gateway):
        for config, names in (
            (CONFIG + ALIAS, ["plain", "guide", "vectors", "stable"]),
            (CONFIG + ALIAS + auto, ["plain", "guide", "vectors", "stable", "auto"]),
            (CONFIG.replace('name = "plain"', 'name = "fresh"'), ["fresh", "guide", "vectors"]),
        ):
            taken, logged = await reload(site, gateway, config)
            assert (taken, logged[-1]["event"], logged[-1]["models"]) == (True, "reloaded", names)
            assert [each["id"] for each in (await client.get("/v1/models")).json()["data"]] == names
            assert (await client.post(CHAT, json=body(names[0]))).status_code == 200
        assert (await client.post(CHAT, json=body("plain"))).status_code == 404
        assert (await client.post(CHAT, json=body("auto"))).status_code == 404
    site.check()


async def test_a_reload_that_changes_nothing_logs_no_entry(site: Site) -> None:
    async with site.serve() as (_, gateway):
        entries = await gateway.transactions.read(gateway.log.size)
        assert (await reload(site, gateway, CONFIG))[0]
        assert await gateway.transactions.read(gateway.log.size) == entries


async def test_a_repeat_under_a_key_is_answered_though_its_model_is_gone(site: Site) -> None:
    key = {"Idempotency-Key": "order 7"}
    async with site.serve() as (client, gateway):
        assert (await reload(site, gateway, CONFIG + ALIAS))[0]
        first = await client.post(CHAT, json=body("stable"), headers=key)
        assert (await reload(site, gateway, CONFIG.replace('name = "plain"', 'name = "fresh"')))[0]
        again = await client.post(CHAT, json=body("stable"), headers=key)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-tributary-model"] == first.headers["x-tributary-model"] == "plain"
    assert again.json()["choices"] == first.json()["choices"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("[[models\n", "tributary.toml"),
        (DEARER + "\n[sever]\n", "sever: this key does not exist"),
        (DEARER.replace("3.000", "free"), "price.completion"),
        (DEARER + ALIAS.replace("plain", "nobody"), "alias 'stable' leads to 'nobody'"),
        (DEARER.replace("fake-base", "other-base"), "model 'plain' has base 'other-base'"),
        (DEARER.replace('name = "guide"', 'name = "guide"\nadapter = "none"'), "adapter 'none' is not registered"),
        (
            DEARER.replace('name = "default"', 'name = "default"\ndeveloper = 1'),
            "policy 'default:fake-base' was published as version 1 with other parts",
        ),
    ],
)
async def test_a_bad_configuration_changes_nothing_and_says_why(site: Site, config: str, says: str) -> None:
    async with site.serve() as (client, gateway):
        entries = await gateway.transactions.read(gateway.log.size)
        names, since = gateway.router.names, gauge(gateway, "tributary_config_reload_success_timestamp_seconds")
        taken, (logged,) = await reload(site, gateway, config)
        assert (taken, logged["event"], logged["log_level"]) == (False, "reload_refused", "error")
        assert says in logged["error"]
        assert logged["exc_info"] is None
        assert gateway.router.names is names
        assert await gateway.transactions.read(gateway.log.size) == entries
        assert gauge(gateway, "tributary_config_reload_success") == 0
        assert gauge(gateway, "tributary_config_reload_success_timestamp_seconds") == since
        charge_nano, usage = await charge_of(client)
        assert charge_nano == usage["prompt_tokens"] + usage["completion_tokens"] * 1000
        mended, _ = await reload(site, gateway, DEARER)
        assert (mended, gauge(gateway, "tributary_config_reload_success")) == (True, 1)
        assert gauge(gateway, "tributary_config_reload_success_timestamp_seconds") > since


async def test_what_is_nobodys_mistake_is_logged_with_its_trace(site: Site) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("a fault of ours")

    async with site.serve() as (_, gateway):
        with capture_logs() as logged:
            assert not await gateway.reloader.reload(broken)
    assert isinstance(logged[-1]["exc_info"], ZeroDivisionError)


async def test_what_cannot_change_live_is_named_and_the_rest_is_taken(site: Site) -> None:
    elsewhere = '\n[server]\nport = 9999\nhost = "0.0.0.0"\n[limits]\nanswer_s = 5\n'
    witness = (
        "\n[[witnesses]]\nname = 'w1'\nurl = 'http://127.0.0.1:7070/w1'\n"
        "key = 'remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2'\n"
    )
    async with site.serve() as (_, gateway):
        taken, (warned, done) = await reload(site, gateway, DEARER + elsewhere + witness)
        assert taken
        assert (warned["event"], warned["log_level"]) == ("reload_needs_a_restart", "warning")
        assert warned["keys"] == ["limits.answer_s", "server.host", "server.port", "witnesses"]
        assert done["event"] == "reloaded"
        assert gateway.catalogue.find("plain").price.completion_nano_per_token == 3000
        assert gateway.settings.limits.answer_s == 600


async def test_models_may_not_move_to_an_engine_that_does_not_run(site: Site) -> None:
    moved = CONFIG.replace('"fake-base"', '"other-base"')
    async with site.serve() as (_, gateway):
        taken, (logged,) = await reload(site, gateway, moved)
    assert not taken
    assert (
        "model 'plain' has base 'other-base'; a model of kind chat runs on [engine] name, 'fake-base'"
        in (logged["error"])
    )


async def test_a_new_adapter_is_loaded_before_its_model_is_served_and_a_rejected_one_keeps_the_old(
    site: Site, adapter_folder: Path
) -> None:
    config = CONFIG.replace('name = "guide"', 'name = "guide"\nadapter = "grounded-qa"')
    async with site.serve() as (client, gateway):
        with office(site.config) as o:
            pulled = pull(o.settings, str(adapter_folder))
            register(o, pulled, base_digest=None, name="grounded-qa", developer="ada", datasets=())
        site.engine.reject = "it does not fit"
        taken, (logged,) = await reload(site, gateway, config)
        assert (taken, "it does not fit" in logged["error"]) == (False, True)
        assert gateway.catalogue.find("guide").adapter is None
        site.engine.reject = None
        assert (await reload(site, gateway, config))[0]
        served = gateway.catalogue.find("guide")
        assert served.resident_adapter in site.engine.resident()
        assert (await client.post(CHAT, json=body("guide"))).json()["attribution"]["adapter"] == "grounded-qa"
        site.engine._resident.clear()
        assert (await reload(site, gateway, config))[0]  # what was loaded once is the engine's to keep
        assert site.engine.resident() == frozenset()


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    """The demo's adapter, as if it had been made for the base of the engine here."""
    folder = tmp_path / "made"
    shutil.copytree("examples/adapters/grounded-qa", folder)
    made = folder / "adapter_config.json"
    made.write_text(json.dumps(json.loads(made.read_text()) | {"base_model_name_or_path": "fake-base"}))
    return folder


async def test_two_at_once_are_taken_one_after_the_other(site: Site) -> None:
    async with site.serve() as (_, gateway):
        configs = iter([DEARER, CONFIG + ALIAS])

        def read() -> Any:
            site.config.write_text(next(configs))
            return load(site.config)

        assert await asyncio.gather(gateway.reloader.reload(read), gateway.reloader.reload(read)) == [True, True]
        assert list(gateway.router.names) == ["plain", "guide", "vectors", "stable"]


# A process, and the signal.


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_takes_up_its_file_on_sighup_and_keeps_serving_when_it_is_bad(site: Site, workers: int) -> None:
    server = f"[server]\nport = 0\nworkers = {workers}\n"
    elsewhere = '[engine]\nkind = "vllm"\nservers = ["http://127.0.0.1:9"]'  # a fake takes its place
    config = server + CONFIG.replace("[engine]", elsewhere)
    site.config.write_text(config)
    script, said = site.folder / "serve.py", site.folder / "said"
    script.write_text(SERVE)
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(script), "serve"],
            cwd=site.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=stderr,
        )

    def wait_for(event: str, count: int) -> None:
        deadline_s = time.monotonic() + 120
        while said.read_text().count(f'"event":"{event}"') < count:
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline_s, said.read_text()
            time.sleep(0.05)

    try:
        wait_for("listening" if workers == 1 else "workers_serving", 1)
        url = re.search(r'"url":"([^"]+)"', said.read_text())
        assert url
        limits = httpx.Limits(max_keepalive_connections=0)  # every request may meet another worker
        headers = {"Authorization": f"Bearer {site.secret}"}
        client = httpx.Client(base_url=url[1], headers=headers, limits=limits, timeout=60)

        def names() -> list[list[str]]:
            return [[each["id"] for each in client.get("/v1/models").json()["data"]] for _ in range(8)]

        before = names()[0]
        _change(site, process, config + ALIAS, lambda: wait_for("reloaded", workers))
        assert all(each == [*before, "stable"] for each in names())
        _change(site, process, server + "[[models\n", lambda: wait_for("reload_refused", workers))
        assert all(each == [*before, "stable"] for each in names())
        asked = client.post(CHAT, json=body("stable"))
        assert (asked.status_code, asked.json()["model"]) == (200, "plain")
        client.close()
    finally:
        process.terminate()
        process.wait(60)
    site.config.write_text(CONFIG)
    site.check()


def _change(site: Site, process: subprocess.Popen[bytes], config: str, wait: Callable[[], None]) -> None:
    site.config.write_text(config)
    process.send_signal(signal.SIGHUP)
    wait()
