from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.exc import IntegrityError

from ledger_client import EntryConflict
from metering import (
    SUSPENSE,
    Balance,
    Books,
    InsufficientCredit,
    IntentError,
    MeteringError,
    Price,
    SplitPolicy,
    Transaction,
    balance,
    balances,
    open_intents,
    request_state,
)
from metering.tables import account_table, posting_table

from .kit import (
    CALLER,
    LOG,
    MODEL,
    POLICY,
    PRICE,
    Clock,
    attribution_record,
    logged,
    new_books,
    request_id,
    transaction,
    usage_record,
)

REQUEST = request_id(7)
CHARGE_NANO = 100 * 150 + 20 * 600


@pytest.fixture
def funded(engine: Engine, books: Books) -> Engine:
    with transaction(engine) as tx:
        books.grant_credit(tx, CALLER, 1_000_000, "welcome", "grant-1")
    return engine


def stored_balances(connection: Connection) -> dict[str, int]:
    return {account: amount for account, amount in balances(connection) if amount}


def test_a_request_is_charged_and_paid_out(funded: Engine, books: Books) -> None:
    with transaction(funded) as tx:
        intent = books.admit(tx, CALLER, 600_000, REQUEST)
        assert balance(tx.connection, CALLER) == Balance(credits_nano=1_000_000, pending_nano=600_000)
    with transaction(funded) as tx:
        usage_index = books.record_usage(tx, intent, usage_record())
        assert balance(tx.connection, CALLER) == Balance(credits_nano=1_000_000, debits_nano=CHARGE_NANO)
        assert stored_balances(tx.connection)[SUSPENSE] == CHARGE_NANO
    with transaction(funded) as tx:
        attribution_index = books.record_attribution(tx, attribution_record(REQUEST, CHARGE_NANO))
    with transaction(funded) as tx:
        assert stored_balances(tx.connection) == {
            "base:smol": 5_400,
            "caller:alice": 973_000,
            "contributor:ann": 12_096,
            "contributor:bob": 1_512,
            "contributor:dev": 5_292,
            "funding": -1_000_000,
            "platform": 2_700,
        }
        state = request_state(tx.connection, REQUEST)
        assert state is not None
        assert (state.intent, state.charge_nano, state.served_model) == (intent, CHARGE_NANO, MODEL)
        assert (state.ended_index, state.attribution_index) == (usage_index, attribution_index) == (1, 2)
        credit, usage, attribution = logged(tx.connection)
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


def test_every_writing_may_be_repeated_later_and_moves_nothing(funded: Engine, books: Books, clock: Clock) -> None:
    def write_all(tx: Transaction) -> list[int]:
        return [
            books.publish_price(tx, MODEL, PRICE),
            books.publish_policy(tx, POLICY),
            books.grant_credit(tx, CALLER, 1_000_000, "welcome", "grant-1"),
            books.record_usage(tx, charged, usage_record()),
            books.void(tx, voided, "the client left"),
            books.record_attribution(tx, attribution_record(REQUEST, CHARGE_NANO)),
        ]

    with transaction(funded) as tx:
        charged = books.admit(tx, CALLER, 600_000, REQUEST)
        assert books.admit(tx, CALLER, 600_000, REQUEST) == charged
        voided = books.admit(tx, CALLER, 400_000, request_id(8))
        first = write_all(tx)
        before = (stored_balances(tx.connection), tx.log.size)
    clock.advance(days=400)
    with transaction(funded) as tx:
        assert write_all(tx) == first
        assert (stored_balances(tx.connection), tx.log.size) == before


def test_a_repeat_that_says_something_else_is_a_conflict(funded: Engine, books: Books) -> None:
    with transaction(funded) as tx:
        intent = books.admit(tx, CALLER, 600_000, REQUEST)
        voided = books.admit(tx, CALLER, 1_000, request_id(8))
        books.record_usage(tx, intent, usage_record())
        books.void(tx, voided, "the engine failed")
        books.record_attribution(tx, attribution_record(REQUEST, CHARGE_NANO))
        books.publish_policy(tx, POLICY)
        before = stored_balances(tx.connection)
        with pytest.raises(EntryConflict):
            books.grant_credit(tx, CALLER, 1_000_001, "welcome", "grant-1")
        with pytest.raises(EntryConflict):
            books.record_usage(tx, intent, usage_record(completion_tokens=21))
        with pytest.raises(EntryConflict):
            books.void(tx, voided, "another reason")
        with pytest.raises(EntryConflict):
            books.record_attribution(tx, attribution_record(REQUEST, CHARGE_NANO, players=()))
        with pytest.raises(EntryConflict):
            books.publish_policy(tx, SplitPolicy(name="standard", version=1, fixed_ppm={}))
        assert stored_balances(tx.connection) == before


def test_a_request_ends_once(funded: Engine, books: Books) -> None:
    with transaction(funded) as tx:
        charged = books.admit(tx, CALLER, 600_000, REQUEST)
        voided = books.admit(tx, CALLER, 1_000, request_id(8))
        books.record_usage(tx, charged, usage_record())
        books.void(tx, voided, "the engine failed")
        with pytest.raises(IntentError, match="was charged"):
            books.void(tx, charged, "too late")
        with pytest.raises(IntentError, match="was voided"):
            books.record_usage(tx, voided, usage_record(prompt_tokens=1, completion_tokens=0))
        with pytest.raises(IntentError, match="another request id"):
            books.admit(tx, CALLER, 600_000, REQUEST)
        with pytest.raises(IntentError, match="not charged"):
            books.record_attribution(tx, attribution_record(voided.request_id, 0))


def test_open_intents_are_found_by_their_age(funded: Engine, books: Books, clock: Clock) -> None:
    admitted = []
    for number in range(3):
        with transaction(funded) as tx:
            admitted.append(books.admit(tx, CALLER, 1, request_id(number)))
        clock.advance(minutes=1)
    with transaction(funded) as tx:
        books.void(tx, admitted[0], "swept")
        for number in (1, 2):
            before = admitted[number].admitted_at
            assert list(open_intents(tx.connection, admitted_before=before)) == admitted[1:number]
        assert list(open_intents(tx.connection, admitted_before=books.now())) == admitted[1:]


def test_a_request_id_is_admitted_once(funded: Engine, books: Books) -> None:
    other = new_books("gw-2")
    with transaction(funded) as tx:
        books.admit(tx, CALLER, 600_000, REQUEST)
        for again in (
            lambda: books.admit(tx, CALLER, 1, REQUEST),
            lambda: other.admit(tx, CALLER, 600_000, REQUEST),
        ):
            with pytest.raises(IntentError, match="admitted before"):
                again()


def test_an_intent_that_was_altered_releases_nothing(funded: Engine, books: Books) -> None:
    with transaction(funded) as tx:
        intent = books.admit(tx, CALLER, 30_000, REQUEST)
        for change in ({"maximum_nano": 600_000}, {"account": "caller:bob"}, {"gateway_seq": 1}):
            with pytest.raises(IntentError, match="was not admitted as"):
                books.record_usage(tx, replace(intent, **change), usage_record())
        assert balance(tx.connection, CALLER).pending_nano == 30_000


def test_credit_counts_what_is_reserved(funded: Engine, books: Books) -> None:
    with transaction(funded) as tx:
        books.admit(tx, CALLER, 999_999, REQUEST)
        with pytest.raises(InsufficientCredit) as caught:
            books.admit(tx, CALLER, 2, request_id(8))
        assert (caught.value.account, caught.value.available_nano, caught.value.maximum_nano) == (CALLER, 1, 2)
        assert books.admit(tx, CALLER, 1, request_id(8)).gateway_seq == 1
        with pytest.raises(InsufficientCredit):
            books.admit(tx, "caller:bob", 1, request_id(9))


def test_a_free_request_needs_no_credit_and_moves_no_money(engine: Engine, books: Books) -> None:
    free = Price.parse(prompt="0", completion="0")
    with transaction(engine) as tx:
        intent = books.admit(tx, "caller:bob", 0, REQUEST)
        books.record_usage(tx, intent, usage_record(price=free))
        books.record_attribution(tx, attribution_record(REQUEST, 0))
        assert stored_balances(tx.connection) == {}
        assert [entry.data["postings"] for entry in logged(tx.connection)] == [[], []]


def test_a_charge_stays_within_what_was_reserved(funded: Engine, books: Books) -> None:
    with transaction(funded) as tx:
        intent = books.admit(tx, CALLER, CHARGE_NANO - 1, REQUEST)
        with pytest.raises(MeteringError, match="exceeds"):
            books.record_usage(tx, intent, usage_record())
        assert tx.log.size == 1


def test_a_split_pays_the_charge_exactly(funded: Engine, books: Books) -> None:
    with transaction(funded) as tx:
        intent = books.admit(tx, CALLER, 600_000, REQUEST)
        with pytest.raises(IntentError, match="not charged"):
            books.record_attribution(tx, attribution_record(REQUEST, CHARGE_NANO))
        books.record_usage(tx, intent, usage_record())
        with pytest.raises(MeteringError, match="split sums to 26999"):
            books.record_attribution(tx, attribution_record(REQUEST, CHARGE_NANO - 1))


def test_an_admission_that_was_rolled_back_cannot_be_charged_and_leaves_no_gap(funded: Engine, books: Books) -> None:
    with funded.connect() as connection:
        tx = Transaction(connection, LOG)
        lost = books.admit(tx, CALLER, 600_000, REQUEST)
        tx.seal()
    with transaction(funded) as tx:
        for end in (
            lambda: books.record_usage(tx, lost, usage_record()),
            lambda: books.void(tx, lost, "the client left"),
        ):
            with pytest.raises(IntentError, match="not admitted"):
                end()
        assert balance(tx.connection, CALLER).pending_nano == 0
        assert books.admit(tx, CALLER, 1, request_id(8)).gateway_seq == 0
        with pytest.raises(IntentError, match="not admitted as gw-1 0"):
            books.void(tx, lost, "the client left")


def test_a_crash_between_admission_and_record_leaves_an_open_intent_that_is_voided(
    funded: Engine, books: Books
) -> None:
    other = new_books("gw-2")
    with transaction(funded) as tx:
        crashed = books.admit(tx, CALLER, 600_000, REQUEST)
        done = books.admit(tx, CALLER, 1, request_id(8))
        books.void(tx, done, "the client left")
        elsewhere = other.admit(tx, CALLER, 5, request_id(9))
    # A new process knows nothing but the database.
    restarted = new_books("gw-1")
    with transaction(funded) as tx:
        assert list(open_intents(tx.connection)) == [crashed, elsewhere]
        assert list(open_intents(tx.connection, "gw-1")) == [crashed]
        for intent in list(open_intents(tx.connection, "gw-1")):
            restarted.void(tx, intent, "the gateway restarted")
    with transaction(funded) as tx:
        assert list(open_intents(tx.connection, "gw-1")) == []
        assert balance(tx.connection, CALLER) == Balance(credits_nano=1_000_000, pending_nano=5)
        assert logged(tx.connection)[-1].data == {
            "gateway": "gw-1",
            "gateway_seq": 0,
            "request_id": REQUEST,
            "reason": "the gateway restarted",
        }


def test_sequences_are_dense_and_credit_exact_under_concurrent_admissions(engine: Engine) -> None:
    clock = Clock()
    gateways = [new_books(f"gw-{number}", clock) for number in range(2)]
    with transaction(engine) as tx:
        gateways[0].grant_credit(tx, CALLER, 30, "welcome", "grant-1")
    outcomes: Counter[str] = Counter()

    def admit_many(worker: int) -> None:
        for number in range(10):
            books = gateways[number % 2]
            try:
                with transaction(engine) as tx:
                    books.admit(tx, CALLER, 1, request_id(worker * 100 + number))
                outcomes["admitted"] += 1
            except InsufficientCredit:
                outcomes["refused"] += 1

    threads = [threading.Thread(target=admit_many, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"admitted": 30, "refused": 10}
    with transaction(engine) as tx:
        assert balance(tx.connection, CALLER).available_nano == 0
        for gateway_id in ("gw-0", "gw-1"):
            sequence = [intent.gateway_seq for intent in open_intents(tx.connection, gateway_id)]
            assert sequence == list(range(len(sequence)))


def test_totals_that_would_pass_the_limit_are_refused(engine: Engine, books: Books) -> None:
    limit_nano = 9_200_000_000_000_000_000
    with transaction(engine) as tx:
        books.grant_credit(tx, CALLER, limit_nano, "all of it", "grant-1")
        mark = tx.mark()
        with pytest.raises(MeteringError, match="would pass 92"):
            books.grant_credit(tx, CALLER, 1, "one more", "grant-2")
        assert tx.rewind(mark)
        with pytest.raises(MeteringError, match="amount_nano must be from 1 to 92"):
            books.grant_credit(tx, CALLER, limit_nano + 1, "more", "grant-3")
        assert stored_balances(tx.connection) == {CALLER: limit_nano, "funding": -limit_nano}
        assert len(logged(tx.connection)) == 1


def test_the_database_itself_refuses_a_caller_below_zero(funded: Engine) -> None:
    with pytest.raises(IntegrityError, match="account_covered"), transaction(funded) as tx:
        tx.connection.execute(
            update(account_table).where(account_table.c.account == CALLER).values(debits_nano=1_000_001)
        )


def test_postings_carry_what_they_were_for(funded: Engine, books: Books) -> None:
    with transaction(funded) as tx:
        intent = books.admit(tx, CALLER, 600_000, REQUEST)
        books.record_usage(tx, intent, usage_record())
        books.record_attribution(tx, attribution_record(REQUEST, CHARGE_NANO))
        rows = tx.connection.execute(
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
    books = new_books(clock=Clock(datetime(2025, 1, 1)))  # noqa: DTZ001 - the very thing to refuse
    with transaction(engine) as tx, pytest.raises(MeteringError, match="zone"):
        books.grant_credit(tx, CALLER, 1, "welcome", "grant-1")


def test_records_refuse_what_the_log_must_not_hold() -> None:
    for change in ({"prompt_digest": "what is it?"}, {"served_model": "a b"}, {"price_index": -1}):
        with pytest.raises(MeteringError):
            usage_record(**change)
    for change in ({"reason": "two\nlines"}, {"surplus_nats": float("nan")}, {"scores_digest": ""}):
        with pytest.raises(MeteringError):
            attribution_record(REQUEST, CHARGE_NANO, **change)
