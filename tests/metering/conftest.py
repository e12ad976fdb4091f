from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ledger_client import Log
from metering import Books

from .kit import Clock, new_books, open_engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(tmp_path / "books.db")
    yield engine
    engine.dispose()


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
