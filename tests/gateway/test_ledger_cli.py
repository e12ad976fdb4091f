"""A whole gateway that ships to a whole ledger: `tributary ledger …`, and receipts of both, as a person uses them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.context import office
from gateway.settings import SettingsError, load
from ledger_client import Signer, metadata, shipped

from .command import Run, runner
from .kit import CONFIG, Site

LEDGER = "ledger.example/log"
START_S = 60


@pytest.fixture
def site(tmp_path: Path) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    made = Site(folder)
    with office(made.config) as o, o.database.write() as connection:
        metadata.create_all(connection)
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capsys)


@contextmanager
def ledger(folder: Path, accept: str) -> Iterator[tuple[str, str]]:
    """`tributary ledger serve` in a process of its own; gives its address and its key."""
    options = ["--database", f"sqlite:///{folder}/ledger.db", "--signing-key", f"{folder}/ledger.key"]
    command = [*options, "--origin", LEDGER, "--accept", accept, "--listen", "127.0.0.1:0"]
    with (folder / "ledger.log").open("wb") as log_file:
        server = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "ledger", "serve", *command],
            stdout=subprocess.PIPE,
            stderr=log_file,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        assert server.stdout is not None
        key = server.stdout.readline().decode().removeprefix("ledger key: ").strip()
        deadline_s = time.monotonic() + START_S
        while not (events := _events(folder, "listening")):
            assert server.poll() is None, (folder / "ledger.log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield events[0]["url"], key
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert server.stdout is not None
        server.stdout.close()


def _events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "ledger.log").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == name]


async def test_an_answer_is_proved_by_both_logs(site: Site, run: Run, tmp_path: Path) -> None:
    log_key = Signer.load(tmp_path / "site" / "log.key").verifier_key
    database = f"sqlite:///{tmp_path}/ledger.db"
    with ledger(tmp_path, log_key) as (url, key):
        ledgers = f'\n[[ledgers]]\nname = "archive"\nurl = "{url}"\nkey = "{key}"\n'
        site.config.write_text(CONFIG + ledgers)
        site.settings = load(site.config)
        code, out, _ = run("ledger", "status", "--json", "--config", site.config)
        assert (code, json.loads(out)[0]["acknowledged"]) == (0, 0)
        async with site.open() as gateway:
            answer = await gateway.pipeline.open(site.caller, site.question(gateway))
            async for _ in answer.deltas():
                pass
            async with asyncio.timeout(30):
                while b'shipping_backlog_entries{ledger="archive"} 0.0' not in gateway.metrics.render():
                    await asyncio.sleep(0.05)
    # The ledger is gone, and its receipt is here all the same.
    name = answer.request_id
    for options in ((), ("--ledger", "archive")):
        assert run("receipt", name, "-o", tmp_path / "receipt", "--config", site.config, *options)[0] == 0
        code, out, _ = run("verify", tmp_path / "receipt", "--key", key if options else log_key, "--json")
        assert (code, json.loads(out)["ok"]) == (0, True)
    amounts = next(step["detail"] for step in json.loads(out)["steps"] if step["number"] == 7)
    assert "of tributary.local/log: " in amounts
    assert run("verify", tmp_path / "receipt", "--key", log_key)[0] == 1
    assert run("receipt", name, "--ledger", "nobody", "--config", site.config)[0] == 2
    code, out, _ = run("ledger", "status", "--json", "--config", site.config)
    assert [(row["ledger"], row["backlog"]) for row in json.loads(out)] == [("archive", 0)]
    assert run("fsck", "--config", site.config)[0] == 0
    checked = ("ledger", "fsck", "--database", database, "--signing-key", tmp_path / "ledger.key")
    code, out, _ = run(*checked, "--accept", log_key, "--json")
    with office(site.config) as o, o.database.read() as connection:
        size = shipped(connection, LEDGER)
    assert (code, json.loads(out)) == (
        0,
        {"ok": True, "held": {"tributary.local/log": size}, "forked": [], "findings": []},
    )
    stranger = Signer.generate("tributary.local/log").verifier_key
    assert run(*checked, "--accept", stranger)[0] == 1


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"--listen": "nowhere"}, 2, "127.0.0.1:8100"),
        ({"--listen": "127.0.0.1:99999"}, 2, "127.0.0.1:8100"),
        ({"--database": "mysql://x/y"}, 1, "error: --database: "),
        ({"--accept": "key"}, 1, "error: a verifier key is name+hex+base64"),
        ({"--origin": "other.example/log"}, 1, "error: log.origin is 'other.example/log'"),
        ({"--origin": "a b"}, 1, "error: a key name is"),
    ],
)
def test_serve_says_in_one_line_what_it_cannot_use(
    run: Run, tmp_path: Path, options: dict[str, str], code: int, said: str
) -> None:
    if options.get("--origin", "").startswith("other"):
        Signer.generate(LEDGER).save(tmp_path / "ledger.key")
    given = {
        "--database": f"sqlite:///{tmp_path}/ledger.db",
        "--signing-key": str(tmp_path / "ledger.key"),
        "--origin": LEDGER,
        "--accept": Signer.generate("log").verifier_key,
        "--listen": "127.0.0.1:0",
    } | options
    refused = run("ledger", "serve", *(part for option in given.items() for part in option))
    assert (refused[0], said in refused[2]) == (code, True), refused


KEY = Signer.generate(LEDGER).verifier_key
GOOD = {"name": "archive", "url": "https://ledger.example", "key": KEY}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ([GOOD | {"key": KEY[:-4] + "AAA="}], "ledgers.0.key: "),
        ([GOOD | {"key": Signer.generate("tributary.local/log").verifier_key}], "names two logs"),
        ([GOOD, GOOD | {"name": "second"}], "names two logs"),
        ([GOOD, GOOD | {"key": Signer.generate("second").verifier_key}], "'archive' twice"),
        ([GOOD | {"url": "ledger.example"}], "ledgers.0.url: "),
        ([GOOD | {"url": "file:///etc/passwd"}], "ledgers.0.url: "),
        ([GOOD | {"keys": KEY}], "ledgers.0.keys: this key does not exist"),
    ],
)
def test_settings_name_what_is_wrong_with_a_ledger(tmp_path: Path, sections: list[dict[str, str]], said: str) -> None:
    lines = [
        "\n".join(["[[ledgers]]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())])
        for section in sections
    ]
    (tmp_path / "tributary.toml").write_text("\n".join(lines))
    with pytest.raises(SettingsError, match=said.replace("[", r"\[")):
        load(tmp_path / "tributary.toml")
