from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from itertools import count

import pytest
from markupsafe import escape
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
    fsck_books,
    record_feedback,
    statement,
    summaries,
    supersede,
)
from metering.tables import posting_table

from .kit import (
    CALLER,
    LOG,
    Clock,
    attribution_record,
    close_period,
    pay_out,
    request_id,
    transaction,
    usage_record,
)

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


def one_line(**texts: str) -> Statement:
    """A statement whose only line carries texts that only its caller vouches for."""
    line = Line(
        log_index=1, position=1, time="2025-01-01T00:00:00.000000Z", period="2025-01", account="contributor:ann",
        amount_nano=-5, role="owner", kind="adapter", request_id=None, **texts,
    )  # fmt: skip
    summary = StatementSummary(
        contributor="ann", period="2025-01", opening_nano=0, earned_nano=0, corrected_nano=-5, paid_nano=0, lines=1
    )
    return Statement(summary=summary, closed_index=None, lines=(line,), ratings={})


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
    text = one_line(item=name, served_model=name).as_csv()
    cells = list(csv.reader(io.StringIO(text)))[2]
    assert cells[5] == cells[6] == (name if name.startswith('"') else f"'{name}")
    assert cells[7:] == ["", "-5", "-5"]


@pytest.fixture
def settled(history: Engine, books: Books, clock: Clock) -> Engine:
    """The same, with the year 2024 paid and closed, an answer corrected after that, and two rated."""
    clock.now = LATER_IN_2025
    with transaction(history) as tx:
        pay_out(books, tx, "ann", 2_000, "2024-12")
        close_period(books, tx, "2024-12")
        player = PlayerShare(id="doc_3", share_ppm=1_000_000, terms=DocumentTerms(owner="bob"))
        supersede(books, tx, attribution_record(request_id(0), 3_000, [player]), "another's document")
        record_feedback(books, tx, request_id(2), 1)
        record_feedback(books, tx, request_id(4), -1)
    return history


def test_a_statement_leads_from_its_opening_balance_to_its_closing_one(settled: Engine) -> None:
    with settled.connect() as connection:
        said = [statement(connection, "ann", period) for period in ("2024-12", "2025-01", "2025-11", "2025-12")]
    assert [
        (head.opening_nano, head.earned_nano, head.corrected_nano, head.paid_nano, head.closing_nano, head.lines)
        for head in (one.summary for one in said)
    ] == [
        (0, 2_100, 0, 0, 2_100, 1),
        (2_100, 4_200, 0, 0, 6_300, 1),
        (6_300, 6_300, -2_100, -2_000, 8_500, 3),
        (8_500, 0, 0, 0, 8_500, 0),
    ]
    for one in said:
        closing_nano = [*one.balances_nano][-1] if one.lines else one.summary.opening_nano
        assert closing_nano == one.summary.closing_nano
        assert len(one.lines) == one.summary.lines
    assert [one.closed_index for one in said] == [8, None, None, None]
    assert [(line.role, line.amount_nano) for line in said[2].lines] == [
        ("owner", 6_300),
        ("payout", -2_000),
        ("correction", -2_100),
    ]


def test_an_entry_of_a_closed_period_stands_in_the_first_that_is_open(
    history: Engine, books: Books, clock: Clock
) -> None:
    with transaction(history) as tx:
        close_period(books, tx, "2024-12")
        assert (tx.last_closed(), tx.period_of("2024-12-31T23:00:00Z")) == ("2024-12", "2025-01")
    with history.connect() as connection:
        before = statement(connection, "ann", "2024-12")
    clock.now = LAST_OF_2024  # of a gateway whose clock is late
    with transaction(history) as tx:
        assert tx.last_closed() == "2024-12"
        intent = books.admit(tx, CALLER, 100_000, request_id(9))
        record = usage_record(10, 0)
        books.record_usage(tx, intent, record)
        player = PlayerShare(id="doc_1", share_ppm=1_000_000, terms=DocumentTerms(owner="ann"))
        index = books.record_attribution(tx, attribution_record(request_id(9), record.charge_nano, [player]))
    with history.connect() as connection:
        assert statement(connection, "ann", "2024-12") == before
        january = statement(connection, "ann", "2025-01")
        assert [(line.log_index, line.period, line.time[:7]) for line in january.lines] == [
            (4, "2025-01", "2025-01"),
            (index, "2025-01", "2024-12"),
        ]
        assert january.summary.earned_nano == 4_200 + 1_050
        assert earnings(connection, "ann", "2024-12").total_nano == 2_100
        assert earnings(connection, "ann", "2025-01", "day").groups == {"2024-12-31": 1_050, "2025-01-01": 4_200}
        assert fsck_books(connection, LOG) == []


def test_a_statement_as_json_csv_and_html_says_the_same(settled: Engine) -> None:
    with settled.connect() as connection:
        said = statement(connection, "ann", "2025-11")
    whole = json.loads(json.dumps(said.as_json()))
    indexes = [line.log_index for line in said.lines]
    assert [line["log_index"] for line in whole["lines"]] == indexes
    assert {name: whole[name] for name in ("opening_nano", "earned_nano", "corrected_nano", "paid_nano")} == {
        "opening_nano": "6300",
        "earned_nano": "6300",
        "corrected_nano": "-2100",
        "paid_nano": "-2000",
    }
    assert whole["closing_nano"] == "8500"
    assert whole["ratings"] == {"positive": 0, "negative": 1}
    assert [line["rating"] for line in whole["lines"]] == [-1, None, None]

    header, opening, *rows = csv.reader(io.StringIO(said.as_csv()))
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert [int(row["log_index"]) for row in cells] == indexes
    assert [(row["role"], row["rating"], row["amount_nano"], row["balance_nano"]) for row in cells] == [
        ("owner", "-1", "6300", "12600"),
        ("payout", "", "-2000", "10600"),
        ("correction", "", "-2100", "8500"),
    ]
    assert opening[-1] == "6300"

    page = said.as_html("Ann")
    for index in indexes:
        assert f"<td>{index}</td>" in page
    for line in said.lines:
        for text in (line.role, line.item or "", line.request_id or "", line.time[:19].replace("T", " ")):
            assert text in page
    for amount in ("0.000006300", "−0.000002100", "−0.000002000", "0.000008500", "0.000012600"):
        assert f">{amount}</td>" in page
    assert page.count("<td>−1</td>") == 1
    assert "The period is open" in page


def test_a_page_says_which_entry_closed_the_period_and_that_nothing_was_posted(settled: Engine) -> None:
    with settled.connect() as connection:
        assert "closed by log entry 8" in statement(connection, "ann", "2024-12").as_html("Ann")
        assert "Nothing was posted" in statement(connection, "ann", "2025-12").as_html("Ann")


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x>', "Ann & 'Bob'", "{{ 7 * 7 }}"])
def test_a_page_takes_no_name_for_markup(name: str) -> None:
    page = one_line(item=name, served_model=name).as_html(name)
    shown = str(escape(name))
    assert page.count(shown) == 4  # in the title, the heading and two cells
    assert shown == name or name not in page
    assert "<script" not in page
    assert "<img" not in page


def test_heads_are_of_all_who_had_a_balance_or_a_line(settled: Engine, books: Books) -> None:
    with transaction(settled) as tx:
        pay_out(books, tx, "ann", 8_500, "2025-01")
    with settled.connect() as connection:
        for period in ("2024-11", "2024-12", "2025-01", "2025-11", "2025-12"):
            heads = summaries(connection, period)
            assert [head.contributor for head in heads] == {
                "2024-11": [],
                "2024-12": ["ann"],
                "2025-01": ["ann"],
                "2025-11": ["ann", "bob"],
                "2025-12": ["bob"],
            }[period]
            assert heads == [statement(connection, head.contributor, period).summary for head in heads]
        assert statement(connection, "ann", "2025-12").summary.closing_nano == 0


def test_heads_are_ordered_by_the_bytes_of_the_contributor(engine: Engine, books: Books) -> None:
    names = ["a", "a-b", "a0", "ab", "b", "0"]
    with transaction(engine) as tx:
        for name in names:
            pay_out(books, tx, name, 1, "2024-12")
    with engine.connect() as connection:
        assert [head.contributor for head in summaries(connection, "2025-01")] == sorted(names, key=str.encode)


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
