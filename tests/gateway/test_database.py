from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.database import Database, DatabaseError
from gateway.tables import ALL_METADATA


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 't.db'}")


def test_the_database_and_its_journals_are_readable_by_their_owner_alone(tmp_path: Path, database: Database) -> None:
    database.migrate()
    files = list(tmp_path.iterdir())
    assert {file.name for file in files} >= {"t.db", "t.db-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_every_connection_is_durable(database: Database) -> None:
    with database.read() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


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
        assert {index["name"] for index in inspector.get_indexes(name)} == {index.name for index in table.indexes}
        assert inspector.get_pk_constraint(name)["constrained_columns"] == [c.name for c in table.primary_key], name


def test_writers_exclude_one_another_from_their_first_statement(tmp_path: Path) -> None:
    one, two = (Database(f"sqlite:///{tmp_path / 't.db'}") for _ in range(2))
    one.migrate()
    with one.write() as connection:
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
