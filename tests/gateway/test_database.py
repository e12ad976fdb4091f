from __future__ import annotations

import json
import sqlite3
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway import answers
from gateway.claims import append
from gateway.database import Database, DatabaseError
from gateway.identifiers import new_id
from gateway.registry import Registry, RegistryError
from gateway.tables import ALL_METADATA
from gateway.transactions import ledger_write
from ledger_client import Log, Signer
from metering import earnings, entries, open_intents, statement

from ..databases import Server  # noqa: TID252  the tests are no package of their own

SQLITE = pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("new_database", ["postgresql"], indirect=True)
_PARTIAL = ("posting_by_account", "posting_by_period", "answer_pending", "intent_open")
_POSTGRESQL_SETTINGS = ("fsync", "synchronous_commit")


@SQLITE
def test_the_database_and_its_journals_are_readable_by_their_owner_alone(database: Database) -> None:
    database.migrate()
    path = Path(str(database.engine.url.database))
    files = list(path.parent.iterdir())
    assert {file.name for file in files} >= {path.name, f"{path.name}-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@SQLITE
def test_every_connection_to_sqlite_is_durable(database: Database) -> None:
    with database.read() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@SQLITE
@pytest.mark.parametrize(
    ("ignored", "told"),
    [
        ("synchronous", "journal_mode=wal and synchronous=1, .* lose acknowledged records"),
        ("journal_mode", "journal_mode=delete and synchronous=2, .* lose acknowledged records"),
    ],
)
def test_an_sqlite_that_cannot_be_made_durable_is_not_used(database: Database, ignored: str, told: str) -> None:
    def ignore(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous=NORMAL" if ignored == "synchronous" else "SELECT 1")
        connection.set_authorizer(
            lambda action, name, value, *_: (
                sqlite3.SQLITE_IGNORE
                if action == sqlite3.SQLITE_PRAGMA and name == ignored and value
                else sqlite3.SQLITE_OK
            )
        )

    sa.event.listen(database.engine, "connect", ignore, insert=True)
    with pytest.raises(DatabaseError, match=told), database.read():
        pytest.fail("it was used")


@POSTGRESQL
def test_every_connection_to_postgresql_is_durable(database: Database) -> None:
    careless = database.engine.url.query["options"] + " -csynchronous_commit=off"
    other = Database(database.engine.url.update_query_dict({"options": careless}).render_as_string(hide_password=False))
    for each in (database, other):
        with each.read() as connection:
            settings = {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in _POSTGRESQL_SETTINGS}
        assert settings == dict.fromkeys(_POSTGRESQL_SETTINGS, "on")
    other.close()


@POSTGRESQL
@pytest.mark.parametrize("chosen", ["remote_apply", "local"])
def test_what_an_operator_chose_of_the_durable_settings_stays(database: Database, chosen: str) -> None:
    options = database.engine.url.query["options"] + f" -csynchronous_commit={chosen}"
    other = Database(database.engine.url.update_query_dict({"options": options}).render_as_string(hide_password=False))
    with other.read() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == chosen
    other.close()


def test_a_postgresql_that_does_not_sync_is_not_used() -> None:
    with Server(fsync="off") as server:
        database = Database(server.url.render_as_string(hide_password=False))
        with pytest.raises(DatabaseError, match=r"fsync=off .* lose acknowledged"), database.write():
            pytest.fail("it was used")
        database.close()


def test_a_schema_that_is_not_current_is_told_how_to_become_so(database: Database) -> None:
    with pytest.raises(DatabaseError, match="tributary migrate"):
        database.require_current_schema()
    database.migrate()
    database.require_current_schema()
    database.migrate()  # again is harmless


def test_migrations_make_exactly_the_tables_that_the_packages_declare(database: Database) -> None:
    database.migrate()
    inspector = sa.inspect(database.engine)
    declared = {name: table for metadata in ALL_METADATA for name, table in metadata.tables.items()}
    assert set(inspector.get_table_names()) - {"alembic_version"} == set(declared)
    for name, table in declared.items():
        columns = {column["name"]: column for column in inspector.get_columns(name)}
        assert set(columns) == set(table.columns.keys()), name
        for column in table.columns:
            assert columns[column.name]["nullable"] == column.nullable, f"{name}.{column.name}"
            assert repr(columns[column.name]["type"]) == repr(column.type.dialect_impl(database.engine.dialect)) or str(
                columns[column.name]["type"]
            ) == column.type.compile(database.engine.dialect), f"{name}.{column.name}"
        indexes = [index for index in inspector.get_indexes(name) if "duplicates_constraint" not in index]
        assert {index["name"] for index in indexes} == {index.name for index in table.indexes}
        unique = {tuple(found["column_names"]) for found in inspector.get_unique_constraints(name)}
        assert unique == {
            tuple(column.name for column in constraint.columns)
            for constraint in table.constraints
            if isinstance(constraint, sa.UniqueConstraint)
        }, name
        checks = {found["name"] for found in inspector.get_check_constraints(name)}
        assert checks == {c.name for c in table.constraints if isinstance(c, sa.CheckConstraint)}, name
        assert inspector.get_pk_constraint(name)["constrained_columns"] == [c.name for c in table.primary_key], name


@SQLITE
def test_writers_exclude_one_another_from_their_first_statement(database: Database) -> None:
    two = Database(database.engine.url.render_as_string(hide_password=False))
    database.migrate()
    with database.write() as connection:
        connection.execute(sa.text("SELECT 1"))
        with two.read() as reader:
            assert reader.exec_driver_sql("SELECT 1").scalar_one() == 1
            reader.exec_driver_sql("PRAGMA busy_timeout=0")
        with pytest.raises(sa.exc.OperationalError, match="locked"), two.write():
            pytest.fail("a second writer began while the first one held the lock")


def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    database.migrate()
    with suppress(RuntimeError), database.write() as connection:
        connection.exec_driver_sql("INSERT INTO contributor VALUES ('a', 'A', 0, '')")
        raise RuntimeError("change of mind")
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM contributor").scalar_one() == 0


@pytest.mark.parametrize("written", ["\0", "req_\0", "\ud800", "req_" + "a" * 27, "req_" + "A" * 26, ""])
def test_what_no_row_can_be_named_is_not_found(database: Database, written: str) -> None:
    database.migrate()
    registry = Registry(Log(Signer.generate("example.com/log")))
    with database.read() as connection:
        for unknown in (written, new_id("req")):
            with pytest.raises(answers.UnknownRequestError):
                answers.find(connection, unknown)
            with pytest.raises(RegistryError, match="there is no contributor"):
                registry.contributor(connection, unknown)


def test_books_of_the_first_schema_are_summed_up_when_they_are_migrated(database: Database) -> None:
    database.migrate("0001")
    rows = [
        (1, 0, "2025-01-31T23:59:59.000000Z", "suspense", -100, "split", None, None),
        (1, 1, "2025-01-31T23:59:59.000000Z", "contributor:ada", 60, "owner", "document", "doc_1"),
        (1, 2, "2025-01-31T23:59:59.000000Z", "contributor:ada", 40, "dataset", "adapter", "qa"),
        (2, 1, "2025-02-01T00:00:00.000000Z", "contributor:ada", 7, "owner", "document", "doc_1"),
    ]
    columns = ["log_index", "position", "time", "account", "amount_nano", "role", "kind", "item", "served_model"]
    posting = sa.table("posting", *map(sa.column, columns))
    with database.write() as connection:
        connection.execute(sa.insert(posting), [dict(zip(columns, (*row, "chat"), strict=True)) for row in rows])
    database.migrate()
    with database.read() as connection:
        assert [earnings(connection, "ada", period).total_nano for period in (None, "2025-01", "2025-02")] == [
            107,
            100,
            7,
        ]
        assert earnings(connection, "ada", "2025-01", "document").groups == {"doc_1": 60, None: 40}
        assert earnings(connection, "ada", group_by="adapter").groups == {"qa": 40, None: 67}
        assert earnings(connection, "ada", group_by="day").groups == {"2025-01-31": 100, "2025-02-01": 7}
        assert earnings(connection, "ada", group_by="model").groups == {"chat": 107}
        assert statement(connection, "ada", "2025-02").summary.opening_nano == 100


def test_adapters_of_the_second_schema_get_their_versions_from_the_log(database: Database) -> None:
    database.migrate("0002")
    ledger = Log(Signer.generate("example.com/log"))
    claimed = {
        "base_model": "base",
        "base_digest": "b" * 64,
        "developer": "lab",
        "datasets": [{"contributor": "ada", "weight": 3}],
    }
    with ledger_write(database, ledger) as transaction:
        for name, number in (("qa", 0), ("qa", 1), ("gone", 0)):
            data = claimed | {"adapter": name, "digest": f"d{number}"}
            append(transaction, f"adapter:{name}", "adapter.registered", data, number=number)
        columns = [
            "name",
            "digest",
            "path",
            "base_model",
            "developer",
            "datasets",
            "log_index",
            "created_at",
            "removed_at",
        ]
        rows = [
            ("qa", "d1", "/qa", "base", "lab", json.dumps([["ada", 3]]), 1, "2025-02-01T00:00:00.000Z", None),
            (
                "gone",
                "d0",
                "/gone",
                "base",
                "lab",
                json.dumps([["ada", 3]]),
                2,
                "2025-02-02T00:00:00.000Z",
                "2025-02-03T00:00:00.000Z",
            ),
        ]
        before = sa.table("adapter", *map(sa.column, columns))
        transaction.connection.execute(sa.insert(before), [dict(zip(columns, row, strict=True)) for row in rows])
    database.migrate()
    adapters = Registry(ledger).adapters
    with database.read() as connection:
        gone, replaced, newest = adapters.all(connection)
        assert adapters.offered(connection) == [newest] == [adapters.find(connection, "qa")]
        for adapter in (gone, replaced, newest):
            claim = adapters.claim_at(connection, adapter.log_index)
            assert claim.data() == adapter.data()
    assert (newest.version, newest.source, newest.datasets, newest.removed_at) == (2, "/qa", (("ada", 3),), None)
    assert (newest.proven_at, newest.created_at) == ("2025-02-01T00:00:00.000Z",) * 2
    assert (replaced.version, replaced.digest, replaced.source) == (1, "d0", "")
    assert replaced.removed_at == newest.created_at
    assert (gone.version, gone.removed_at) == (1, "2025-02-03T00:00:00.000Z")


def test_what_is_sought_among_many_rows_is_found_by_an_index(database: Database) -> None:
    """A partial index is used only by a query that repeats its condition."""
    database.migrate()
    asked: list[tuple[str, object]] = []

    def note(_connection: object, _cursor: object, sql: str, parameters: object, *_: object) -> None:
        asked.append((sql, parameters))

    with database.read() as connection:
        sa.event.listen(database.engine, "before_cursor_execute", note)
        entries(connection, "ada", after="3.1")
        statement(connection, "ada", "2025-01")
        answers.pending(connection)
        answers.backlog(connection)
        list(open_intents(connection, "gateway-1"))
        list(open_intents(connection, admitted_before="2025-01-01T00:00:00.000000Z"))
        sa.event.remove(database.engine, "before_cursor_execute", note)
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        if explain == "EXPLAIN":
            connection.exec_driver_sql("SET enable_seqscan = off")  # which a table without rows would get
        plans = [
            " ".join(str(row) for row in connection.exec_driver_sql(f"{explain} {sql}", parameters))
            for sql, parameters in asked
        ]
    used = Counter(index for plan in plans for index in _PARTIAL if index in plan)
    assert used == {"posting_by_account": 1, "posting_by_period": 2, "answer_pending": 2, "intent_open": 2}
