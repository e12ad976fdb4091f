"""Closing a month: who is paid what, what is carried forward, and that it happens once."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count

import pytest
from sqlalchemy import Engine

from ledger_client import Entry, PeriodError, SettlementError, StatementSummary, statements_root, to_address
from metering import (
    Books,
    DocumentTerms,
    MeteringError,
    PlayerShare,
    Settlement,
    SettlementTerms,
    balance,
    bind_address,
    carried_forward,
    closed_periods,
    earnings,
    fsck_books,
    payout_addresses,
    settle,
    settlement,
    statement,
    summaries,
)

from .kit import CALLER, LOG, Clock, attribution_record, audited, logged, request_id, transaction, usage_record

ANN, BOB = (to_address(bytes([number]) * 20) for number in (1, 2))
CONTRACT = to_address(b"\x09" * 20)
DISTRIBUTOR, SUCCESSOR = (f"eip155:31337:{to_address(bytes([number]) * 20)}" for number in (9, 10))
CHAIN = SettlementTerms(method="chain", distributor=DISTRIBUTOR, minimum_nano=5_000)
CSV = SettlementTerms(method="csv", minimum_nano=5_000)


class Town:
    """Books in which answers earn and months pass. n tokens earn a document's owner 105 n nano-USD."""

    def __init__(self, engine: Engine, books: Books, clock: Clock) -> None:
        self.engine, self.books, self.clock = engine, books, clock
        self.numbers = count()
        with transaction(engine) as t:
            books.grant_credit(t, CALLER, 10**9, "welcome", "grant-1")

    def earn(self, owner: str, tokens: int) -> None:
        request = request_id(next(self.numbers))
        player = PlayerShare(id=f"doc-of-{owner}", share_ppm=1_000_000, terms=DocumentTerms(owner=owner))
        with transaction(self.engine) as t:
            intent = self.books.admit(t, CALLER, 10**8, request)
            record = usage_record(tokens, 0)
            self.books.record_usage(t, intent, record)
            self.books.record_attribution(t, attribution_record(request, record.charge_nano, [player]))

    def bind(self, contributor: str, address: str, nonce: int = 0) -> int:
        with transaction(self.engine) as t:
            return bind_address(
                self.books,
                t,
                contributor,
                address,
                nonce=nonce,
                chain_id=31337,
                contract=CONTRACT,
                signature="0x" + "ab" * 65,
            )

    def settle(self, period: str, terms: SettlementTerms = CHAIN) -> Settlement:
        with transaction(self.engine) as t:
            return settle(self.books, t, period, terms)

    def held(self, contributor: str) -> int:
        with self.engine.connect() as connection:
            return balance(connection, f"contributor:{contributor}").posted_nano


@pytest.fixture
def town(engine: Engine, books: Books, clock: Clock) -> Town:
    return Town(engine, books, clock)


def at(year: int, month: int, day: int = 1) -> datetime:
    return datetime(year, month, day, 12, tzinfo=UTC)


def test_a_month_pays_whole_token_units_and_keeps_the_dust(town: Town) -> None:
    town.earn("ann", 101)  # 10,605 nano-USD: 10 units of a millionth of a dollar, and dust
    town.bind("ann", ANN)
    town.clock.now = at(2025, 2)
    done = town.settle("2025-01")
    (payout,) = done.payouts
    assert (payout.contributor, payout.address, payout.amount_nano) == ("ann", ANN, 10_000)
    assert town.held("ann") == 605
    assert done.claims.tree is not None
    assert done.claims.tree.amounts == {ANN: 10}
    done.claims.tree.claim(ANN).verify()
    with town.engine.connect() as connection:
        assert balance(connection, "payouts").posted_nano == 10_000
        assert fsck_books(connection, LOG) == []
        closing = logged(connection)[-1]
    assert (closing.type, closing.subject) == ("period.closed", "2025-01")
    assert closing.data["payout_root"] == done.claims.tree.root.hex()
    assert (closing.data["paid_nano"], closing.data["cumulative_total"]) == ("10000", "10")


def test_what_is_small_or_has_no_address_is_carried_forward(town: Town) -> None:
    town.earn("ann", 40)  # 4,200, below the minimum of 5,000
    town.earn("bob", 100)
    town.bind("ann", ANN)
    town.clock.now = at(2025, 2)
    assert town.settle("2025-01").payouts == ()
    with town.engine.connect() as connection:
        assert list(carried_forward(connection, "2025-01")) == [("ann", 4_200), ("bob", 10_500)]
    town.earn("ann", 20)
    town.bind("bob", BOB)
    town.clock.now = at(2025, 3)
    paid = {payout.contributor: payout.amount_nano for payout in town.settle("2025-02").payouts}
    assert paid == {"ann": 6_000, "bob": 10_000}


def test_a_list_pays_those_without_an_address_too(town: Town) -> None:
    town.earn("bob", 100)
    town.clock.now = at(2025, 2)
    done = town.settle("2025-01", CSV)
    assert [(payout.method, payout.address, payout.amount_nano) for payout in done.payouts] == [("csv", None, 10_000)]
    assert done.claims.tree is None


def test_claims_accumulate_over_periods_and_addresses(town: Town) -> None:
    town.earn("ann", 100)
    town.earn("bob", 100)
    town.bind("ann", ANN)
    town.bind("bob", ANN)  # one wallet for both
    town.clock.now = at(2025, 2)
    first = town.settle("2025-01")
    town.bind("bob", BOB, nonce=1)
    town.earn("bob", 95)
    town.clock.now = at(2025, 3)
    second = town.settle("2025-02")
    assert first.claims.tree is not None
    assert second.claims.tree is not None
    assert first.claims.tree.amounts == {ANN: 20}
    assert second.claims.tree.amounts == {ANN: 20, BOB: 10}
    assert (first.claims.epoch, second.claims.epoch) == (1, 2)


def test_a_new_distributor_owes_nothing_that_was_settled_on_the_old_one(town: Town) -> None:
    town.bind("ann", ANN)
    for month, distributor in enumerate((DISTRIBUTOR, SUCCESSOR, SUCCESSOR, DISTRIBUTOR), start=1):
        town.clock.now = at(2025, month)
        town.earn("ann", 1_000)  # 105 units
        town.clock.now = at(2025, month + 1)
        done = town.settle(f"2025-{month:02}", SettlementTerms(method="chain", distributor=distributor))
        first = month in (1, 2)
        assert done.claims.epoch == (1 if first else 2)
        assert done.claims.cumulative_total == (105 if first else 210)
    with town.engine.connect() as connection:
        assert balance(connection, "payouts").posted_nano == 4 * 105_000
        assert closed_periods(connection, SUCCESSOR) == ["2025-02", "2025-03"]
        assert audited(connection, settled=True) == []


def test_a_list_between_two_settlements_on_chain_changes_nothing_there(town: Town) -> None:
    town.bind("ann", ANN)
    for month, terms in enumerate((CHAIN, CSV, CHAIN), start=1):
        town.clock.now = at(2025, month)
        town.earn("ann", 1_000)
        town.clock.now = at(2025, month + 1)
        done = town.settle(f"2025-{month:02}", terms)
    assert (done.claims.epoch, done.claims.cumulative_total) == (2, 210)
    with town.engine.connect() as connection:
        assert audited(connection, settled=True) == []


def test_a_period_is_closed_once(town: Town) -> None:
    town.earn("ann", 100)
    town.bind("ann", ANN)
    town.clock.now = at(2025, 2)
    first = town.settle("2025-01")
    town.earn("ann", 1_000)
    town.clock.now = at(2025, 4)
    assert town.settle("2025-01") == first
    assert town.settle("2025-01", CSV) == first
    with town.engine.connect() as connection:
        assert settlement(connection, "2025-01", lambda index: LOG.entry(connection, index)) == first
        assert settlement(connection, "2025-02", lambda index: LOG.entry(connection, index)) is None


@pytest.mark.parametrize(
    ("period", "why"),
    [
        ("2025-02", "the log begins in 2025-01"),
        ("2024-12", "the log begins in 2025-01"),
        ("2025-01", "has not ended"),
        ("2025-1", "a period is a month"),
    ],
)
def test_a_period_waits_for_its_end_and_its_turn(town: Town, period: str, why: str) -> None:
    town.earn("ann", 100)
    with pytest.raises((PeriodError, MeteringError), match=why):
        town.settle(period)
    with town.engine.connect() as connection:
        assert [entry.type for entry in logged(connection) if entry.type == "period.closed"] == []


def test_a_period_after_one_that_is_open_waits(town: Town) -> None:
    town.clock.now = at(2025, 4)
    town.settle("2025-01")
    with pytest.raises(PeriodError, match="after 2025-01 comes 2025-02"):
        town.settle("2025-03")


def test_an_empty_log_has_no_period_to_close(engine: Engine, books: Books) -> None:
    with pytest.raises(PeriodError, match="the log is empty"), transaction(engine) as t:
        settle(books, t, "2024-12", CSV)


def test_what_comes_late_is_stated_in_the_next_period(town: Town) -> None:
    town.earn("ann", 100)
    town.clock.now = at(2025, 2)
    town.settle("2025-01", CSV)
    town.clock.now = at(2025, 1, 31)  # another machine, whose clock is behind
    town.earn("ann", 100)
    with town.engine.connect() as connection:
        january, february = (statement(connection, "ann", period) for period in ("2025-01", "2025-02"))
        assert earnings(connection, "ann", "2025-02").total_nano == 10_500
    assert (january.summary.lines, january.summary.closing_nano) == (1, 10_500)
    assert [(line.role, line.time[:7], line.amount_nano) for line in february.lines] == [
        ("payout", "2025-02", -10_000),
        ("owner", "2025-01", 10_500),
    ]
    assert february.summary.opening_nano == january.summary.closing_nano
    assert (february.summary.paid_nano, february.summary.closing_nano) == (-10_000, 11_000)


def test_the_root_of_the_statements_is_over_what_contributors_are_shown(town: Town) -> None:
    town.earn("zoe", 30)
    town.earn("ann", 100)
    town.clock.now = at(2025, 2)
    done = town.settle("2025-01", CSV)
    with town.engine.connect() as connection:
        shown = [statement(connection, contributor, "2025-01").summary for contributor in ("ann", "zoe")]
        assert summaries(connection, "2025-01") == shown
        assert statement(connection, "ann", "2025-01").closed_index == done.log_index
    assert done.statements == 2
    assert done.statements_root == statements_root(shown).hex()
    other = StatementSummary(contributor="ann", period="2025-01", earned_nano=1, lines=1)
    assert done.statements_root != statements_root([other, shown[1]]).hex()


def test_an_address_is_bound_by_a_rising_nonce(town: Town) -> None:
    first = town.bind("ann", ANN, nonce=1)
    assert town.bind("ann", ANN, nonce=1) == first
    second = town.bind("ann", BOB, nonce=2)
    with town.engine.connect() as connection:
        assert payout_addresses(connection) == {"ann": BOB}
        entry = Entry.decode(LOG.entry(connection, second))
    assert (entry.type, entry.data["address"], entry.data["nonce"]) == ("address.bound", BOB, 2)
    with pytest.raises(MeteringError, match="the nonce of a binding rises"):
        town.bind("ann", ANN, nonce=1)


def test_terms_make_sense() -> None:
    for wrong in (
        {"method": "cash"},
        {"method": "chain"},
        {"method": "chain", "distributor": CONTRACT},
        {"method": "csv", "distributor": DISTRIBUTOR},
        {"method": "csv", "minimum_nano": -1},
        {"method": "csv", "token_decimals": 19},
    ):
        with pytest.raises((MeteringError, SettlementError)):
            SettlementTerms(**wrong)  # type: ignore[arg-type]
