"""A vLLM server that the gateway starts, watches, starts again when it dies, and stops."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from gateway.engines.adapters import TARGET_MODULES
from gateway.engines.base import EngineUnavailable
from gateway.engines.vllm import leash
from gateway.engines.vllm.client import VllmClient
from gateway.engines.vllm.engine import Dtype

_DTYPES: Mapping[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16"}
# What vLLM makes of several projections at once.
_FUSED_MODULES = ("gate_up_proj", "qkv_proj")
# The ranks that vLLM has kernels for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_TAIL_LINES = 40
_POLL_S = 0.25
_PROGRESS_S = 15.0
_GRACE_S = 20.0
_BACK_OFF_S = (1.0, 60.0)
# A server that ran for so long is not one that dies at its start.
_STEADY_S = 120.0
# argparse's, for flags that this vLLM does not know: another try changes nothing.
_USAGE_ERROR = 2

log = structlog.get_logger(__name__)


class ServerFailed(EngineUnavailable):
    """The server ended instead of serving; the message has the last lines that it wrote."""


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """What to start. command: up to where the arguments of `serve` begin, such as ("/opt/vllm/bin/vllm",).

    model: a folder or a name that vLLM knows. served_name: what the server calls it. slots: adapters in one batch.
    arguments: more of the operator's, after ours, so that theirs win. environment: added to the gateway's own.
    """

    command: Sequence[str] = ("vllm",)
    model: str
    served_name: str
    context_tokens: int
    dtype: Dtype = "fp32"
    slots: int = 4
    max_rank: int = 64
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def arguments_of(self, port: int) -> list[str]:
        """The whole command line."""
        rank = next(rank for rank in _RANKS if rank >= self.max_rank)
        flags = {
            "--host": "127.0.0.1",
            "--port": port,
            "--served-model-name": self.served_name,
            "--dtype": _DTYPES[self.dtype],
            "--max-model-len": self.context_tokens,
            "--max-loras": self.slots,
            # An adapter that is unloaded keeps its place until another needs it.
            "--max-cpu-loras": 2 * self.slots,
            "--max-lora-rank": rank,
            # Callers' requests go before scorings.
            "--scheduling-policy": "priority",
            # What a caller leaves out has OpenAI's default, not one that came with the weights.
            "--generation-config": "vllm",
        }
        return [
            *self.command, "serve", self.model,
            *(str(part) for flag in flags.items() for part in flag),
            "--enable-lora", "--enable-scale-out", "--disable-uvicorn-access-log",
            # Not the output head: on a CPU, two scorings in a batch would end the engine.
            "--lora-target-modules", *sorted(TARGET_MODULES), *_FUSED_MODULES,
            *self.arguments,
        ]  # fmt: skip

    def environment_of(self, api_key: str) -> dict[str, str]:
        """The whole environment."""
        ours = {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_API_KEY": api_key,
            "VLLM_NO_USAGE_STATS": "1",
        }
        if Path(self.model).is_dir():
            ours["HF_HUB_OFFLINE"] = "1"
        return {**os.environ, **ours, **self.environment}


class VllmServer:
    """A server for as long as the block lasts. url, api_key: where and how it is asked; both outlive its restarts.

    Whoever asks it finds out from its answers that it has lost its adapters. starts: how often it may die before it
    first serves.
    """

    def __init__(
        self,
        spec: ServerSpec,
        *,
        starts: int = 3,
        start_s: float = 1800,
    ) -> None:
        self.api_key = secrets.token_urlsafe(32)
        self.restarts = 0
        self._spec = spec
        self._starts = starts
        self._start_s = start_s
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._supervising: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Of the process, which leads a group of its own; None while there is none."""
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> Self:
        """Start it, and wait until it serves. Raises ServerFailed."""
        try:
            for start in range(1, self._starts + 1):
                self._port = _free_port()
                try:
                    await self._start()
                    break
                except ServerFailed as failure:
                    if start == self._starts or self._exit_code == _USAGE_ERROR:
                        raise
                    log.warning("vllm_start_failed", error=str(failure))
        except BaseException:
            await self._stop()
            raise
        self._supervising = asyncio.create_task(self._supervise())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.gather(self._supervising, return_exceptions=True)
        await self._stop()

    @property
    def _exit_code(self) -> int | None:
        return None if self._process is None else self._process.returncode

    async def _start(self) -> None:
        """Start the process and wait until it serves. Raises ServerFailed."""
        self._tail.clear()
        command = [sys.executable, str(leash.__file__), str(os.getpid()), *self._spec.arguments_of(self._port)]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._spec.environment_of(self.api_key),
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read(self._process))
        started_s = asyncio.get_running_loop().time()
        log.info("vllm_starting", pid=self._process.pid, url=self.url, model=self._spec.model)
        try:
            trouble = await self._wait_until_it_serves(self._process, started_s)
        except BaseException:
            await self._stop()
            raise
        if trouble is not None:
            await self._stop()  # and with that, all that it said is read
            raise ServerFailed(f"vLLM {trouble}; it said:\n{self.tail}")
        seconds = round(asyncio.get_running_loop().time() - started_s, 1)
        log.info("vllm_serves", pid=self._process.pid, url=self.url, seconds=seconds)

    async def _wait_until_it_serves(self, process: asyncio.subprocess.Process, started_s: float) -> str | None:
        """None once it does; else what happened instead."""
        loop = asyncio.get_running_loop()
        told_s = started_s
        while not await self._serves():
            if process.returncode is not None:
                return f"ended with code {process.returncode} at its start"
            if loop.time() - started_s > self._start_s:
                return f"did not serve within {self._start_s:.0f} s"
            if loop.time() - told_s > _PROGRESS_S:
                told_s = loop.time()
                log.info("vllm_starting", seconds=round(told_s - started_s), said=self.tail.rpartition("\n")[2])
            await asyncio.sleep(_POLL_S)
        return None

    async def _serves(self) -> bool:
        client = VllmClient(self.url)
        try:
            await client.get("/health", timeout_s=5)
        except EngineUnavailable:
            return False
        finally:
            await client.close()
        return True

    async def _supervise(self) -> None:
        """Start the server again whenever it dies, at longer and longer intervals if it does not live."""
        loop = asyncio.get_running_loop()
        wait_s = _BACK_OFF_S[0]
        while True:
            assert self._process is not None  # noqa: S101 - there is one once there is a supervisor
            serving_since_s = loop.time()
            code = await _ended(self._process)
            if loop.time() - serving_since_s > _STEADY_S:
                wait_s = _BACK_OFF_S[0]
            log.error("vllm_died", code=code, restart_s=wait_s, tail=self.tail)
            await self._stop()  # what is left of its group
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _BACK_OFF_S[1])
            try:
                await self._start()
            except (ServerFailed, OSError) as failure:
                log.error("vllm_start_failed", error=str(failure))  # noqa: TRY400  its own lines say more than ours
                continue
            self.restarts += 1

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last lines of what the server says; long ones are cut."""
        assert process.stdout is not None  # noqa: S101 - it was asked for
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line longer than the stream's limit
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()[:500]
            self._tail.append(text)
            log.debug("vllm_says", line=text)

    @property
    def tail(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self._tail)

    async def _stop(self) -> None:
        """End the process and all of its group."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            _signal(process.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await _ended(process)
        _signal(process.pid, signal.SIGKILL)
        await _ended(process)
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=2)
            self._reading.cancel()


async def _ended(process: asyncio.subprocess.Process) -> int:
    """The code of a process that has ended. asyncio's own wait goes on while a child of it holds its output open."""
    while process.returncode is None:  # noqa: ASYNC110  nothing else tells
        await asyncio.sleep(_POLL_S)
    return process.returncode


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
