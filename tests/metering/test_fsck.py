"""The checker of the books: silent over an honest history, and naming each row that was touched."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text, update

from ledger_client import Finding
from ledger_client.tables import log_entry
from metering import Books, fsck_books, record_feedback, supersede

from .kit import (
    ADAPTER,
    CALLER,
    DOCUMENT,
    LOG,
    attribution_record,
    bind_address,
    close_period,
    pay_out,
    request_id,
    transaction,
    usage_record,
)

CHARGED, VOIDED, OPEN, FREE, WAITING = map(request_id, range(5))
# Log indexes. JANUARY closes a period, and what comes after it falls into February, though the clock stands still.
(
    CREDIT, USAGE, VOID, ATTRIBUTION, FREE_USAGE, WAITING_USAGE, FIRST_RATING, SECOND_RATING, ADDRESS, PAYOUT, JANUARY,
    FIRST_CORRECTION, SECOND_CORRECTION,
) = range(13)  # fmt: skip


@pytest.fixture
def history(engine: Engine, books: Books) -> Engine:
    """Books with one request of each fate."""
    with transaction(engine) as tx:
        books.grant_credit(tx, CALLER, 1_000_000, "welcome", "grant-1")
        intents = [books.admit(tx, CALLER, 100_000, request) for request in (CHARGED, VOIDED, FREE, WAITING)]
        books.admit(tx, CALLER, 70_000, OPEN)
        usage = usage_record()
        assert books.record_usage(tx, intents[0], usage) == USAGE
        assert books.void(tx, intents[1], "the client left") == VOID
        assert books.record_attribution(tx, attribution_record(CHARGED, usage.charge_nano)) == ATTRIBUTION
        assert books.record_usage(tx, intents[2], usage_record(0, 0)) == FREE_USAGE
        assert books.record_usage(tx, intents[3], usage) == WAITING_USAGE
        assert record_feedback(books, tx, CHARGED, 1) == FIRST_RATING
        assert record_feedback(books, tx, CHARGED, -1) == SECOND_RATING
        assert bind_address(books, tx, "ann") == ADDRESS
        assert pay_out(books, tx, "ann", 12_000, "2025-01") == PAYOUT
        assert close_period(books, tx, "2025-01") == JANUARY
        for index, players in ((FIRST_CORRECTION, ()), (SECOND_CORRECTION, (DOCUMENT, ADAPTER))):
            record = attribution_record(CHARGED, usage.charge_nano, players)
            assert supersede(books, tx, record, "the scores were wrong") == index
    return engine


def findings(engine: Engine) -> list[Finding]:
    with engine.connect() as connection:
        return fsck_books(connection, LOG)


def test_an_honest_history_has_no_findings(history: Engine) -> None:
    assert findings(history) == []


def test_empty_books_have_no_findings(engine: Engine) -> None:
    assert findings(engine) == []


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
            "INSERT INTO posting"
            " SELECT 2, 0, time, period, account, amount_nano, role, kind, item, served_model, request_id"
            " FROM posting WHERE log_index = 3 AND account = 'platform'",
            {("I3", VOID, "posting 0, of 2700 nano on platform, is not in the entry")},
            id="posting added to an entry",
        ),
        pytest.param(
            "INSERT INTO posting"
            " SELECT 99, 0, time, period, account, amount_nano, role, kind, item, served_model, request_id"
            " FROM posting WHERE log_index = 3 AND account = 'platform'",
            {("I3", 99, "posting 0, of 2700 nano on platform, has no entry")},
            id="posting without an entry",
        ),
        pytest.param(
            "UPDATE account SET pending_nano = 0 WHERE account = 'caller:alice'",
            {("I4", None, "0 nano are pending on caller:alice, but its open intents reserve 70000")},
            id="pending changed",
        ),
        pytest.param(
            "UPDATE account SET credits_nano = 9999 WHERE account = 'contributor:bob'",
            {("I3", None, "credits_nano of contributor:bob is 9999, but its postings sum to 3024")},
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
        pytest.param(
            "UPDATE posting SET period = '2025-02' WHERE log_index = 3 AND account = 'contributor:bob'",
            {
                ("I3", ATTRIBUTION, "period is '2025-02', not '2025-01'"),
                ("I3", None, "earned_nano of contributor:bob in 2025-01 is 1512, but its postings come to 0"),
                ("I3", None, "lines of contributor:bob in 2025-02 is 2, but its postings come to 3"),
            },
            id="posting moved to a later period",
        ),
        pytest.param(
            "UPDATE posting SET period = '2025-01' WHERE log_index = 11 AND account = 'contributor:bob'",
            {("I3", FIRST_CORRECTION, "period is '2025-01', not '2025-02'")},
            id="correction moved into a closed period",
        ),
        pytest.param(
            "UPDATE posting SET role = 'owner' WHERE log_index = 11 AND item = 'doc_1'",
            {
                ("I3", FIRST_CORRECTION, "role is 'owner', not 'correction'"),
                ("I3", None, "corrected_nano of contributor:ann in 2025-02 is 0, but its postings come to 11340"),
            },
            id="correction passed off as earned",
        ),
        pytest.param(
            "UPDATE posting SET item = 'doc_9' WHERE log_index = 12 AND item = 'doc_1'",
            {
                ("I3", SECOND_CORRECTION, "item is 'doc_9', not 'doc_1'"),
                ("I3", None, "what contributor:ann earned in 2025-02 by document doc_1 is 0, but its postings come to"),
            },
            id="correction through another document",
        ),
        pytest.param(
            "UPDATE posting SET served_model = 'other' WHERE log_index = 12 AND item = 'doc_1'",
            {("I3", SECOND_CORRECTION, "served_model is 'other', not 'chat'")},
            id="correction of another model",
        ),
        pytest.param(
            "UPDATE posting SET role = 'correction' WHERE log_index = 9 AND position = 0",
            {
                ("I3", PAYOUT, "role is 'correction', not 'payout'"),
                ("I3", None, "paid_nano of contributor:ann in 2025-01 is -12000, but its postings come to 0"),
            },
            id="payout passed off as a correction",
        ),
        pytest.param(
            "UPDATE account_period SET corrected_nano = corrected_nano + 1"
            " WHERE account = 'contributor:bob' AND period = '2025-02'",
            {("I3", None, "corrected_nano of contributor:bob in 2025-02 is 1, but its postings come to 0")},
            id="sum of a period changed",
        ),
        pytest.param(
            "DELETE FROM account_period WHERE account = 'contributor:bob' AND period = '2025-01'",
            {("I3", None, "earned_nano of contributor:bob in 2025-01 is 0, but its postings come to 1512")},
            id="sum of a period deleted",
        ),
        pytest.param(
            "INSERT INTO account_period VALUES ('contributor:mallory', '2025-01', 5, 0, 0, 0)",
            {("I3", None, "earned_nano of contributor:mallory in 2025-01 is 5, but its postings come to 0")},
            id="sum of a period invented",
        ),
        pytest.param(
            "UPDATE earning SET amount_nano = 7"
            " WHERE account = 'contributor:bob' AND dimension = 'adapter' AND period = '2025-01'",
            {("I3", None, "earned in 2025-01 by adapter concise is 7, but its postings come to 1512")},
            id="earning changed",
        ),
        pytest.param(
            "DELETE FROM earning WHERE account = 'contributor:bob' AND dimension = 'day' AND period = '2025-01'",
            {("I3", None, "earned in 2025-01 by day 2025-01-31 is 0, but its postings come to 1512")},
            id="earning deleted",
        ),
        pytest.param(
            "INSERT INTO earning VALUES ('contributor:bob', 'document', '2025-01', 'doc_1', 7)",
            {("I3", None, "earned in 2025-01 by document doc_1 is 7, but its postings come to 0")},
            id="earning invented",
        ),
        pytest.param(
            "UPDATE rating SET rating = 1 WHERE log_index = 7",
            {("I3", SECOND_RATING, "the row of rating is not the entry's: rating is 1, not -1")},
            id="rating turned",
        ),
        pytest.param(
            "UPDATE rating SET request_id = 'req_eaaaaaaaaaaaaaaaaaaaaaaaaa' WHERE log_index = 7",
            {("I3", SECOND_RATING, f"request_id is '{WAITING}', not '{CHARGED}'")},
            id="rating given to another answer",
        ),
        pytest.param(
            "UPDATE rating SET log_index = 99 WHERE log_index = 6",
            {("I3", FIRST_RATING, "is not stored as a row of rating"), ("I3", 99, "a row of rating has no entry")},
            id="rating without an entry",
        ),
        pytest.param(
            "INSERT INTO rating SELECT 3, request_id, time, rating FROM rating WHERE log_index = 6",
            {("I3", ATTRIBUTION, "a row of rating is stored that the entry does not make")},
            id="rating invented",
        ),
        pytest.param(
            "UPDATE payout_address SET address = '0x0000000000000000000000000000000000000000'",
            {("I3", ADDRESS, "the row of payout_address is not the entry's: address is '0x00")},
            id="address changed",
        ),
        pytest.param(
            "UPDATE payout SET amount_nano = 5",
            {("I3", PAYOUT, "the row of payout is not the entry's: amount_nano is 5, not 12000")},
            id="payout changed",
        ),
        pytest.param(
            "DELETE FROM payout",
            {("I3", PAYOUT, "the entry is not stored as a row of payout")},
            id="payout deleted",
        ),
        pytest.param(
            "UPDATE period SET period = '2024-12'",
            {("I3", JANUARY, "the row of period is not the entry's: period is '2024-12', not '2025-01'")},
            id="another period closed",
        ),
        pytest.param(
            "INSERT INTO period VALUES ('2025-02', 99, '2025-03-01T00:00:00.000000Z', NULL)",
            {("I3", 99, "a row of period has no entry")},
            id="period closed without an entry",
        ),
        pytest.param(
            "UPDATE intent SET attribution_index = 3 WHERE attribution_index = 12",
            {
                ("I4", FIRST_CORRECTION, "entry 3 is noted as in force"),
                ("I4", SECOND_CORRECTION, f"request {CHARGED} is not stored as attributed by this entry"),
            },
            id="superseded record put back in force",
        ),
        pytest.param(
            "UPDATE intent SET attribution_index = NULL WHERE attribution_index = 12",
            {("I4", SECOND_CORRECTION, f"request {CHARGED} is not stored as attributed by this entry")},
            id="record in force forgotten",
        ),
    ],
)
def test_what_was_touched_is_named(history: Engine, tampering: str, expected: set[tuple[str, int | None, str]]) -> None:
    with history.begin() as connection:
        assert connection.execute(text(tampering)).rowcount == 1
    found = findings(history)
    for invariant, log_index, words in expected:
        assert any(
            (finding.invariant, finding.log_index) == (invariant, log_index) and words in finding.message
            for finding in found
        ), (words, found)


@pytest.mark.parametrize("log_index", [CREDIT, FIRST_RATING, ADDRESS, SECOND_CORRECTION])
@pytest.mark.parametrize("raw", [b"{}", b"not JSON"])
def test_an_entry_that_cannot_be_read_is_left_to_the_checker_of_the_log(
    history: Engine, log_index: int, raw: bytes
) -> None:
    with history.begin() as connection:
        connection.execute(update(log_entry).where(log_entry.c.log_index == log_index).values(entry=raw))
    # Nothing can be said of the rows of that entry, but the record that it replaced has lost its successor.
    expected = {("I4", FIRST_CORRECTION)} if log_index == SECOND_CORRECTION else set()
    assert {(finding.invariant, finding.log_index) for finding in findings(history)} == expected
