"""Other gateways, each in an environment of its own in the user's cache, and how each is put in front of one server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.gateway.client import Asking
from benchmarks.gateway.processes import DidNotStart, Server, free_port, running

INSTALL_S = 1200


class PeerAbsent(RuntimeError):  # noqa: N818  it says what is so
    """A peer could not be installed, or did not start; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Front:
    """A peer's process in front of a server. ready: what answers once it serves.

    told: where it writes its own URL once it serves, for one that takes no port; asking's URL and ready are empty then.
    """

    command: Sequence[str]
    asking: Asking
    ready: str = ""
    told: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def serving(self, server: Server) -> Asking:
        """Wait until the process serves, and return how it is asked. Raises DidNotStart."""
        if self.told is None:
            server.wait_until_answering(self.ready)
            return self.asking
        told = self.told
        server.wait_until(lambda: told.exists() and told.read_text().endswith("\n"))
        url = urlsplit(told.read_text().strip())
        return replace(self.asking, url=f"{url.scheme}://{url.netloc}", path=f"{url.path}/chat/completions")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A gateway that others make. name: what the table calls it. version: of the package that is measured.

    install: gives the commands that make its environment in a folder. front: puts it before a server, of which it takes
    the URL and the model's name, after the folder.
    """

    name: str
    version: str
    install: Callable[[Path, str], list[list[str]]]
    front: Callable[[Path, str, str], Front]

    @contextmanager
    def before(self, upstream: str, model: str, *, log: Path, cores: Sequence[int]) -> Iterator[tuple[Server, Asking]]:
        """Run it before a server; gives its processes, and how it is asked. Raises PeerAbsent."""
        front = self.front(self.folder(), upstream, model)
        with running(Server(front.command, log=log, cores=cores, environment=front.environment)) as server:
            try:
                asking = front.serving(server)
            except DidNotStart as error:
                raise PeerAbsent(str(error)) from None
            yield server, asking

    def folder(self) -> Path:
        """Where it is installed, once it is. Raises PeerAbsent."""
        folder = cache() / self.name
        stamp = folder / ".installed"
        if not stamp.exists() or stamp.read_text() != self.version:
            folder.mkdir(parents=True, exist_ok=True)
            for command in self.install(folder, self.version):
                _run(command, folder)
            stamp.write_text(self.version)
        return folder


def cache() -> Path:
    """Where peers are kept: `$XDG_CACHE_HOME/tributary/peers`, or `~/.cache/tributary/peers`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tributary" / "peers"


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - commands of ours
            command, cwd=folder, check=False, timeout=INSTALL_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerAbsent(str(error)) from None
    if done.returncode:
        last = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
        raise PeerAbsent(f"`{' '.join(command[-2:])}` failed: {' '.join(last)[:200]}")


def _pip(package: str) -> Callable[[Path, str], list[list[str]]]:
    def install(folder: Path, version: str) -> list[list[str]]:
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        return [[sys.executable, "-m", "venv", str(folder)], [*pip, f"{package}=={version}"]]

    return install


def _npm(package: str, overrides: Mapping[str, str]) -> Callable[[Path, str], list[list[str]]]:
    def install(folder: Path, version: str) -> list[list[str]]:
        wanted = {"private": True, "dependencies": {package: version}, "overrides": dict(overrides)}
        (folder / "package.json").write_text(json.dumps(wanted))
        return [["npm", "install", "--no-audit", "--no-fund", "--silent"]]

    return install


def _litellm(folder: Path, upstream: str, model: str) -> Front:
    port = free_port()
    key = "sk-benchmark"
    config = folder / "config.yaml"
    served = {"model_name": model, "litellm_params": {"model": f"hosted_vllm/{model}", "api_base": f"{upstream}/v1"}}
    # JSON is YAML too. Without a database it has no keys but this one, and commits nothing.
    config.write_text(json.dumps({"model_list": [served], "general_settings": {"master_key": key}}))
    command = [str(folder / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    return Front(
        command=[*command, "--num_workers", "1"],
        asking=Asking(url=url, model=model, key=key),
        ready=f"{url}/health/liveliness",
        # Else it looks up prices and tells of its use elsewhere at its start.
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"},
    )


def _portkey(folder: Path, upstream: str, model: str) -> Front:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = folder / "node_modules/@portkey-ai/gateway/build/start-server.js"
    headers = (("x-portkey-provider", "openai"), ("x-portkey-custom-host", f"{upstream}/v1"))
    return Front(
        command=["node", str(server), f"--port={port}", "--headless"],
        asking=Asking(url=url, model=model, headers=headers),
        ready=f"{url}/",
        # By itself it refuses to speak to this machine.
        environment={"TRUSTED_CUSTOM_HOSTS": "localhost,127.0.0.1", "NODE_ENV": "production"},
    )


def _vllm_router(folder: Path, upstream: str, model: str) -> Front:
    return _router(folder, upstream, model, [str(folder / "bin" / "vllm-router")])


def _sglang_router(folder: Path, upstream: str, model: str) -> Front:
    return _router(folder, upstream, model, [str(folder / "bin" / "sglang-router"), "launch"])


def _router(_folder: Path, upstream: str, model: str, start: list[str]) -> Front:
    port, metrics_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    listen = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)]
    return Front(
        command=[*start, *listen, "--worker-urls", upstream, "--policy", "round_robin", "--log-level", "error"],
        asking=Asking(url=url, model=model),
        ready=f"{url}/health",
    )


# TensorZero's gateway comes as a container image; its Python package holds the same one, to be served from a process.
_TENSORZERO = """
import signal, sys
from tensorzero import tensorzero
port_file, config = sys.argv[1:]
gateway = tensorzero._start_http_gateway(
    config_file=config, clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
with open(port_file, "w") as file:
    file.write(gateway.base_url + "\\n")
signal.pause()
"""


def _tensorzero(folder: Path, upstream: str, model: str) -> Front:
    config, told = folder / "tensorzero.toml", folder / "url"
    config.write_text(
        "[gateway]\nobservability.enabled = false\n"
        f"[models.{model}]\nrouting = ['server']\n"
        f"[models.{model}.providers.server]\ntype = 'vllm'\nmodel_name = '{model}'\n"
        f"api_base = '{upstream}/v1/'\napi_key_location = 'none'\n"
    )
    told.unlink(missing_ok=True)
    return Front(
        command=[str(folder / "bin" / "python"), "-c", _TENSORZERO, str(told), str(config)],
        asking=Asking(url="", model=f"tensorzero::model_name::{model}"),
        told=told,  # it chooses its port itself
    )


PEERS = (
    Peer(name="litellm", version="1.108.7", install=_pip("litellm[proxy]"), front=_litellm),
    Peer(
        name="portkey",
        version="1.15.2",
        # Newer adapters to Node answer every stream with 500: it appends to headers that they have made immutable.
        install=_npm("@portkey-ai/gateway", {"@hono/node-server": "1.12.0"}),
        front=_portkey,
    ),
    Peer(name="vllm-router", version="0.1.17", install=_pip("vllm-router"), front=_vllm_router),
    Peer(name="sglang-router", version="0.3.2", install=_pip("sglang-router"), front=_sglang_router),
    Peer(name="tensorzero", version="2026.6.0", install=_pip("tensorzero"), front=_tensorzero),
)
