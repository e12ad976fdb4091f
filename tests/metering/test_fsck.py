"""The checker of the books: silent over an honest history, and naming each row that was touched."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from ledger_client import Finding, Log
from metering import Books, fsck_books

from .kit import CALLER, attribution_record, request_id, usage_record

CHARGED, VOIDED, OPEN, FREE, WAITING = map(request_id, range(5))
CREDIT, USAGE, VOID, ATTRIBUTION, FREE_USAGE, WAITING_USAGE = range(6)  # log indexes


@pytest.fixture
def history(engine: Engine, books: Books, log: Log) -> Engine:
    """Books with one request of each fate."""
    with engine.begin() as connection:
        books.grant_credit(connection, CALLER, 1_000_000, "welcome", "grant-1")
        intents = [books.admit(connection, CALLER, 100_000, request) for request in (CHARGED, VOIDED, FREE, WAITING)]
        books.admit(connection, CALLER, 70_000, OPEN)
        usage = usage_record()
        assert books.record_usage(connection, intents[0], usage) == USAGE
        assert books.void(connection, intents[1], "the client left") == VOID
        assert books.record_attribution(connection, attribution_record(CHARGED, usage.charge_nano)) == ATTRIBUTION
        assert books.record_usage(connection, intents[2], usage_record(0, 0)) == FREE_USAGE
        assert books.record_usage(connection, intents[3], usage) == WAITING_USAGE
        log.seal(connection)
    return engine


def findings(engine: Engine, log: Log) -> list[Finding]:
    with engine.begin() as connection:
        return fsck_books(connection, log)


def test_an_honest_history_has_no_findings(history: Engine, log: Log) -> None:
    assert findings(history, log) == []


def test_empty_books_have_no_findings(engine: Engine, log: Log) -> None:
    assert findings(engine, log) == []


@pytest.mark.parametrize(
    ("tampering", "expected"),
    [
        pytest.param(
            "UPDATE posting SET account = 'contributor:mallory' WHERE log_index = 3 AND account = 'contributor:bob'",
            {("I3", ATTRIBUTION, "account is 'contributor:mallory', not 'contributor:bob'")},
            id="posting moved to another account",
        ),
        pytest.param(
            "UPDATE posting SET amount_nano = amount_nano + 1 WHERE log_index = 3 AND account = 'platform'",
            {("I3", ATTRIBUTION, "amount_nano is 2701, not 2700"), ("I3", None, "of platform is 2700")},
            id="posting raised",
        ),
        pytest.param(
            "UPDATE posting SET time = '2025-02-01T00:00:00.000000Z' WHERE log_index = 3 AND position = 1",
            {("I3", ATTRIBUTION, "posting 1 is not the entry's: time is")},
            id="posting moved to another month",
        ),
        pytest.param(
            "UPDATE posting SET item = 'doc_9' WHERE log_index = 3 AND item = 'doc_1'",
            {("I3", ATTRIBUTION, "item is 'doc_9', not 'doc_1'")},
            id="posting earned by another document",
        ),
        pytest.param(
            "UPDATE posting SET served_model = 'other' WHERE log_index = 3 AND position = 0",
            {("I3", ATTRIBUTION, "served_model is 'other', not 'chat'")},
            id="posting of another model",
        ),
        pytest.param(
            "DELETE FROM posting WHERE log_index = 1 AND position = 1",
            {
                ("I3", USAGE, "posting 1, of 27000 nano on suspense, is not stored"),
                ("I3", None, "of suspense is 54000"),
            },
            id="posting deleted",
        ),
        pytest.param(
            "INSERT INTO posting SELECT 2, 0, time, account, amount_nano, role, kind, item, served_model, request_id"
            " FROM posting WHERE log_index = 3 AND account = 'platform'",
            {("I3", VOID, "posting 0, of 2700 nano on platform, is not in the entry")},
            id="posting added to an entry",
        ),
        pytest.param(
            "INSERT INTO posting SELECT 6, 0, time, account, amount_nano, role, kind, item, served_model, request_id"
            " FROM posting WHERE log_index = 3 AND account = 'platform'",
            {("I3", 6, "posting 0, of 2700 nano on platform, has no entry")},
            id="posting without an entry",
        ),
        pytest.param(
            "UPDATE account SET pending_nano = 0 WHERE account = 'caller:alice'",
            {("I4", None, "0 nano are pending on caller:alice, but its open intents reserve 70000")},
            id="pending changed",
        ),
        pytest.param(
            "UPDATE account SET credits_nano = 9999 WHERE account = 'contributor:bob'",
            {("I3", None, "credits_nano of contributor:bob is 9999, but its postings sum to 1512")},
            id="account total changed",
        ),
        pytest.param(
            "DELETE FROM account WHERE account = 'platform'",
            {("I3", None, "credits_nano of platform is 0, but its postings sum to 2700")},
            id="account deleted",
        ),
        pytest.param(
            "UPDATE intent SET ended_index = 5 WHERE ended_index = 1",
            {
                ("I4", USAGE, f"request {CHARGED} is not stored as ended by this entry"),
                ("I4", WAITING_USAGE, f"request_id is '{CHARGED}', not '{WAITING}'"),
            },
            id="intent pointed at another request",
        ),
        pytest.param(
            "UPDATE intent SET ended_index = 0 WHERE ended_index = 2",
            {("I4", CREDIT, f"request {VOIDED} cannot have been ended by this entry"), ("I4", VOID, "is not stored")},
            id="intent pointed at an entry that ends none",
        ),
        pytest.param(
            "UPDATE intent SET ended_index = 99 WHERE ended_index = 4",
            {("I4", 99, f"request {FREE} refers to an entry that is not in the log"), ("I4", FREE_USAGE, "not stored")},
            id="intent pointed at no entry",
        ),
        pytest.param(
            "UPDATE intent SET attribution_index = 3 WHERE ended_index = 5",
            {("I4", ATTRIBUTION, f"request_id is '{WAITING}', not '{CHARGED}'")},
            id="intent attributed by another's entry",
        ),
        pytest.param(
            "UPDATE intent SET gateway_seq = 77 WHERE ended_index = 5",
            {("I4", WAITING_USAGE, "gateway_seq is 77, not 3")},
            id="intent renumbered",
        ),
        pytest.param(
            "UPDATE intent SET charge_nano = 5 WHERE ended_index = 5",
            {("I4", WAITING_USAGE, "charge_nano is 5, not 27000")},
            id="charge changed",
        ),
        pytest.param(
            "UPDATE intent SET charge_nano = 5 WHERE ended_index = 2",
            {("I4", VOID, "charge_nano is 5, not None")},
            id="void charged",
        ),
        pytest.param(
            "DELETE FROM intent WHERE ended_index IS NULL",
            {("I4", None, "70000 nano are pending on caller:alice, but its open intents reserve 0")},
            id="open intent deleted",
        ),
    ],
)
def test_what_was_touched_is_named(
    history: Engine, log: Log, tampering: str, expected: set[tuple[str, int | None, str]]
) -> None:
    with history.begin() as connection:
        assert connection.execute(text(tampering)).rowcount == 1
    found = findings(history, log)
    for invariant, log_index, words in expected:
        assert any(
            (finding.invariant, finding.log_index) == (invariant, log_index) and words in finding.message
            for finding in found
        ), (words, found)


def test_an_entry_that_cannot_be_read_is_left_to_the_checker_of_the_log(history: Engine, log: Log) -> None:
    with history.begin() as connection:
        connection.execute(text("UPDATE log_entry SET entry = :entry WHERE log_index = 0"), {"entry": b"{}"})
    assert findings(history, log) == []
