"""The one engine to the database: durability, transactions, migrations.

A write transaction on SQLite begins IMMEDIATE, so that the log's head row is read under the write lock and two
processes can never assign the same log index. `synchronous=FULL` because under a power cut `NORMAL` loses
acknowledged records, as PostgreSQL does without `synchronous_commit` or `fsync`: no connection that would is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.migration
import alembic.script
import sqlalchemy as sa
from filelock import FileLock, Timeout

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 30_000


class DatabaseError(RuntimeError):
    """The database cannot be used; the message says what to do."""


class Database:
    """Opens read and write transactions on one SQLAlchemy engine."""

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        self._sqlite = parsed.get_backend_name() == "sqlite"
        if self._sqlite and parsed.database:
            _create_private(Path(parsed.database))
        # Parameters hold prompts and keys' digests, which no error message should show.
        self.engine = sa.create_engine(parsed, pool_size=16, max_overflow=16, hide_parameters=True)
        sa.event.listen(self.engine, "connect", _prepare_sqlite if self._sqlite else _prepare_postgresql)
        if self._sqlite:
            sa.event.listen(self.engine, "begin", _begin)
        self._writer = self.engine.execution_options(write=True)
        # A read on SQLite sees one snapshot anyway; a server database has to be asked for it.
        self._reader = self.engine if self._sqlite else self.engine.execution_options(isolation_level="REPEATABLE READ")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, from one snapshot."""
        with self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its first statement and commits on exit."""
        with self._writer.begin() as connection:
            yield connection

    @contextmanager
    def claimed_by(self, gateway_id: str) -> Iterator[None]:
        """Hold the right to be the gateway of this id; raises DatabaseError while another process holds it.

        A gateway voids at its start what an earlier process of its id left open, so two must never run at once.
        """
        taken = DatabaseError(f"a gateway with the id {gateway_id!r} runs on this database; set another server.id")
        if self._sqlite:
            lock = FileLock(f"{self.engine.url.database}.{gateway_id}.lock", timeout=0, mode=0o600)
            try:
                lock.acquire()
            except Timeout:
                raise taken from None
            try:
                yield
            finally:
                lock.release()
            return
        key = int.from_bytes(hashlib.sha256(gateway_id.encode()).digest()[:8], "big", signed=True)
        with self.engine.connect() as connection:  # the lock is the session's, and ends with it however it ends
            connection.detach()  # from the pool, which would keep the session
            if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar_one():
                raise taken
            connection.commit()
            yield

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema to this version's, or as far as a revision before it."""
        with self.write() as connection:
            config = _alembic_config()
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, revision)

    def require_current_schema(self) -> None:
        """Raise DatabaseError unless the schema is this version's."""
        head = alembic.script.ScriptDirectory.from_config(_alembic_config()).get_current_head()
        with self.read() as connection:
            current = alembic.migration.MigrationContext.configure(connection).get_current_revision()
        if current != head:
            raise DatabaseError(
                f"the database's schema is at {current or 'nothing'}, not at {head}; run `tributary migrate`"
            )

    def close(self) -> None:
        """Return every connection."""
        self.engine.dispose()


def _alembic_config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _create_private(path: Path) -> None:
    """Create the file readable by its owner alone; SQLite gives its journal files the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}")
    # A pragma that cannot be obeyed says nothing, so each is read back.
    journal_mode, synchronous = (
        connection.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in ("journal_mode", "synchronous")
    )
    if (journal_mode, synchronous) != ("wal", 2):
        connection.close()
        raise DatabaseError(
            f"SQLite runs with journal_mode={journal_mode} and synchronous={synchronous}, not with wal and 2 (FULL), "
            "and would lose acknowledged records; keep the database on a local, writable file system"
        )


def _prepare_postgresql(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
        fsync, synchronous_commit = cursor.fetchone()
        if synchronous_commit == "off":  # the others wait for the disk here, and some for a standby's too
            cursor.execute("SET synchronous_commit = on")
            cursor.execute("SELECT current_setting('synchronous_commit')")
            (synchronous_commit,) = cursor.fetchone()
    connection.commit()  # a setting made in a transaction ends with it unless that commits
    if fsync != "on" or synchronous_commit == "off":
        connection.close()
        raise DatabaseError(
            f"PostgreSQL runs with fsync={fsync} and synchronous_commit={synchronous_commit}, "
            "and would lose acknowledged records; switch both on"
        )


def _begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
