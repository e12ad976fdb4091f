"""A real gateway in a process of its own, with the demo's documents and adapters, for every test here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from gateway.cli.context import Office, office
from gateway.cli.demo import Site, lay_out

START_S = 300
EXAMPLES = Path("examples").resolve()


@dataclass(frozen=True, kw_only=True)
class Running:
    """A gateway that answers. keys: secrets by role."""

    url: str
    config: Path
    keys: dict[str, str]
    pid: int
    log_file: Path

    def client(self, role: str = "caller") -> openai.OpenAI:
        """The official client, with nothing changed but its address."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.keys[role], max_retries=0, timeout=300)

    def http(self, role: str | None = "caller") -> httpx.Client:
        """A plain client."""
        headers = {"Authorization": f"Bearer {self.keys[role]}"} if role else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=300)

    def books(self) -> Office:
        """The books behind it, as an operator's commands open them."""
        return office(self.config).__enter__()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, dict[str, str]]:
    """The demo's folder, set up by what the demo itself calls."""
    made = Site(examples=EXAMPLES, folder=tmp_path_factory.mktemp("site"))
    return made, lay_out(made)


@pytest.fixture(scope="session")
def gateway(site: tuple[Site, dict[str, str]]) -> Iterator[Running]:
    where, keys = site
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log_file = where.folder / "gateway.log"
    with log_file.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port)],
            cwd=where.folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        deadline_s = time.monotonic() + START_S
        while True:
            assert server.poll() is None, log_file.read_text()
            assert time.monotonic() < deadline_s, log_file.read_text()
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        config = where.folder / "tributary.toml"
        yield Running(url=url, config=config, keys=keys, pid=server.pid, log_file=log_file)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
