from __future__ import annotations

import pytest
from sqlalchemy import Engine

from gateway.database import Database
from ledger_client import Log
from metering import Books

from .kit import Clock, new_books, open_engine


@pytest.fixture
def engine(database: Database) -> Engine:
    return open_engine(database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def books_and_log(clock: Clock) -> tuple[Books, Log]:
    return new_books(clock=clock)


@pytest.fixture
def books(books_and_log: tuple[Books, Log]) -> Books:
    return books_and_log[0]


@pytest.fixture
def log(books_and_log: tuple[Books, Log]) -> Log:
    return books_and_log[1]
