from __future__ import annotations

import pytest
from sqlalchemy import Engine

from gateway.database import Database
from metering import Books

from .kit import Clock, new_books, open_engine


@pytest.fixture
def engine(database: Database) -> Engine:
    return open_engine(database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def books(clock: Clock) -> Books:
    return new_books(clock=clock)
