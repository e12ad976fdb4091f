"""The statements of the write path: as few as may be, and past what SQLAlchemy does for each by itself.

SQLite is a call away, so that most of a small statement's time would go into the preparation of its execution. Here it
is compiled once and handed to the driver as it is; on PostgreSQL, where a round trip costs more, SQLAlchemy executes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import orjson
from sqlalchemy import JSON, Connection, Executable, Insert, String, Table, bindparam, cast, column, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

Conflict: TypeAlias = Literal["refuse", "replace", "add"]


class Rows:
    """How rows are added to a table, many in one statement.

    conflict: what becomes of a row whose primary key is there already: an IntegrityError, or its other columns replace
    those that are there, or are added to them. Binding row after row would cost more than storing them: SQLite's driver
    takes them as they are, PostgreSQL all of them as one JSON document.
    """

    def __init__(self, table: Table, conflict: Conflict = "refuse") -> None:
        self._names = [str(key.name) for key in table.c]  # orjson takes no subclass of str
        self._sqlite = str(_settle(sqlite.insert(table), table, conflict).compile(dialect=sqlite.dialect()))
        document = func.json_to_recordset(cast(bindparam("rows", type_=String), JSON))
        given = document.table_valued(*(column(name, table.c[name].type) for name in self._names))
        stored = select(given.render_derived(with_types=True))
        self._postgresql = _settle(postgresql.insert(table).from_select(self._names, stored), table, conflict)

    def store(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Store rows whose values are in the order of the table's columns. Each key may be among them once."""
        if not rows:
            return
        if connection.dialect.name == "sqlite":
            _on_driver(connection, self._sqlite, rows, many=True)
            return
        document = [dict(zip(self._names, row, strict=True)) for row in rows]
        connection.execute(self._postgresql, {"rows": orjson.dumps(document, default=_bytea).decode()})


class Prepared:
    """One statement, built once. Its parameters are given by name, and all of them; its rows are plain tuples."""

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        compiled: Any = statement.compile(dialect=sqlite.dialect())  # type: ignore[attr-defined]
        self._sqlite = str(compiled)
        self._parameters = [(name, compiled.params[name]) for name in compiled.positiontup or ()]

    def all(self, connection: Connection, **parameters: Any) -> Sequence[Sequence[Any]]:
        """Run it and return its rows, in the order of its columns; those of a statement that gives none are none."""
        if connection.dialect.name == "sqlite":
            values = [parameters.get(name, fixed) for name, fixed in self._parameters]
            return _on_driver(connection, self._sqlite, values)
        result = connection.execute(self._statement, parameters)
        return result.all() if result.returns_rows else ()

    def scalar(self, connection: Connection, **parameters: Any) -> Any:
        """Run it and return the first value of its first row; None of no row."""
        rows = self.all(connection, **parameters)
        return rows[0][0] if rows else None


def _on_driver(
    connection: Connection, statement: str, parameters: Sequence[Any], *, many: bool = False
) -> Sequence[Sequence[Any]]:
    """Run a statement in the connection's transaction; what the driver raises is told as SQLAlchemy would tell it."""
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy would have before its own first statement
    driver: Any = connection.connection.dbapi_connection
    cursor = driver.cursor()
    try:
        if many:
            cursor.executemany(statement, parameters)
            return ()
        cursor.execute(statement, parameters)
        rows: Sequence[Sequence[Any]] = cursor.fetchall()
    except Exception as error:
        errors: Any = connection.dialect.loaded_dbapi
        if not isinstance(error, errors.Error):
            raise
        # Parameters hold prompts and digests of keys, which no message should show.
        raise DBAPIError.instance(statement, None, error, errors.Error, hide_parameters=True) from error
    return rows


def _settle(insertion: Any, table: Table, conflict: Conflict) -> Insert:
    if conflict != "refuse":
        new = {kept.name: insertion.excluded[kept.name] for kept in table.c if not kept.primary_key}
        changes = {name: table.c[name] + value for name, value in new.items()} if conflict == "add" else new
        insertion = insertion.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)
    statement: Insert = insertion
    return statement


def _bytea(value: object) -> str:
    """Write bytes as PostgreSQL reads them."""
    if not isinstance(value, bytes):
        raise TypeError(f"no column holds a {type(value).__name__}")
    return "\\x" + value.hex()
