"""Tributary itself under measurement: set up by its own command line, served by its own command, asked with a key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway.client import Asking
from benchmarks.gateway.processes import DidNotStart, Server, free_port, get
from benchmarks.gateway.upstream import ROOT

BASE = "smollm2-135m-instruct"  # the name that the example's LoRAs were made for
BASE_ONLY, ADAPTED = "chat", "adapted"
LORA = ROOT / "examples" / "adapters" / "grounded-qa"
_DRAIN_S = 600
_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? ([0-9.e+-]+)$", re.MULTILINE)

_CONFIG = """
[server]
port = {port}

[database]
url = "{database}"

[engine]
kind = "vllm"
name = "{base}"
servers = {servers}
{engine}

[limits]
default_max_tokens = 64
{limits}

[[policies]]
name = "default"
"""
_MODEL = """
[[models]]
name = "{name}"
base = "{base}"
price = {{ prompt = "0.10", completion = "0.40" }}
"""


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """What the gateway says of itself. answers: that it has counted since its start."""

    answers: int
    open_intents: int
    backlog: int


class Gateway:
    """A gateway in a folder of its own, with a caller who has credit, in front of servers.

    database: an SQLAlchemy URL; None for SQLite in the folder. loras: each answers under its name, beside the base.
    engine, limits: further lines of [engine] and [limits].
    """

    def __init__(
        self,
        folder: Path,
        servers: Sequence[str],
        *,
        database: str | None = None,
        loras: Mapping[str, Path] | None = None,
        cores: Sequence[int] = (),
        engine: str = "",
        limits: str = "",
    ) -> None:
        self.config = folder / "tributary.toml"
        self._folder = folder
        self._port = free_port()
        self._cores = cores
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "port": self._port,
            "database": database or "sqlite:///tributary.db",
            "base": BASE,
            "servers": json.dumps(list(servers)),
            "engine": engine,
            "limits": limits,
        }
        config = _CONFIG.format(**settings) + _MODEL.format(name=BASE_ONLY, base=BASE)
        self.config.write_text(config)
        self.run("init", str(folder), config=False)
        if loras:
            self.run("contributor", "add", "maker")
        for name, lora in (loras or {}).items():
            # The gateway tries it on its server when it first loads it.
            self.run("adapter", "add", name, str(lora), "--base", BASE, "--developer", "maker", "--unproven")
            config += _MODEL.format(name=name, base=BASE) + f'adapter = "{name}"\n'
        self.config.write_text(config)
        self._key = self.new_key("bench")

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self._port}"

    def new_key(self, name: str) -> str:
        """Make a caller with credit; returns its key."""
        told = self.run("key", "create", "--role", "caller", "--name", name, "--credit", "1000000", "--json")
        key: str = json.loads(told)["key"]
        return key

    def asking(self, model: str = BASE_ONLY, key: str | None = None) -> Asking:
        """How a caller, by default its first, asks for a model."""
        return Asking(url=self.url, model=model, key=key or self._key)

    def serve(self) -> Server:
        """Start it, and return once it serves."""
        command = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(self.config)]
        server = Server(command, log=self._folder / "gateway.log", cores=self._cores, folder=ROOT)
        server.wait_until_answering(f"{self.url}/readyz")
        return server

    def gauges(self) -> Gauges:
        """Scrape its metrics, which are on for every measurement."""
        page = get(f"{self.url}/metrics")
        samples = [(name, float(value)) for name, _, value in _SAMPLE.findall(page)]
        sums: dict[str, float] = {}
        for name, value in samples:
            sums[name] = sums.get(name, 0) + value
        return Gauges(
            answers=round(sums.get("gen_ai_server_request_duration_seconds_count", 0)),
            open_intents=round(sums["tributary_ledger_open_intents"]),
            backlog=round(sums["tributary_attribution_backlog"]),
        )

    def drain(self, *, timeout_s: float = _DRAIN_S) -> None:
        """Return when every request has ended and every answer is attributed. Raises DidNotStart when that never is."""
        deadline_s = time.monotonic() + timeout_s
        pause_s = 0.05
        while (now := self.gauges()).open_intents or now.backlog:
            if time.monotonic() > deadline_s:
                raise DidNotStart(f"{now.open_intents} requests are open and {now.backlog} answers wait after all this")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2)  # a scrape costs processor time too

    def run(self, *arguments: str, config: bool = True, may_find: bool = False) -> str:
        """Run one of the gateway's commands; returns what it printed. may_find: status 1 is an answer too."""
        command = [sys.executable, "-m", "gateway.cli", *arguments]
        if config:
            command += ["--config", str(self.config)]
        done = subprocess.run(  # noqa: S603 - our own command line
            command, check=False, cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode > int(may_find):
            raise DidNotStart(f"`tributary {' '.join(arguments)}` failed: {done.stdout[-300:]} {done.stderr[-300:]}")
        return done.stdout
