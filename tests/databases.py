"""Databases that a test has to itself, SQLite's and PostgreSQL's, opened as a gateway opens them.

PostgreSQL is the one that DATABASE_URL names, or else a server that the suite starts. It syncs every commit, because
durability is what is tested; each test has a schema of its own there, which is cheap to make and to drop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import sqlalchemy as sa

from benchmarks.ledger.postgres import Server, postgresql, postgresql_schema
from gateway.database import Database

__all__ = ["NewDatabase", "Server", "engine_of", "opened", "postgresql", "postgresql_schema", "sqlite_file"]

NewDatabase = Callable[[], AbstractContextManager[str]]  # gives the URL of an empty database, gone after the block


@contextmanager
def sqlite_file() -> Iterator[str]:
    """The URL of an SQLite database that does not exist yet."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/test.db"


@contextmanager
def opened(new_database: NewDatabase) -> Iterator[Database]:
    """A new database as a gateway has it, without tables."""
    with new_database() as url:
        database = Database(url)
        try:
            yield database
        finally:
            database.close()


def engine_of(database: Database, *declared: sa.MetaData) -> sa.Engine:
    """Make the declared tables; returns an engine whose transactions all hold the write lock where SQLite has one."""
    engine = database.engine.execution_options(write=True)
    with engine.begin() as connection:
        for metadata in declared:
            metadata.create_all(connection)
    return engine
