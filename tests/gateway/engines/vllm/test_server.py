from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from gateway.engines.vllm.server import ServerFailed, ServerSpec, VllmServer

# A program that takes the arguments of `vllm serve`, and does with them what a test needs.
SERVES = """
import http.server, json, os, subprocess, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = json.dumps({"arguments": sys.argv[1:], "key": os.environ["VLLM_API_KEY"]}).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(said)
    def log_message(self, *_): pass
print("loading the weights", flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[2] + "/child", "w").write(str(child.pid))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answers).serve_forever()
"""
DIES = """
import sys
open(sys.argv[2] + "/starts", "a").write("x")
print("the GPU is on fire", file=sys.stderr); sys.exit(CODE)
"""


def spec(folder: Path, program: str) -> ServerSpec:
    file = folder / "program.py"
    file.write_text(program)
    return ServerSpec(
        command=(sys.executable, str(file)), model=str(folder), served_name="base", context_tokens=512, max_rank=24,
        arguments=("--max-num-seqs", "4"),
    )  # fmt: skip


async def asked(server: VllmServer) -> dict[str, object]:
    async with httpx.AsyncClient() as client:
        found: dict[str, object] = (await client.get(f"{server.url}/health")).json()
        return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_it_serves_with_our_flags_then_the_operators_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with VllmServer(spec(tmp_path, SERVES)) as server:
        said = await asked(server)
        pid, child = server.pid, int((tmp_path / "child").read_text())
    assert said["key"] == server.api_key
    arguments = said["arguments"]
    assert isinstance(arguments, list)
    assert arguments[:2] == ["serve", str(tmp_path)]
    assert arguments[-2:] == ["--max-num-seqs", "4"]
    assert arguments[arguments.index("--max-lora-rank") + 1] == "32"
    assert {"--enable-lora", "--enable-scale-out"} <= set(arguments)
    assert pid is not None
    assert not is_alive(pid)
    assert not is_alive(child)


async def test_a_server_that_dies_is_started_again_at_the_same_address(tmp_path: Path) -> None:
    async with VllmServer(spec(tmp_path, SERVES)) as server:
        url, pid, child = server.url, server.pid, int((tmp_path / "child").read_text())
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while not server.restarts:
                await asyncio.sleep(0.01)
        assert (server.url, server.restarts) == (url, 1)
        assert server.pid != pid
        assert not is_alive(child)
        await asked(server)


@pytest.mark.parametrize(("code", "starts"), [(1, 2), (2, 1)])
async def test_a_server_that_only_dies_is_given_up_with_its_own_words(tmp_path: Path, code: int, starts: int) -> None:
    server = VllmServer(spec(tmp_path, DIES.replace("CODE", str(code))), starts=2)
    with pytest.raises(ServerFailed, match=rf"ended with code {code} at its start(?s:.*)the GPU is on fire"):
        async with server:
            pass
    assert (tmp_path / "starts").read_text() == "x" * starts


async def test_a_server_that_never_serves_is_stopped(tmp_path: Path) -> None:
    server = VllmServer(
        spec(tmp_path, "import time; print('thinking', flush=True); time.sleep(600)"), start_s=1, starts=1
    )
    with pytest.raises(ServerFailed, match=r"did not serve within 1 s(?s:.*)thinking"):
        async with server:
            pass
    assert server.pid is not None
    assert not is_alive(server.pid)


GATEWAY = """
import asyncio, sys
from pathlib import Path
from tests.gateway.engines.vllm.test_server import SERVES, VllmServer, spec

async def main():
    folder = Path(sys.argv[1])
    async with VllmServer(spec(folder, SERVES)) as server:
        (folder / "pid.new").write_text(str(server.pid))
        (folder / "pid.new").rename(folder / "pid")
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process can ask for that on Linux only")
async def test_a_server_ends_with_a_gateway_that_is_killed(tmp_path: Path) -> None:
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", GATEWAY, str(tmp_path), cwd=Path(__file__).parents[4], stdout=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(30):
        while not (tmp_path / "pid").exists():
            await asyncio.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    assert is_alive(pid)
    gateway.kill()
    await gateway.wait()
    async with asyncio.timeout(10):
        while is_alive(pid):
            await asyncio.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)  # its child, which a vLLM would have ended
