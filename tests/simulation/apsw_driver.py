"""SQLAlchemy over apsw, whose file system one can write in Python: the URL `sqlite+apsw:///FILE?vfs=NAME`.

Only what the write path asks of a driver: results are read at once, and a value is what SQLite stores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import apsw
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

# What the DB API asks of a module.
paramstyle = "qmark"
sqlite_version_info = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
Binary = bytes


class Error(Exception):
    """Anything that SQLite says."""


class DatabaseError(Error):
    """Everything but a wrong use of the driver."""


class OperationalError(DatabaseError):
    """The database, or what it lies on."""


class IntegrityError(DatabaseError):
    """A constraint."""


ProgrammingError = InterfaceError = NotSupportedError = DatabaseError


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except apsw.ConstraintError as error:
        raise IntegrityError(str(error)) from error
    except apsw.Error as error:
        raise OperationalError(f"{type(error).__name__}: {error}") from error


class Cursor:
    arraysize = 1

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._rows: Iterator[tuple[Any, ...]] = iter(())
        self.description: Sequence[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self.lastrowid = 0

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Cursor:
        with _translated():
            cursor = self._connection.cursor()
            cursor.exec_trace = self._describe  # a description is gone once there are no rows
            self._rows = iter(cursor.execute(statement, tuple(parameters)).fetchall())
            self._count()
        return self

    def executemany(self, statement: str, parameters: Iterable[Sequence[Any]]) -> Cursor:
        with _translated():
            self._connection.cursor().executemany(statement, parameters)
            self.description = None
            self._count()
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(self._rows, None)

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        return [row for _, row in zip(range(size), self._rows, strict=False)]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self._rows)

    def close(self) -> None:
        self._rows = iter(())

    def _describe(self, cursor: apsw.Cursor, _statement: str, _parameters: object) -> bool:
        self.description = cursor.description or None
        return True

    def _count(self) -> None:
        self.rowcount, self.lastrowid = self._connection.changes(), self._connection.last_insert_rowid()


class Connection:
    isolation_level = None  # nothing begins a transaction but a statement that says so

    def __init__(self, database: str, vfs: str | None) -> None:
        with _translated():
            self._connection = apsw.Connection(database, vfs=vfs)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def cursor(self) -> Cursor:
        return Cursor(self._connection)

    def execute(self, statement: str) -> Cursor:
        return self.cursor().execute(statement)

    def commit(self) -> None:
        if self.in_transaction:
            self.execute("COMMIT")

    def rollback(self) -> None:
        if self.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        with suppress(apsw.Error):  # of a disk that is off, on which nothing can be put in order
            self._connection.close(True)


def connect(database: str, *, vfs: str | None = None) -> Connection:
    return Connection(database, vfs)


class Dialect(SQLiteDialect_pysqlite):
    driver = "apsw"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        return sys.modules[__name__]

    def create_connect_args(self, url: sa.URL) -> tuple[list[str], dict[str, Any]]:
        return [url.database or ":memory:"], dict(url.query)

    def on_connect(self) -> None:
        return None


sa.dialects.registry.register("sqlite.apsw", __name__, "Dialect")
