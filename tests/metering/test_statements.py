from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from itertools import count

import pytest
from sqlalchemy import Engine, insert

from ledger_client import StatementSummary
from metering import (
    Books,
    DocumentTerms,
    Line,
    MeteringError,
    PlayerShare,
    Statement,
    earnings,
    entries,
    statement,
)
from metering.tables import posting_table

from .kit import CALLER, Clock, attribution_record, request_id, transaction, usage_record

LAST_OF_2024 = datetime(2024, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
FIRST_OF_2025 = datetime(2025, 1, 1, tzinfo=UTC)
LATER_IN_2025 = datetime(2025, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def history(engine: Engine, books: Books, clock: Clock) -> Engine:
    """Three answers: one at each side of the end of a month and a year, and one later."""
    numbers = count()
    with transaction(engine) as tx:
        books.grant_credit(tx, CALLER, 1_000_000, "welcome", "grant-1")
    for now, served_model, document in (
        (LAST_OF_2024, "chat", "doc_1"),
        (FIRST_OF_2025, "plain", "doc_1"),
        (LATER_IN_2025, "chat", "doc_2"),
    ):
        clock.now = now
        request = request_id(next(numbers))
        player = PlayerShare(id=document, share_ppm=1_000_000, terms=DocumentTerms(owner="ann"))
        with transaction(engine) as tx:
            intent = books.admit(tx, CALLER, 100_000, request)
            record = usage_record(10 * (next(numbers) + 1), 0, served_model=served_model)
            books.record_usage(tx, intent, record)
            books.record_attribution(tx, attribution_record(request, record.charge_nano, [player]))
    return engine


def test_earnings_add_up_by_period_and_group(history: Engine) -> None:
    with history.begin() as connection:
        assert earnings(connection, "ann").total_nano == 2_100 + 4_200 + 6_300
        assert earnings(connection, "ann", "2024-12").total_nano == 2_100
        assert earnings(connection, "ann", "2025-01").total_nano == 4_200
        assert earnings(connection, "ann", "2025-02").total_nano == 0
        assert earnings(connection, "ann", "2025-11").total_nano == 6_300
        assert earnings(connection, "ann", "2025-12").total_nano == 0
        assert earnings(connection, "nobody").total_nano == 0
        by_document = earnings(connection, "ann", group_by="document")
        assert list(by_document.groups.items()) == [("doc_1", 6_300), ("doc_2", 6_300)]
        assert earnings(connection, "ann", group_by="adapter").groups == {None: 12_600}
        assert list(earnings(connection, "ann", group_by="model").groups.items()) == [("chat", 8_400), ("plain", 4_200)]
        days = earnings(connection, "ann", "2025-01", "day")
    assert days.as_json() == {
        "contributor": "ann",
        "period": "2025-01",
        "total_nano": "4200",
        "group_by": "day",
        "groups": [{"key": "2025-01-01", "amount_nano": "4200"}],
    }


def test_a_statement_opens_where_the_one_before_closed(history: Engine) -> None:
    with history.begin() as connection:
        december, january, november, later = (
            statement(connection, "ann", period) for period in ("2024-12", "2025-01", "2025-11", "2026-07")
        )
    heads = [said.summary for said in (december, january, november, later)]
    assert [(head.opening_nano, head.earned_nano, head.closing_nano) for head in heads] == [
        (0, 2_100, 2_100),
        (2_100, 4_200, 6_300),
        (6_300, 6_300, 12_600),
        (12_600, 0, 12_600),
    ]
    assert json.loads(json.dumps(december.as_json())) == {
        "contributor": "ann",
        "period": "2024-12",
        "opening_nano": "0",
        "earned_nano": "2100",
        "corrected_nano": "0",
        "paid_nano": "0",
        "closing_nano": "2100",
        "closed_index": None,
        "lines": [
            {
                "log_index": 2,
                "time": "2024-12-31T23:59:59.999999Z",
                "request_id": request_id(0),
                "role": "owner",
                "kind": "document",
                "item": "doc_1",
                "served_model": "chat",
                "amount_nano": "2100",
                "rating": None,
            }
        ],
        "ratings": {"positive": 0, "negative": 0},
    }


def test_a_statement_as_csv_runs_to_its_closing_balance(history: Engine) -> None:
    with history.begin() as connection:
        text = statement(connection, "ann", "2025-01").as_csv()
    header, opening, line = csv.reader(io.StringIO(text))
    assert dict(zip(header, opening, strict=True)) == dict.fromkeys(header, "") | {
        "role": "opening balance",
        "balance_nano": "2100",
    }
    assert dict(zip(header, line, strict=True)) == {
        "log_index": "4",
        "time": "2025-01-01T00:00:00.000000Z",
        "request_id": request_id(2),
        "role": "owner",
        "kind": "document",
        "item": "doc_1",
        "served_model": "plain",
        "rating": "",
        "amount_nano": "4200",
        "balance_nano": "6300",
    }


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@cmd", '"quoted",comma'])
def test_a_spreadsheet_takes_no_text_for_a_formula(name: str) -> None:
    line = Line(
        log_index=1, position=1, time="2025-01-01T00:00:00.000000Z", period="2025-01", account="contributor:ann",
        amount_nano=-5, role="owner", kind="adapter", item=name, served_model=name, request_id=None,
    )  # fmt: skip
    summary = StatementSummary(
        contributor="ann", period="2025-01", opening_nano=0, earned_nano=0, corrected_nano=-5, paid_nano=0, lines=1
    )
    text = Statement(summary=summary, closed_index=None, lines=(line,), ratings={}).as_csv()
    cells = list(csv.reader(io.StringIO(text)))[2]
    assert cells[5] == cells[6] == (name if name.startswith('"') else f"'{name}")
    assert cells[7:] == ["", "-5", "-5"]


def test_pages_continue_inside_an_entry(engine: Engine) -> None:
    lines = [
        {"log_index": log_index, "position": position, "time": "2025-01-01T00:00:00.000000Z", "period": "2025-01"}
        | {"account": account, "amount_nano": 1, "role": "owner"}
        for log_index in (9, 10)
        for position, account in enumerate(["suspense", "contributor:ann", "contributor:bob", "contributor:ann"])
    ]
    with engine.begin() as connection:
        connection.execute(insert(posting_table), lines)
        first = entries(connection, "ann", limit=3)
        rest = entries(connection, "ann", first.next_after, limit=3)
        exact = entries(connection, "ann", limit=4)
    assert [(line.log_index, line.position) for line in first.lines] == [(9, 1), (9, 3), (10, 1)]
    assert [(line.log_index, line.position) for line in rest.lines] == [(10, 3)]
    assert rest.next_after is None
    assert exact.next_after is None
    assert first.as_json()["next_after"] == "10.1"
    assert [line["log_index"] for line in first.as_json()["entries"]] == [9, 9, 10]


@pytest.mark.parametrize(
    "period", ["", "2025", "2025-1", "2025-13", "2025-00", "2025-01-01", "٢٠٢٥-01", "2025-01\n", 202501]
)
def test_a_period_is_a_month(engine: Engine, period: str) -> None:
    with engine.begin() as connection:
        for ask in (earnings, statement):
            with pytest.raises(MeteringError, match="a period is a month"):
                ask(connection, "ann", period)


def test_what_cannot_be_asked_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        with pytest.raises(MeteringError, match="grouped by one of document"):
            earnings(connection, "ann", group_by="owner")
        for contributor in ("", "Ann", "ann' OR 1=1", "../bob"):
            with pytest.raises(MeteringError, match="contributor must match"):
                earnings(connection, contributor)
        for limit in (0, 1001, -1, True):
            with pytest.raises(MeteringError, match="limit"):
                entries(connection, "ann", limit=limit)
        for cursor in ("", "1", "1.", "01.0", "-1.0", "1.0 ", "1.0.0", "9" * 19 + ".0"):
            with pytest.raises(MeteringError, match="cursor"):
                entries(connection, "ann", cursor)
