"""A real gateway in a process of its own, with the demo's documents and adapters, for every test here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import httpx
import openai
import pytest

from gateway.cli.context import office
from gateway.cli.demo import Site, lay_out

START_S = 300
EXAMPLES = Path("examples").resolve()


class Running:
    """A gateway that answers. keys: secrets by role."""

    def __init__(self, url: str, config: Path, keys: dict[str, str], log_file: Path, clients: ExitStack) -> None:
        self.url = url
        self.config = config
        self.keys = keys
        self.log_file = log_file
        self._clients = clients

    @cache  # noqa: B019 - lives as long as the suite
    def client(self, role: str = "caller", key: str | None = None) -> openai.OpenAI:
        """The official client, with nothing changed but its address."""
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.keys[role], max_retries=0, timeout=300)
        return self._clients.enter_context(made)

    @cache  # noqa: B019
    def http(self, role: str = "caller", key: str | None = None) -> httpx.Client:
        """A plain client."""
        headers = {"Authorization": f"Bearer {key or self.keys[role]}"}
        return self._clients.enter_context(httpx.Client(base_url=self.url, headers=headers, timeout=300))

    @contextmanager
    def entries(self) -> Iterator[Iterator[tuple[int, bytes]]]:
        """The log as it is stored."""
        with office(self.config) as o, o.database.read() as connection:
            yield o.log.entries(connection)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, dict[str, str]]:
    """The demo's folder, set up by what the demo itself calls."""
    made = Site(examples=EXAMPLES, folder=tmp_path_factory.mktemp("site"))
    return made, lay_out(made)


@pytest.fixture(scope="session")
def gateway(site: tuple[Site, dict[str, str]]) -> Iterator[Running]:
    with serving(*site) as running:
        yield running


@contextmanager
def serving(
    where: Site, keys: dict[str, str], *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A gateway on the demo's folder. options: of `tributary serve`. environment: on top of the suite's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log_file = where.folder / "gateway.log"
    with log_file.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port), *options],
            cwd=where.folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
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
        with ExitStack() as clients:
            yield Running(url, config, keys, log_file, clients)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
