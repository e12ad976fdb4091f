"""Servers under measurement: started, pinned, waited for, and asked of the system what they have used."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_TICKS_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class DidNotStart(RuntimeError):  # noqa: N818  it says what is so
    """A server ended, or did not answer in time. The message ends with the last lines that it wrote."""


class Server:
    """A process and all that it starts. Its output goes to a file. cores: that they run on; none for any."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        cores: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - commands of ours
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
                env={**os.environ, **(environment or {})},
            )
        if cores:
            os.sched_setaffinity(self._process.pid, cores)  # at once, so that it is inherited

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def wait_until_answering(self, url: str, *, timeout_s: float = 120) -> None:
        """Return when a GET is answered with success. Raises DidNotStart."""
        self.wait_until(lambda: _answers(url), timeout_s=timeout_s)

    def wait_until(self, so: Callable[[], bool], *, timeout_s: float = 120) -> None:
        """Return when something has come to be. Raises DidNotStart when the process ends first."""
        deadline_s = time.monotonic() + timeout_s
        while not so():
            if self._process.poll() is not None:
                raise DidNotStart(f"it ended with status {self._process.returncode}: {self.last_lines()}")
            if time.monotonic() > deadline_s:
                raise DidNotStart(f"no answer in {timeout_s:.0f} s: {self.last_lines()}")
            time.sleep(0.1)

    def cpu_s(self) -> float:
        """Seconds of processor time that all its processes have used, those that have ended included."""
        return sum(map(_cpu_s, self._tree()))

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(map(_rss_bytes, self._tree()))

    def last_lines(self, count: int = 3) -> str:
        """The last of what it wrote."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip()[:200] for line in lines[-count:])

    def kill(self) -> None:
        """End it and all that it started at once, as a crash would."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def stop(self, *, timeout_s: float = 60) -> int:
        """Tell it to stop, and wait; returns its exit status. What has not stopped in time is killed."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        self._signal(signal.SIGKILL)
        return self._process.wait()

    def _tree(self) -> list[int]:
        found = [self.pid]
        for pid in found:
            found += _children(pid)
        return found

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Stop a server after the block."""
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def split_cores() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """One core for the server under measurement and the others for everything else; of a single core, no pinning."""
    cores = sorted(os.sched_getaffinity(0))
    return ((cores[0],), tuple(cores[1:])) if len(cores) > 1 else ((), ())


def get(url: str) -> str:
    """The body of a GET. Raises OSError."""
    with urllib.request.urlopen(url, timeout=30) as reply:  # noqa: S310 - of this machine
        text: str = reply.read().decode()
        return text


def post(url: str, body: bytes) -> None:
    """POST a JSON body. Raises OSError."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310 - of this machine
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
        reply.read()


def _answers(url: str) -> bool:
    try:
        get(url)
    except (urllib.error.URLError, OSError):
        return False
    return True


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, the state, on; none of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_s(pid: int) -> float:
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / _TICKS_S if fields else 0.0


def _rss_bytes(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[21]) * _PAGE_BYTES if fields else 0


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
