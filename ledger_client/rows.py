"""Many rows at once, past what SQLAlchemy and the drivers do for each row by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import orjson
from sqlalchemy import JSON, Connection, Insert, String, Table, bindparam, cast, column, func, select
from sqlalchemy.dialects import postgresql, sqlite

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
            connection.exec_driver_sql(self._sqlite, list(rows))
            return
        document = [dict(zip(self._names, row, strict=True)) for row in rows]
        connection.execute(self._postgresql, {"rows": orjson.dumps(document, default=_bytea).decode()})


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
