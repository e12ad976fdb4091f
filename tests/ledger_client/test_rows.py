from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, Engine, LargeBinary, MetaData, String, Table, bindparam, select, update
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from gateway.database import Database
from ledger_client import Prepared, Rows

from ..databases import engine_of  # noqa: TID252  the tests are no package of their own

METADATA = MetaData()
PLACE = Table(
    "place",
    METADATA,
    Column("key", String(20), primary_key=True),
    Column("part", BigInteger, primary_key=True, autoincrement=False),
    Column("amount", BigInteger),
    Column("raw", LargeBinary),
)
SUM = Table(
    "total",
    METADATA,
    Column("key", String(20), primary_key=True),
    Column("amount", BigInteger),
    Column("n", BigInteger),
)

_LAST = 2**63 - 1
_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_count = st.integers(-_LAST, _LAST)
_row = st.tuples(_text, _count, st.none() | _count, st.none() | st.binary())


@pytest.fixture
def engine(database: Database) -> Engine:
    return engine_of(database, METADATA)


def stored(engine: Engine, table: Table) -> list[tuple[Any, ...]]:
    with engine.begin() as connection:
        return sorted(tuple(row) for row in connection.execute(select(table)))


def store(engine: Engine, rows: Rows, *of_each: Sequence[tuple[Any, ...]]) -> None:
    with engine.begin() as connection:
        for given_rows in of_each:
            rows.store(connection, given_rows)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(_text, _count, st.none() | _count, st.none() | st.binary()),
        unique_by=lambda row: row[:2],
        max_size=20,
    )
)
def test_what_is_stored_is_what_was_given(engine: Engine, rows: list[tuple[Any, ...]]) -> None:
    with engine.connect() as connection:  # rolled back, so that each example begins without rows
        Rows(PLACE).store(connection, rows)
        found = [tuple(row) for row in connection.execute(select(PLACE))]
        connection.rollback()
    assert sorted(found, key=lambda row: row[:2]) == sorted(rows, key=lambda row: row[:2])


def test_a_row_that_is_there_already_is_refused_with_all_that_came_with_it(engine: Engine) -> None:
    store(engine, Rows(PLACE), [("a", 1, 10, b"\x00\xff")])
    with pytest.raises(IntegrityError):
        store(engine, Rows(PLACE), [("a", 2, 20, None), ("a", 1, 30, None)])
    assert stored(engine, PLACE) == [("a", 1, 10, b"\x00\xff")]


def test_a_row_takes_the_place_of_the_one_that_is_there(engine: Engine) -> None:
    store(engine, Rows(PLACE, "replace"), [("a", 1, 10, b"old"), ("b", 1, 5, b"kept")], [("a", 1, None, b"new")])
    assert stored(engine, PLACE) == [("a", 1, None, b"new"), ("b", 1, 5, b"kept")]


def test_a_row_is_added_to_the_one_that_is_there(engine: Engine) -> None:
    store(engine, Rows(SUM, "add"), [("a", 10, 1), ("b", _LAST, 1)], [("a", -25, 2), ("c", 0, 0)])
    assert stored(engine, SUM) == [("a", -15, 3), ("b", _LAST, 1), ("c", 0, 0)]


def test_a_row_of_another_width_is_refused(engine: Engine) -> None:
    with pytest.raises(Exception, match=r"argument|binding"):
        store(engine, Rows(SUM), [("a", 10)])
    assert stored(engine, SUM) == []


def test_a_prepared_statement_takes_its_parameters_by_name(engine: Engine) -> None:
    chosen = (PLACE.c.part == bindparam("least")) & (PLACE.c.key == bindparam("key"))
    query = Prepared(select(PLACE.c.raw, PLACE.c.amount).where(chosen, PLACE.c.amount > 3))
    with engine.begin() as connection:
        Rows(PLACE).store(connection, [("a", 1, 10, b"x"), ("a", 2, 3, b"y"), ("b", 1, 9, None)])
        assert [tuple(row) for row in query.all(connection, key="a", least=1)] == [(b"x", 10)]
        assert query.scalar(connection, key="a", least=1) == b"x"
        assert len(query.all(connection, key="a", least=2)) == 0
        assert query.scalar(connection, key="a", least=2) is None


def test_a_prepared_statement_may_change_rows(engine: Engine) -> None:
    changed = Prepared(update(PLACE).where(PLACE.c.key == bindparam("k")).values(amount=bindparam("n")))
    with engine.begin() as connection:
        Rows(PLACE).store(connection, [("a", 1, 10, None), ("b", 1, 9, None)])
        assert len(changed.all(connection, k="a", n=None)) == 0
    assert stored(engine, PLACE) == [("a", 1, None, None), ("b", 1, 9, None)]


def test_what_is_prepared_is_part_of_the_transaction(engine: Engine) -> None:
    with engine.connect() as connection:
        Rows(PLACE).store(connection, [("a", 1, 10, None)])
        assert connection.in_transaction()
    assert stored(engine, PLACE) == []


def test_what_a_driver_raises_is_told_as_sqlalchemy_tells_it(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises((OperationalError, ProgrammingError)) as raised:
        Prepared(select(Table("nowhere", MetaData(), Column("secret", String)))).all(connection)
    assert raised.value.orig is not None
