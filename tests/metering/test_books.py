from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.exc import IntegrityError

from ledger_client import EntryConflict, Log
from metering import (
    SUSPENSE,
    Balance,
    Books,
    InsufficientCredit,
    IntentError,
    MeteringError,
    Price,
    SplitPolicy,
    balances,
    open_intents,
)
from metering.store import account_table, posting_table

from .kit import CALLER, MODEL, POLICY, PRICE, Clock, attribution_record, logged, new_books, request_id, usage_record

REQUEST = request_id(7)
CHARGE_NANO = 100 * 150 + 20 * 600


@pytest.fixture
def funded(engine: Engine, books: Books) -> Engine:
    with engine.begin() as connection:
        books.grant_credit(connection, CALLER, 1_000_000, "welcome", "grant-1")
    return engine


def stored_balances(connection: Connection) -> dict[str, int]:
    return {account: amount for account, amount in balances(connection) if amount}


def test_a_request_is_charged_and_paid_out(funded: Engine, books: Books, log: Log) -> None:
    with funded.begin() as connection:
        intent = books.admit(connection, CALLER, 600_000, REQUEST)
        assert books.balance(connection, CALLER) == Balance(credits_nano=1_000_000, pending_nano=600_000)
    with funded.begin() as connection:
        usage_index = books.record_usage(connection, intent, usage_record())
        assert books.balance(connection, CALLER) == Balance(credits_nano=1_000_000, debits_nano=CHARGE_NANO)
        assert stored_balances(connection)[SUSPENSE] == CHARGE_NANO
    with funded.begin() as connection:
        attribution_index = books.record_attribution(connection, attribution_record(REQUEST, CHARGE_NANO))
    with funded.begin() as connection:
        assert stored_balances(connection) == {
            "base:smol": 5_400,
            "caller:alice": 973_000,
            "contributor:ann": 12_096,
            "contributor:bob": 1_512,
            "contributor:dev": 5_292,
            "funding": -1_000_000,
            "platform": 2_700,
        }
        state = books.request(connection, REQUEST)
        assert state is not None
        assert (state.intent, state.charge_nano, state.served_model) == (intent, CHARGE_NANO, MODEL)
        assert (state.ended_index, state.attribution_index) == (usage_index, attribution_index) == (1, 2)
        credit, usage, attribution = logged(log, connection)
    assert [entry.type for entry in (credit, usage, attribution)] == [
        "credit.granted",
        "usage.recorded",
        "answer.attributed",
    ]
    assert usage.time == "2025-01-31T23:00:00.000000Z"
    assert (usage.data["gateway"], usage.data["gateway_seq"]) == ("gw-1", 0)
    assert usage.data["charge_nano"] == str(CHARGE_NANO)
    assert usage.data["postings"] == [
        {"account": CALLER, "amount_nano": "-27000"},
        {"account": "suspense", "amount_nano": "27000"},
    ]
    assert attribution.data["usage_index"] == usage_index
    assert attribution.data["surplus_nats"] == 12.345679
    assert [part["item"] for part in attribution.data["split"]] == [None, None, "doc_1", *["concise"] * 3]


def test_every_writing_may_be_repeated_later_and_moves_nothing(
    funded: Engine, books: Books, log: Log, clock: Clock
) -> None:
    def write_all(connection: Connection) -> list[int]:
        written = [
            books.publish_price(connection, MODEL, PRICE),
            books.publish_policy(connection, POLICY),
            books.grant_credit(connection, CALLER, 1_000_000, "welcome", "grant-1"),
            books.record_usage(connection, charged, usage_record()),
            books.void(connection, voided, "the client left"),
            books.record_attribution(connection, attribution_record(REQUEST, CHARGE_NANO)),
        ]
        log.seal(connection)
        return written

    with funded.begin() as connection:
        charged = books.admit(connection, CALLER, 600_000, REQUEST)
        assert books.admit(connection, CALLER, 600_000, REQUEST) == charged
        voided = books.admit(connection, CALLER, 400_000, request_id(8))
        first = write_all(connection)
        before = (stored_balances(connection), log.size(connection))
    clock.advance(days=400)
    with funded.begin() as connection:
        assert write_all(connection) == first
        assert (stored_balances(connection), log.size(connection)) == before


def test_a_repeat_that_says_something_else_is_a_conflict(funded: Engine, books: Books) -> None:
    with funded.begin() as connection:
        intent = books.admit(connection, CALLER, 600_000, REQUEST)
        voided = books.admit(connection, CALLER, 1_000, request_id(8))
        books.record_usage(connection, intent, usage_record())
        books.void(connection, voided, "the engine failed")
        books.record_attribution(connection, attribution_record(REQUEST, CHARGE_NANO))
        books.publish_policy(connection, POLICY)
        before = stored_balances(connection)
        with pytest.raises(EntryConflict):
            books.grant_credit(connection, CALLER, 1_000_001, "welcome", "grant-1")
        with pytest.raises(EntryConflict):
            books.record_usage(connection, intent, usage_record(completion_tokens=21))
        with pytest.raises(EntryConflict):
            books.void(connection, voided, "another reason")
        with pytest.raises(EntryConflict):
            books.record_attribution(connection, attribution_record(REQUEST, CHARGE_NANO, players=()))
        with pytest.raises(EntryConflict):
            books.publish_policy(connection, SplitPolicy(name="standard", version=1, fixed_ppm={}))
        assert stored_balances(connection) == before


def test_a_request_ends_once(funded: Engine, books: Books) -> None:
    with funded.begin() as connection:
        charged = books.admit(connection, CALLER, 600_000, REQUEST)
        voided = books.admit(connection, CALLER, 1_000, request_id(8))
        books.record_usage(connection, charged, usage_record())
        books.void(connection, voided, "the engine failed")
        with pytest.raises(IntentError, match="was charged"):
            books.void(connection, charged, "too late")
        with pytest.raises(IntentError, match="was voided"):
            books.record_usage(connection, voided, usage_record(prompt_tokens=1, completion_tokens=0))
        with pytest.raises(IntentError, match="another request id"):
            books.admit(connection, CALLER, 600_000, REQUEST)
        with pytest.raises(IntentError, match="not charged"):
            books.record_attribution(connection, attribution_record(voided.request_id, 0))


def test_a_request_id_is_admitted_once(funded: Engine, books: Books) -> None:
    other, _ = new_books("gw-2")
    with funded.begin() as connection:
        books.admit(connection, CALLER, 600_000, REQUEST)
        for again in (
            lambda: books.admit(connection, CALLER, 1, REQUEST),
            lambda: other.admit(connection, CALLER, 600_000, REQUEST),
        ):
            with pytest.raises(IntentError, match="admitted before"):
                again()


def test_an_intent_that_was_altered_releases_nothing(funded: Engine, books: Books) -> None:
    with funded.begin() as connection:
        intent = books.admit(connection, CALLER, 30_000, REQUEST)
        for change in ({"maximum_nano": 600_000}, {"account": "caller:bob"}, {"gateway_seq": 1}):
            with pytest.raises(IntentError, match="was not admitted as"):
                books.record_usage(connection, replace(intent, **change), usage_record())
        assert books.balance(connection, CALLER).pending_nano == 30_000


def test_credit_counts_what_is_reserved(funded: Engine, books: Books) -> None:
    with funded.begin() as connection:
        books.admit(connection, CALLER, 999_999, REQUEST)
        with pytest.raises(InsufficientCredit) as caught:
            books.admit(connection, CALLER, 2, request_id(8))
        assert (caught.value.account, caught.value.available_nano, caught.value.maximum_nano) == (CALLER, 1, 2)
        assert books.admit(connection, CALLER, 1, request_id(8)).gateway_seq == 1
        with pytest.raises(InsufficientCredit):
            books.admit(connection, "caller:bob", 1, request_id(9))


def test_a_free_request_needs_no_credit_and_moves_no_money(engine: Engine, books: Books, log: Log) -> None:
    free = Price.parse(prompt="0", completion="0")
    with engine.begin() as connection:
        intent = books.admit(connection, "caller:bob", 0, REQUEST)
        books.record_usage(connection, intent, usage_record(price=free))
        books.record_attribution(connection, attribution_record(REQUEST, 0))
        assert list(balances(connection)) == []
        assert [entry.data["postings"] for entry in logged(log, connection)] == [[], []]


def test_a_charge_stays_within_what_was_reserved(funded: Engine, books: Books, log: Log) -> None:
    with funded.begin() as connection:
        intent = books.admit(connection, CALLER, CHARGE_NANO - 1, REQUEST)
        with pytest.raises(MeteringError, match="exceeds"):
            books.record_usage(connection, intent, usage_record())
        assert log.size(connection) == 1


def test_a_split_pays_the_charge_exactly(funded: Engine, books: Books) -> None:
    with funded.begin() as connection:
        intent = books.admit(connection, CALLER, 600_000, REQUEST)
        with pytest.raises(IntentError, match="not charged"):
            books.record_attribution(connection, attribution_record(REQUEST, CHARGE_NANO))
        books.record_usage(connection, intent, usage_record())
        with pytest.raises(MeteringError, match="split sums to 26999"):
            books.record_attribution(connection, attribution_record(REQUEST, CHARGE_NANO - 1))


def test_an_admission_that_was_rolled_back_cannot_be_charged_and_leaves_no_gap(funded: Engine, books: Books) -> None:
    with funded.connect() as connection:
        lost = books.admit(connection, CALLER, 600_000, REQUEST)
    with funded.begin() as connection:
        for end in (
            lambda: books.record_usage(connection, lost, usage_record()),
            lambda: books.void(connection, lost, "the client left"),
        ):
            with pytest.raises(IntentError, match="not admitted"):
                end()
        assert books.balance(connection, CALLER).pending_nano == 0
        assert books.admit(connection, CALLER, 1, request_id(8)).gateway_seq == 0
        with pytest.raises(IntentError, match="not admitted as gw-1 0"):
            books.void(connection, lost, "the client left")


def test_a_crash_between_admission_and_record_leaves_an_open_intent_that_is_voided(
    funded: Engine, books: Books, log: Log
) -> None:
    other, _ = new_books("gw-2")
    with funded.begin() as connection:
        crashed = books.admit(connection, CALLER, 600_000, REQUEST)
        done = books.admit(connection, CALLER, 1, request_id(8))
        books.void(connection, done, "the client left")
        elsewhere = other.admit(connection, CALLER, 5, request_id(9))
    # A new process knows nothing but the database.
    restarted, _ = new_books("gw-1")
    with funded.begin() as connection:
        assert list(open_intents(connection)) == [crashed, elsewhere]
        assert restarted.open_intents(connection) == [crashed]
        for intent in restarted.open_intents(connection):
            restarted.void(connection, intent, "the gateway restarted")
    with funded.begin() as connection:
        assert restarted.open_intents(connection) == []
        assert books.balance(connection, CALLER) == Balance(credits_nano=1_000_000, pending_nano=5)
        assert logged(log, connection)[-1].data == {
            "gateway": "gw-1",
            "gateway_seq": 0,
            "request_id": REQUEST,
            "reason": "the gateway restarted",
        }


def test_sequences_are_dense_and_credit_exact_under_concurrent_admissions(engine: Engine) -> None:
    clock = Clock()
    gateways = [new_books(f"gw-{number}", clock)[0] for number in range(2)]
    with engine.begin() as connection:
        gateways[0].grant_credit(connection, CALLER, 30, "welcome", "grant-1")
    outcomes: Counter[str] = Counter()

    def admit_many(worker: int) -> None:
        for number in range(10):
            books = gateways[number % 2]
            try:
                with engine.begin() as connection:
                    books.admit(connection, CALLER, 1, request_id(worker * 100 + number))
                outcomes["admitted"] += 1
            except InsufficientCredit:
                outcomes["refused"] += 1

    threads = [threading.Thread(target=admit_many, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"admitted": 30, "refused": 10}
    with engine.begin() as connection:
        assert gateways[0].balance(connection, CALLER).available_nano == 0
        for books in gateways:
            sequence = [intent.gateway_seq for intent in books.open_intents(connection)]
            assert sequence == list(range(len(sequence)))


def test_totals_that_would_pass_the_limit_are_refused(engine: Engine, books: Books) -> None:
    limit_nano = 9_200_000_000_000_000_000
    with engine.begin() as connection:
        books.grant_credit(connection, CALLER, limit_nano, "all of it", "grant-1")
        with pytest.raises(MeteringError, match="would pass 92"):
            books.grant_credit(connection, CALLER, 1, "one more", "grant-2")
        with pytest.raises(MeteringError, match="amount_nano must be from 1 to 92"):
            books.grant_credit(connection, CALLER, limit_nano + 1, "more", "grant-3")


def test_the_database_itself_refuses_a_caller_below_zero(funded: Engine) -> None:
    with funded.begin() as connection, pytest.raises(IntegrityError, match="account_covered"):
        connection.execute(update(account_table).where(account_table.c.account == CALLER).values(debits_nano=1_000_001))


def test_postings_carry_what_they_were_for(funded: Engine, books: Books) -> None:
    with funded.begin() as connection:
        intent = books.admit(connection, CALLER, 600_000, REQUEST)
        books.record_usage(connection, intent, usage_record())
        books.record_attribution(connection, attribution_record(REQUEST, CHARGE_NANO))
        rows = connection.execute(
            select(posting_table).order_by(posting_table.c.log_index, posting_table.c.position)
        ).all()
    assert [(row.role, row.kind, row.item) for row in rows] == [
        ("credit", None, None),
        ("credit", None, None),
        ("charge", None, None),
        ("charge", None, None),
        ("split", None, None),
        ("fixed", None, None),
        ("fixed", None, None),
        ("owner", "document", "doc_1"),
        ("developer", "adapter", "concise"),
        ("dataset", "adapter", "concise"),
        ("dataset", "adapter", "concise"),
    ]
    assert {(row.request_id, row.served_model) for row in rows[2:]} == {(REQUEST, MODEL)}


@pytest.mark.parametrize("gateway_id", ["", "a b", "gw/1", "x" * 64])
def test_a_gateway_id_is_plain(gateway_id: str) -> None:
    with pytest.raises(MeteringError, match="gateway id"):
        new_books(gateway_id)


def test_a_clock_without_a_zone_is_refused(engine: Engine) -> None:
    books, _ = new_books(clock=Clock(datetime(2025, 1, 1)))  # noqa: DTZ001 - the very thing to refuse
    with engine.begin() as connection, pytest.raises(MeteringError, match="zone"):
        books.grant_credit(connection, CALLER, 1, "welcome", "grant-1")


def test_records_refuse_what_the_log_must_not_hold() -> None:
    for change in ({"prompt_digest": "what is it?"}, {"served_model": "a b"}, {"price_index": -1}):
        with pytest.raises(MeteringError):
            usage_record(**change)
    for change in ({"reason": "two\nlines"}, {"surplus_nats": float("nan")}, {"scores_digest": ""}):
        with pytest.raises(MeteringError):
            attribution_record(REQUEST, CHARGE_NANO, **change)
