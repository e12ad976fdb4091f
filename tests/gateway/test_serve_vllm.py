"""`tributary serve` with vLLM as its engine and no server to use: it starts one and keeps it running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.gateway.kit import Site, body

ROOT = Path(__file__).parents[2]
# Takes the arguments of `vllm serve`, and is the stand-in.
PROGRAM = """
import runpy, sys
value = lambda flag: sys.argv[sys.argv.index(flag) + 1]
sys.argv = ["stand_in", "--port", value("--port"), "--model", value("--served-model-name"),
            "--context", value("--max-model-len"), "--slots", value("--max-loras")]
runpy.run_module("tests.stand_in", run_name="__main__")
"""
SERVE = """
from functools import partial
from gateway.app import create_app
from gateway.cli import main, server
from tests.retrieval.kit import HashingEmbedder

server.create_app = partial(create_app, embedder=lambda _: HashingEmbedder())
main()
"""
WAIT_S = 120


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    (tmp_path / "pretend.py").write_text(PROGRAM)
    engine = {"command": json.dumps([sys.executable, str(tmp_path / "pretend.py")]), "digest": json.dumps("0" * 64)}
    lines = "".join(f"{key} = {value}\n" for key, value in engine.items())
    site.config.write_text("[server]\nport = 0\n" + site.config.read_text().replace("[engine]\n", f"[engine]\n{lines}"))
    return site


@contextmanager
def serving(site: Site, *options: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    said = site.folder / "said"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve", "--engine", "vllm", "--model", "org/some-model", *options],
            cwd=site.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=stderr,
        )
    try:
        deadline_s = time.monotonic() + WAIT_S
        while '"event":"listening"' not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline_s, said.read_text()
            time.sleep(0.05)
        url = re.search(r'"url":"([^"]+)"[^\n]*"event":"listening"', said.read_text())
        assert url
        headers = {"Authorization": f"Bearer {site.secret}"}
        with httpx.Client(base_url=url[1], headers=headers, timeout=60) as client:
            yield client, process
    finally:
        process.terminate()
        process.wait(60)


def started(site: Site) -> int:
    """The process id of the server that was started last."""
    return int(re.findall(r'"pid":([0-9]+)[^\n]*"event":"vllm_serves"', (site.folder / "said").read_text())[-1])


def test_it_starts_a_server_and_starts_it_again_when_it_dies(site: Site) -> None:
    with serving(site) as (client, _):
        answered = client.post("/v1/chat/completions", json=body())
        assert (answered.status_code, answered.json()["model"]) == (200, "plain")
        first = started(site)
        os.killpg(first, signal.SIGKILL)
        deadline_s = time.monotonic() + WAIT_S
        while (again := client.post("/v1/chat/completions", json=body())).status_code != 200:
            assert again.status_code == 503, again.text
            assert time.monotonic() < deadline_s, (site.folder / "said").read_text()
            time.sleep(0.1)
        second = started(site)
        assert second != first
    assert not Path(f"/proc/{second}").exists(), "it went with the gateway"
    assert len(site.entries("usage.recorded")) == 2
    site.check()


def test_a_server_that_does_not_come_up_is_told_with_its_own_words(site: Site) -> None:
    (site.folder / "pretend.py").write_text("import sys; sys.exit('no such model: org/some-model')")
    process = subprocess.run(
        [sys.executable, "-c", SERVE, "serve", "--engine", "vllm", "--model", "org/some-model"],
        cwd=site.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert process.returncode == 1
    assert "no such model: org/some-model" in process.stderr.splitlines()[-1]
