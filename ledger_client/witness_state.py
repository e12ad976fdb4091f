"""What a witness remembers, in an SQLite file of its own: the last checkpoint of each log that it cosigned.

A witness that forgets can be led to cosign a fork. So the file is made once, by `create`, and never by opening it;
the check, the record and the cosignature share one write transaction, which other processes on the file wait for; and
the cosignature leaves only after the commit, which `synchronous=FULL` puts on the disk.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    QueuePool,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import DatabaseError

from ledger_client.checkpoint import Checkpoint, Verifier
from ledger_client.cosignature import WitnessSigner
from ledger_client.witness import Submission, decide, examine, trusted

witness_metadata = MetaData()

witness_checkpoint = Table(
    "witness_checkpoint",
    witness_metadata,
    Column("origin", Text, primary_key=True),
    Column("origin_hash", String(64), nullable=False, unique=True),
    Column("size", Integer, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("time_s", Integer, nullable=False),
    Column("note", Text, nullable=False),
)

_BUSY_TIMEOUT_S = 30
_FULL = 2


class WitnessStateError(RuntimeError):
    """The state file cannot be used; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """The checkpoint of a log that was cosigned last. time_s: when. note: with the log's signatures and ours."""

    head: Checkpoint
    time_s: int
    note: str


class WitnessState:
    """The state file, open. Its methods may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def create(cls, path: Path) -> WitnessState:
        """Make a new state file that only its owner may read. Raises FileExistsError rather than replace one."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        state = cls(_engine(path))
        with state.writing() as connection:
            witness_metadata.create_all(connection)
        return state

    @classmethod
    def open(cls, path: Path) -> WitnessState:
        """Open what `create` made. Raises WitnessStateError when it is not there, or is something else."""
        if not path.is_file():
            raise WitnessStateError(
                f"there is no state of a witness at {path}; restore it, or make a new witness with a new key: "
                "one that has forgotten what it cosigned can be led to cosign a fork"
            )
        engine = _engine(path)
        try:
            made = inspect(engine).has_table(witness_checkpoint.name)
        except DatabaseError:
            made = False
        if not made:
            engine.dispose()
            raise WitnessStateError(f"{path} is not the state of a witness")
        return cls(engine)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that holds the write lock from its start, and is on the disk when this returns."""
        with self._engine.execution_options(write=True).begin() as connection:
            yield connection

    def close(self) -> None:
        """Return every connection."""
        self._engine.dispose()


class Witness:
    """A witness of some logs: one key, one state file. Any number of them may share the two.

    clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        signer: WitnessSigner,
        logs: Iterable[Verifier],
        state: WitnessState,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signer = signer
        self._logs = trusted(logs)
        self._state = state
        self._clock = clock

    def add_checkpoint(self, body: bytes) -> str:
        """Return the cosignature of a submitted checkpoint, a line with its newline. Raises WitnessRefused.

        When it returns, or when its answer is lost, the checkpoint is remembered.
        """
        candidate = examine(Submission.parse(body), self._logs)
        with self._state.writing() as connection:
            last = _last(connection, candidate.head.origin)
            decide(candidate, last.head if last else None)
            # Were the clock set back, two heads would both be the largest that was seen at one time.
            time_s = max(int(self._clock()), last.time_s if last else 1)
            cosignature = self._signer.cosign(candidate.text, time_s)
            lines = [*(line.format() for line in candidate.signatures), cosignature.line]
            connection.execute(delete(witness_checkpoint).where(witness_checkpoint.c.origin == candidate.head.origin))
            connection.execute(
                insert(witness_checkpoint).values(
                    origin=candidate.head.origin,
                    origin_hash=origin_hash(candidate.head.origin),
                    size=candidate.head.size,
                    root=candidate.head.root,
                    time_s=time_s,
                    note=f"{candidate.text}\n{''.join(lines)}",
                )
            )
        return cosignature.line

    def last(self, origin: str) -> Remembered | None:
        """Return the checkpoint of a log that was cosigned last, None where none was."""
        with self._state.reading() as connection:
            return _last(connection, origin)

    def checkpoint(self, hashed_origin: str) -> str | None:
        """Return the note of the checkpoint cosigned last, by `origin_hash` of its log; None where none was."""
        with self._state.reading() as connection:
            return connection.scalar(
                select(witness_checkpoint.c.note).where(witness_checkpoint.c.origin_hash == hashed_origin)
            )


def origin_hash(origin: str) -> str:
    """Return the SHA-256 of an origin in hexadecimal digits, which names the log in a witness's addresses."""
    return hashlib.sha256(origin.encode()).hexdigest()


def _engine(path: Path) -> Engine:
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    engine = create_engine(
        "sqlite://",
        # Not by a path: SQLite would make a file that has gone away anew, and with it a witness without memory.
        creator=lambda: sqlite3.connect(address, uri=True, check_same_thread=False, timeout=_BUSY_TIMEOUT_S),
        poolclass=QueuePool,
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _last(connection: Connection, origin: str) -> Remembered | None:
    row = connection.execute(select(witness_checkpoint).where(witness_checkpoint.c.origin == origin)).one_or_none()
    if row is None:
        return None
    head = Checkpoint(origin=row.origin, size=row.size, root=row.root)
    return Remembered(head=head, time_s=row.time_s, note=row.note)


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    if connection.execute("PRAGMA synchronous").fetchone() != (_FULL,):
        raise WitnessStateError("SQLite does not write the state of a witness through to the disk")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
