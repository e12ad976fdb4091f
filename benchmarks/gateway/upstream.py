"""The server that every gateway is put before: a stand-in for vLLM, whose own part is small and always the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gateway.client import Asking
from benchmarks.gateway.processes import Server, free_port, post

MODEL = "stand-in"
CHUNKS = 64
ROOT = Path(__file__).parents[2]


class Upstream:
    """One stand-in. flags: further ones of `python -m tests.stand_in`. cores: that it runs on."""

    def __init__(self, folder: Path, *flags: str, cores: Sequence[int] = ()) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        own = ["--port", str(self._port), "--model", MODEL, "--chunks", str(CHUNKS)]
        self._command = [sys.executable, "-m", "tests.stand_in", *own, *flags]
        self._log = folder / f"upstream-{self._port}.log"
        self._cores = cores
        self.server = self._start()

    @property
    def asking(self) -> Asking:
        """How it is asked without a gateway."""
        return Asking(url=self.url, model=MODEL)

    def pace(self, *, delay_ms: float, chunk_ms: float) -> None:
        """Take so long to the first byte from now on, and between two chunks."""
        post(f"{self.url}/stand_in/pace", json.dumps({"delay_ms": delay_ms, "chunk_ms": chunk_ms}).encode())

    def crash(self) -> None:
        """Kill it."""
        self.server.kill()

    def restart(self) -> None:
        """Start it again where it was."""
        self.server = self._start()

    def _start(self) -> Server:
        server = Server(self._command, log=self._log, cores=self._cores, folder=ROOT)
        server.wait_until_answering(f"{self.url}/health")
        return server
