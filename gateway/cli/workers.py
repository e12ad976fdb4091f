"""Several server processes behind one address, on one database.

The parent holds the listening socket and no other part of a gateway. Each worker is a gateway with an id of its own;
the first also does what is to be done once: sweeping, shipping, asking witnesses. A worker that dies is started again,
and at its start voids what it left open. A worker whose parent dies stops as if it were told to.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import structlog
from prometheus_client.multiprocess import mark_process_dead

from gateway.metrics import METRICS_FOLDER
from gateway.settings import Settings
from ledger_client import Backoff

PYTHON = [sys.executable, "-m", "gateway.cli"]
STEADY_S = 30.0  # a worker that ran so long did not die of its start
STOP_S = 60.0
log = structlog.get_logger(__name__)


class WorkerFailedError(RuntimeError):
    """A worker does not come up; it said why on standard error."""


def worker_settings(settings: Settings, number: int) -> Settings:
    """What a worker runs with. number: from 0, the one that does what is done once."""
    workers = settings.server.workers
    limits = settings.limits
    share = {
        "concurrent": -(-limits.concurrent // workers),
        "concurrent_per_key": limits.concurrent_per_key and -(-limits.concurrent_per_key // workers),
        "queue": -(-limits.queue // workers),
    }
    server_id = settings.server.id if number == 0 else f"{settings.server.id}-{number + 1}"
    changes = {
        "server": settings.server.model_copy(update={"id": server_id}),
        "limits": limits.model_copy(update=share),
    }
    return settings.model_copy(update=changes)


class Lifeline:
    """A worker's end of the line to its parent: it says that it serves, and notices when the parent is gone."""

    def __init__(self, descriptor: int) -> None:
        self._line = socket.socket(fileno=descriptor)
        self._line.setblocking(False)

    def serving(self, on_orphaned: Callable[[], None]) -> None:
        """Tell the parent that requests are taken; from now on `on_orphaned` is called when it dies."""
        self._line.send(b"+")
        asyncio.get_running_loop().add_reader(self._line, self._ended, on_orphaned)

    def _ended(self, on_orphaned: Callable[[], None]) -> None:
        asyncio.get_running_loop().remove_reader(self._line)
        on_orphaned()


class Workers:
    """The worker processes. command: what starts one, but for its number, its listening socket and its lifeline."""

    def __init__(self, command: list[str], count: int, listener: socket.socket, metrics: Path) -> None:
        self._command = command
        self._count = count
        self._listener = listener
        self._environment = {**os.environ, METRICS_FOLDER: str(metrics)}
        self._metrics = metrics
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._serving: set[int] = set()
        self._reloads = 0
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run until `stop`, then return when every worker has closed its books. Raises WorkerFailedError."""
        stopping = asyncio.create_task(self._stopping.wait())
        keepers: list[asyncio.Task[None]] = []
        try:
            for number in range(self._count):  # one by one: the first brings what the others find done
                up = asyncio.get_running_loop().create_future()
                keepers.append(asyncio.create_task(self._keep(number, up)))
                await asyncio.wait([up, stopping, *keepers], return_when=asyncio.FIRST_COMPLETED)
                if stopping.done() or any(keeper.done() for keeper in keepers):
                    break
            else:
                log.info("workers_serving", workers=self._count)
            await asyncio.wait([stopping, *keepers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await asyncio.wait(keepers)
            for process in self._running.values():
                process.kill()
            stopping.cancel()
        for keeper in keepers:
            keeper.result()

    def stop(self) -> None:
        """Have every worker finish what it is answering."""
        self._stopping.set()
        self._signal(signal.SIGTERM, self._running.keys())

    def reload(self) -> None:
        """Have every worker take up the configuration as it is now.

        SIGHUP ends a process that does not listen for it yet, so a worker that is coming up is told when it serves.
        """
        self._reloads += 1
        self._signal(signal.SIGHUP, self._serving)

    def _signal(self, signal_number: signal.Signals, numbers: Iterable[int]) -> None:
        for number in numbers:
            with suppress(ProcessLookupError):
                self._running[number].send_signal(signal_number)

    async def _keep(self, number: int, up: asyncio.Future[None]) -> None:
        """Keep one worker running."""
        backoff = Backoff(first_s=0.5, limit_s=30)
        while not self._stopping.is_set():
            started_s = asyncio.get_running_loop().time()
            code = await self._run_one(number, up)
            if self._stopping.is_set():
                return
            if not up.done():
                raise WorkerFailedError(f"worker {number + 1} did not come up; it ended with status {code}")
            if asyncio.get_running_loop().time() - started_s > STEADY_S:
                backoff.succeeded()
            wait_s = backoff.failed()
            log.error("worker_died", worker=number + 1, status=code, restart_s=round(wait_s, 1))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)

    async def _run_one(self, number: int, up: asyncio.Future[None]) -> int:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        descriptors = (self._listener.fileno(), theirs.fileno())
        reloads = self._reloads
        with ours, theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *map(str, (number, *descriptors)),
                pass_fds=descriptors,
                env=self._environment,
            )
            theirs.close()
            self._running[number] = process
            if self._stopping.is_set():
                process.terminate()
            told = asyncio.create_task(asyncio.get_running_loop().sock_recv(ours, 1))
            try:
                if await told:
                    self._serving.add(number)
                    if reloads != self._reloads:
                        self._signal(signal.SIGHUP, [number])
                    if not up.done():
                        up.set_result(None)
                return await process.wait()
            finally:
                told.cancel()
                self._serving.discard(number)
                del self._running[number]
                # What it counted stays counted.
                mark_process_dead(process.pid, self._metrics)  # type: ignore[no-untyped-call]


async def run_workers(settings: Settings, config: Path, listener: socket.socket) -> None:
    """Serve from several processes until a signal."""
    command = [*PYTHON, "serve-worker", f"--config={config}"]
    listener.listen(2048)
    host, port = listener.getsockname()[:2]
    with tempfile.TemporaryDirectory(prefix="tributary-metrics-") as metrics:
        workers = Workers(command, settings.server.workers, listener, Path(metrics))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, workers.stop)
        loop.add_signal_handler(signal.SIGHUP, workers.reload)
        log.info("listening", url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        await workers.run()
