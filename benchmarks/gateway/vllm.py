"""Through the gateway against direct, on a real vLLM server with many LoRAs: for a machine with a GPU.

The server is started here and used by both ways in turn, so that all that differs is the gateway.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gateway import loras
from benchmarks.gateway.client import Asking
from benchmarks.gateway.load import Load, Outcome, run
from benchmarks.gateway.ours import BASE, Gateway
from benchmarks.gateway.processes import Server, free_port, post, running

SERVED = "base"
SECONDS = 60.0
_START_S = 900


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for: streams of so many tokens, from so many connections, for so long."""

    connections: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Streams from so many LoRAs in turn, asked for directly and through the gateway."""

    loras: int
    direct: Outcome
    through: Outcome

    @property
    def part(self) -> float:
        """Throughput through the gateway over direct throughput."""
        return self.through.requests_s / self.direct.requests_s

    def as_result(self) -> dict[str, float | int]:
        """The figures as the last line has them."""
        ways = {"direct": self.direct, "through": self.through}
        figures = {f"{way}_answers_s": round(outcome.requests_s, 3) for way, outcome in ways.items()}
        firsts = {f"{way}_first_byte_p99_ms": round(outcome.first_ms_at(0.99), 1) for way, outcome in ways.items()}
        return {"loras": self.loras, **figures, **firsts, "through_of_direct": round(self.part, 4)}


def measure(
    folder: Path, model: Path, *, command: Sequence[str], flags: Sequence[str], counts: Sequence[int], asked: Asked
) -> list[Comparison]:
    """Compare with each number of LoRAs. model: a folder of the Llama family. command: what runs vLLM, then flags."""
    most = max(counts)
    config = json.loads((model / "config.json").read_text())
    folders = [folder / "loras" / f"lora-{number}" for number in range(most)]
    for number, at in enumerate(folders):
        loras.write(at, config, base=BASE, seed=number)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve = [*command, "serve", str(model), "--served-model-name", SERVED, "--host", "127.0.0.1", "--port", str(port)]
    # All of the LoRAs fit, so that what is compared is the gateway and not who evicts better.
    room = ["--enable-lora", "--max-loras", str(most), "--max-cpu-loras", str(2 * most), "--max-lora-rank", "16"]
    modules = ["--lora-target-modules", *loras.MODULES, "qkv_proj"]
    scoring = ["--enable-scale-out", "--scheduling-policy", "priority"]
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
    server = Server(
        [*serve, *room, *modules, *scoring, "--disable-uvicorn-access-log", *flags],
        log=folder / "vllm.log",
        environment=environment,
    )
    with running(server):
        server.wait_until_answering(f"{url}/health", timeout_s=_START_S)
        return [_compare(folder / str(count), url, folders[:count], model, asked) for count in counts]


def _compare(folder: Path, url: str, folders: Sequence[Path], model: Path, asked: Asked) -> Comparison:
    names = [at.name for at in folders]
    for at in folders:
        post(f"{url}/v1/load_lora_adapter", json.dumps({"lora_name": at.name, "lora_path": str(at)}).encode())
    direct = _load(Asking(url=url, model=",".join(names)), asked)
    for name in names:
        post(f"{url}/v1/unload_lora_adapter", json.dumps({"lora_name": name}).encode())
    engine = [f"model = {json.dumps(str(model))}", f"slots = {len(names)}", "priorities = true"]
    gateway = Gateway(folder, [url], loras={at.name: at for at in folders}, engine="\n".join(engine))
    with running(gateway.serve()):
        through = _load(gateway.asking(",".join(names)), asked)
        gateway.drain()
    return Comparison(loras=len(names), direct=direct, through=through)


def _load(asking: Asking, asked: Asked) -> Outcome:
    load = Load(
        asking=replace(asking, max_tokens=asked.tokens),
        connections=asked.connections,
        seconds=asked.seconds,
        stream_every=1,
    )
    run(replace(load, seconds=asked.seconds / 4))
    return run(load)


def hardware() -> str:
    """The GPUs, one after another, as the driver names them; or that there is none."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = [line.partition(":")[2].strip() for at in found for line in at.read_text().splitlines() if "Model" in line]
    return f"{len(names)} × {names[0]}" if names else f"no GPU, {os.cpu_count()} cores"
