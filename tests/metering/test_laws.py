"""The books against a model of them: random histories on a real database, the laws checked after every step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, select

from attribution import apportion
from ledger_client import fsck_derived, next_period, statements_root
from metering import (
    AdapterTerms,
    AttributionRecord,
    Budget,
    BudgetExceeded,
    DocumentTerms,
    InsufficientCredit,
    Intent,
    IntentError,
    MeteringError,
    PlayerShare,
    SettlementTerms,
    Transaction,
    balance,
    balances,
    earnings,
    entries,
    fsck_books,
    open_intents,
    record_feedback,
    request_state,
    settle,
    settlement,
    statement,
    summaries,
    supersede,
)
from metering.tables import draw_table, posting_table

from ..databases import NewDatabase, opened  # noqa: TID252  the tests are no package of their own
from .kit import LOG, Clock, attribution_record, audited, logged, new_books, open_engine, request_id, transaction
from .kit import usage_record as usage_of

T = TypeVar("T")
Write = Callable[[Transaction], int]
CALLERS = ("caller:alice", "caller:bob")
KEYS = ("key_" + "a" * 26, "key_" + "b" * 26)
CONTRIBUTORS = ("ann", "bob", "dev")
PLAYERS = (
    ("doc_1", DocumentTerms(owner="ann")),
    ("doc_2", DocumentTerms(owner="bob")),
    ("concise", AdapterTerms(developer="dev", datasets=(("ann", 1), ("bob", 2)))),
)
MODELS = ("chat", "plain")
TERMS = SettlementTerms(method="csv", minimum_nano=2_000)
UNIT_NANO = 1_000  # of a token with six decimals
WEIGHTS = st.tuples(*[st.integers(0, 9)] * len(PLAYERS))


class Fact(NamedTuple):
    """A posting on a contributor's account, as it should be stated."""

    account: str
    period: str
    day: str
    role: str
    kind: str | None
    item: str | None
    served_model: str | None
    amount_nano: int


@dataclass
class Model:
    """What the books should say, kept in plain dictionaries."""

    balances: Counter[str] = field(default_factory=Counter)
    open: dict[str, Intent] = field(default_factory=dict)
    charged: dict[str, tuple[int, str]] = field(default_factory=dict)  # charge and served model
    in_force: dict[str, AttributionRecord] = field(default_factory=dict)
    sequence: Counter[str] = field(default_factory=Counter)
    facts: list[Fact] = field(default_factory=list)
    budgets: dict[str, Budget] = field(default_factory=dict)
    drawn: defaultdict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ratings: dict[str, int] = field(default_factory=dict)
    closed: dict[str, dict[str, Any]] = field(default_factory=dict)  # period → what it said of each contributor then

    def available(self, account: str) -> int:
        pending = sum(intent.maximum_nano for intent in self.open.values() if intent.account == account)
        return self.balances[account] - pending

    def move(self, debited: str, credited: str, amount_nano: int) -> None:
        self.balances[debited] -= amount_nano
        self.balances[credited] += amount_nano

    def exceeds(self, subject: str, time: str, maximum_nano: int, maximum_tokens: int) -> bool:
        if subject not in self.budgets:
            return False
        budget = self.budgets[subject]
        month, minute = self.drawn[subject, time[:7]], self.drawn[subject, time[:16]]
        return any(
            most is not None and taken > most
            for most, taken in (
                (budget.monthly_nano, month["spent_nano"] + maximum_nano),
                (budget.requests_per_minute, minute["requests"] + 1),
                (budget.tokens_per_minute, minute["tokens"] + maximum_tokens),
            )
        )

    def draw(self, intent: Intent, **amounts: int) -> None:
        for subject in intent.budgeted:
            for name, amount in amounts.items():
                window = intent.admitted_at[: 7 if name == "spent_nano" else 16]
                self.drawn[subject, window][name] += amount

    def end(self, intent: Intent, tokens: int, charge_nano: int) -> None:
        del self.open[intent.request_id]
        self.draw(intent, tokens=tokens - intent.maximum_tokens, spent_nano=charge_nano - intent.maximum_nano)

    def period(self, time: str) -> str:
        return max(time[:7], next_period(max(self.closed))) if self.closed else time[:7]

    def earned(self, time: str, account: str, amount_nano: int, **what: str | None) -> None:
        fact = {"kind": None, "item": None, "served_model": None} | what
        if account.startswith("contributor:"):
            place = {"account": account, "period": self.period(time), "day": time[:10]}
            self.facts.append(Fact(**place, amount_nano=amount_nano, **fact))

    def of(self, contributor: str) -> list[Fact]:
        return [fact for fact in self.facts if fact.account == f"contributor:{contributor}"]


class BooksMachine(RuleBasedStateMachine):
    admitted: Bundle[Intent] = Bundle("admitted")

    def __init__(self, new_database: NewDatabase) -> None:
        super().__init__()
        self.resources = ExitStack()
        self.engine = open_engine(self.resources.enter_context(opened(new_database)))
        self.clock = Clock()
        self.model = Model()
        self.numbers = count()
        self.written: list[tuple[Write, int]] = []
        self.restart("gw-1")
        for account in CALLERS:
            self.grant(account, 300_000)

    def teardown(self) -> None:
        with self.resources, self.engine.connect() as connection:
            assert audited(connection, settled=True) == [*fsck_derived(connection), *fsck_books(connection, LOG)] == []

    @rule(gateway=st.sampled_from(["gw-1", "gw-2"]))
    def restart(self, gateway: str) -> None:
        """Of a process nothing survives but the database and the key."""
        self.gateway = gateway
        self.books = new_books(gateway, self.clock)

    @rule(seconds=st.integers(1, 90) | st.integers(1, 24 * 20).map(lambda hours: hours * 3600))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)

    @rule(account=st.sampled_from(CALLERS), amount_nano=st.integers(1, 50_000))
    def grant(self, account: str, amount_nano: int) -> None:
        key, books = f"grant-{next(self.numbers)}", self.books
        self.write(lambda tx: books.grant_credit(tx, account, amount_nano, "more", key))
        self.model.move("funding", account, amount_nano)

    @rule(
        subject=st.sampled_from([*CALLERS, *KEYS]),
        limits=st.fixed_dictionaries(
            {},
            optional={
                "monthly_nano": st.integers(0, 300_000),
                "requests_per_minute": st.integers(0, 6),
                "tokens_per_minute": st.integers(0, 2_000),
            },
        ),
    )
    def set_budget(self, subject: str, limits: dict[str, int]) -> None:
        budget = Budget(subject=subject, **limits)
        self.commit(lambda tx: self.books.set_budget(tx, budget))
        self.model.budgets.pop(subject, None)
        if limits:
            self.model.budgets[subject] = budget

    @rule(
        target=admitted,
        account=st.sampled_from(CALLERS),
        key=st.sampled_from([None, *KEYS]),
        maximum_nano=st.integers(0, 100_000),
        maximum_tokens=st.integers(0, 500),
    )
    def admit(
        self, account: str, key: str | None, maximum_nano: int, maximum_tokens: int
    ) -> Intent | MultipleResults[Intent]:
        request, time = request_id(next(self.numbers)), self.books.now()

        def work(tx: Transaction) -> Intent:
            return self.books.admit(tx, account, maximum_nano, request, key=key, maximum_tokens=maximum_tokens)

        subjects = [subject for subject in (account, key) if subject in self.model.budgets]
        refusal: type[Exception] | None = None
        if maximum_nano > self.model.available(account):
            refusal = InsufficientCredit
        elif any(self.model.exceeds(subject, time, maximum_nano, maximum_tokens) for subject in subjects):
            refusal = BudgetExceeded
        if refusal:
            with pytest.raises(refusal):
                self.commit(work)
            return multiple()
        intent = self.commit(work)
        assert (intent.gateway_seq, intent.budgeted) == (self.model.sequence[self.gateway], tuple(subjects))
        self.model.sequence[self.gateway] += 1
        self.model.open[request] = intent
        self.model.draw(intent, requests=1, tokens=maximum_tokens, spent_nano=maximum_nano)
        return intent

    @rule(
        intent=admitted,
        prompt_tokens=st.integers(0, 300),
        completion_tokens=st.integers(0, 50),
        served_model=st.sampled_from(MODELS),
    )
    def record_usage(self, intent: Intent, prompt_tokens: int, completion_tokens: int, served_model: str) -> None:
        request, books = intent.request_id, self.books
        record = usage_of(prompt_tokens, completion_tokens, served_model=served_model)
        if request not in self.model.open or record.charge_nano > intent.maximum_nano:
            record = usage_of(prompt_tokens, completion_tokens + 1_000)
            with pytest.raises((IntentError, MeteringError)):
                self.commit(lambda tx: books.record_usage(tx, intent, record))
            return
        self.write(lambda tx: books.record_usage(tx, intent, record))
        self.model.end(intent, prompt_tokens + completion_tokens, record.charge_nano)
        self.model.charged[request] = (record.charge_nano, served_model)
        self.model.move(intent.account, "suspense", record.charge_nano)

    @rule(intent=admitted)
    def void(self, intent: Intent) -> None:
        reason, books = f"the client left {intent.request_id}", self.books
        if intent.request_id in self.model.charged:
            with pytest.raises(IntentError):
                self.commit(lambda tx: books.void(tx, intent, reason))
            return
        self.write(lambda tx: books.void(tx, intent, reason))
        if intent.request_id in self.model.open:
            self.model.end(intent, 0, 0)

    @precondition(lambda self: self.model.charged.keys() - self.model.in_force.keys())
    @rule(data=st.data(), weights=WEIGHTS)
    def attribute(self, data: st.DataObject, weights: tuple[int, ...]) -> None:
        self.attribute_to(
            data.draw(st.sampled_from(sorted(self.model.charged.keys() - self.model.in_force.keys()))), weights
        )

    def attribute_to(self, request: str, weights: tuple[int, ...]) -> None:
        charge_nano, served_model = self.model.charged[request]
        record, books, time = record_of(request, charge_nano, weights), self.books, self.books.now()
        self.write(lambda tx: books.record_attribution(tx, record))
        self.model.in_force[request] = record
        for line in record.split:
            self.model.move("suspense", line.account, line.amount_nano)
            what = {"role": line.role, "kind": line.kind, "item": line.item, "served_model": served_model}
            self.model.earned(time, line.account, line.amount_nano, **what)

    @precondition(lambda self: self.model.in_force)
    @rule(data=st.data(), weights=WEIGHTS)
    def correct(self, data: st.DataObject, weights: tuple[int, ...]) -> None:
        self.correct_to(data.draw(st.sampled_from(sorted(self.model.in_force))), weights)

    def correct_to(self, request: str, weights: tuple[int, ...]) -> None:
        charge_nano, served_model = self.model.charged[request]
        record, books, time = record_of(request, charge_nano, weights), self.books, self.books.now()
        reason = f"correction {next(self.numbers)}"
        index = self.commit(lambda tx: supersede(books, tx, record, reason))
        assert self.commit(lambda tx: supersede(books, tx, record, reason)) == index
        changes: Counter[tuple[str, str | None, str | None]] = Counter()
        for sign, split in ((1, record.split), (-1, self.model.in_force[request].split)):
            for line in split:
                self.model.balances[line.account] += sign * line.amount_nano
                changes[line.account, line.kind, line.item] += sign * line.amount_nano
        self.model.in_force[request] = record
        for (account, kind, item), amount_nano in changes.items():
            if amount_nano:
                what = {"role": "correction", "kind": kind, "item": item, "served_model": served_model}
                self.model.earned(time, account, amount_nano, **what)

    @precondition(lambda self: self.model.charged)
    @rule(data=st.data(), rating=st.sampled_from([1, -1]))
    def rate(self, data: st.DataObject, rating: int) -> None:
        self.rate_as(data.draw(st.sampled_from(sorted(self.model.charged))), rating)

    def rate_as(self, request: str, rating: int) -> None:
        books = self.books
        index = self.commit(lambda tx: record_feedback(books, tx, request, rating))
        assert self.commit(lambda tx: record_feedback(books, tx, request, rating)) == index
        self.model.ratings[request] = rating

    @rule(
        account=st.sampled_from(CALLERS),
        key=st.sampled_from([None, *KEYS]),
        prompt_tokens=st.integers(0, 150),
        weights=WEIGHTS,
        corrections=st.lists(WEIGHTS, max_size=2),
        ratings=st.lists(st.sampled_from([1, -1]), max_size=2),
    )
    def answer(
        self,
        account: str,
        key: str | None,
        prompt_tokens: int,
        weights: tuple[int, ...],
        corrections: list[tuple[int, ...]],
        ratings: list[int],
    ) -> None:
        """All that may befall a request, which single steps seldom come to."""
        intent = self.admit(account, key, 25_000, prompt_tokens + 10)
        if isinstance(intent, Intent):
            self.record_usage(intent, prompt_tokens, 1, "chat")
            self.attribute_to(intent.request_id, weights)
            for rating in ratings:
                self.rate_as(intent.request_id, rating)
            for corrected in corrections:
                self.correct_to(intent.request_id, corrected)

    @rule(days=st.integers(28, 40))
    def pass_a_month(self, days: int) -> None:
        self.clock.advance(days=days)
        self.close_the_next_month()

    @rule(days=st.integers(1, 40))
    def set_the_clock_back(self, days: int) -> None:
        """As on another machine, whose clock is behind: what it writes belongs to the first month that is open."""
        if self.model.closed:
            self.clock.advance(days=-days)

    @rule()
    def close_the_next_month(self) -> None:
        period = next_period(max(self.model.closed)) if self.model.closed else "2025-01"
        books, time = self.books, self.books.now()
        if time[:7] <= period:
            with pytest.raises(ValueError, match="has not ended"):
                self.commit(lambda tx: settle(books, tx, period, TERMS))
            return
        for contributor in CONTRIBUTORS:
            facts = self.model.of(contributor)
            closing_nano = sum(fact.amount_nano for fact in facts if fact.period <= period)
            paid_since = sum(fact.amount_nano for fact in facts if fact.period > period and fact.role == "payout")
            account = f"contributor:{contributor}"
            left_nano = max(0, min(closing_nano + paid_since, self.model.balances[account]))
            amount_nano = left_nano - left_nano % UNIT_NANO
            if amount_nano >= TERMS.minimum_nano:
                self.model.move(account, "payouts", amount_nano)
                self.model.earned(time, account, -amount_nano, role="payout")
        self.write(lambda tx: settle(books, tx, period, TERMS).log_index)
        with self.engine.connect() as connection:
            self.model.closed[period] = stated(connection, period)

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The reply was lost, perhaps long ago, and the same is written again."""
        write, log_index = data.draw(st.sampled_from(self.written))
        assert self.commit(write) == log_index

    def write(self, write: Write) -> None:
        self.written.append((write, self.commit(write)))

    def commit(self, work: Callable[[Transaction], T]) -> T:
        """Do the work in a transaction that a crash takes away, undone there once, then in one that commits."""
        with self.engine.connect() as connection:
            tx = Transaction(connection, LOG)
            mark = tx.mark()
            work(tx)
            if tx.rewind(mark):
                work(tx)
            tx.seal()
        with transaction(self.engine) as tx:
            return work(tx)

    @invariant()
    def laws_hold(self) -> None:
        with self.engine.connect() as connection:
            logged_entries = logged(connection)
            stored = Counter(dict(balances(connection)))
            still_open = list(open_intents(connection))
            rows = connection.execute(select(posting_table.c.account, posting_table.c.amount_nano)).all()
            pending = {account: balance(connection, account).pending_nano for account in CALLERS}
        replayed: Counter[str] = Counter()
        for entry in logged_entries:
            assert sum_nano(entry.data.get("postings", ())) == 0, "I1"
            if "split" in entry.data:
                assert sum_nano(entry.data["split"]) == int(entry.data["charge_nano"]), "I2"
            for posting in entry.data.get("postings", ()):
                replayed[posting["account"]] += int(posting["amount_nano"])
        assert sum(stored.values()) == 0, "I1"
        assert stored == replayed == self.model.balances, "I3"
        by_account: Counter[str] = Counter()
        for account, amount_nano in rows:
            by_account[account] += amount_nano
        assert stored == by_account, "I3"

        ended = [entry for entry in logged_entries if "gateway_seq" in entry.data]
        numbers = [(entry.data["gateway"], entry.data["gateway_seq"]) for entry in ended]
        numbers += [(intent.gateway, intent.gateway_seq) for intent in still_open]
        assert sorted(numbers) == [
            (gateway, number) for gateway in ("gw-1", "gw-2") for number in range(self.model.sequence[gateway])
        ], "I4"
        assert {intent.request_id: intent for intent in still_open} == self.model.open
        for account in CALLERS:
            assert stored[account] - pending[account] == self.model.available(account) >= 0

    @invariant()
    def corrections_name_what_they_replace(self) -> None:
        records: dict[str, int] = {}
        with self.engine.connect() as connection:
            for log_index, entry in enumerate(logged(connection)):
                if entry.type == "answer.superseded":
                    assert entry.data["supersedes"] == records[entry.subject], "I8"
                if entry.type in {"answer.attributed", "answer.superseded"}:
                    records[entry.subject] = log_index
            assert records.keys() == self.model.in_force.keys()
            for request, log_index in records.items():
                state = request_state(connection, request)
                assert state is not None
                assert state.attribution_index == log_index

    @invariant()
    def budgets_hold_what_was_drawn(self) -> None:
        with self.engine.connect() as connection:
            rows = connection.execute(select(draw_table)).all()
        stored = {
            (row.subject, row.time_window): Counter(requests=row.requests, tokens=row.tokens, spent_nano=row.spent_nano)
            for row in rows
        }
        drawn = {place: amounts for place, amounts in self.model.drawn.items() if any(amounts.values())}
        assert {place: amounts for place, amounts in stored.items() if any(amounts.values())} == drawn
        assert all(amount >= 0 for amounts in stored.values() for amount in amounts.values())

    @invariant()
    def what_was_closed_stays_as_it_was(self) -> None:
        with self.engine.connect() as connection:
            for period, said in self.model.closed.items():
                assert stated(connection, period) == said
                closed = settlement(connection, period, lambda index: LOG.entry(connection, index))
                assert closed is not None
                assert closed.statements_root == statements_root(summaries(connection, period)).hex()

    @precondition(lambda self: self.model.facts)
    @invariant()
    def contributors_see_what_was_posted(self) -> None:
        with self.engine.connect() as connection:
            for contributor in CONTRIBUTORS:
                self.check_contributor(connection, contributor)

    def check_contributor(self, connection: Connection, contributor: str) -> None:
        all_facts = self.model.of(contributor)
        closing_nano = 0
        for period in sorted({fact.period for fact in all_facts} | {self.model.period(self.books.now())}):
            facts = [fact for fact in all_facts if fact.period == period]
            said = statement(connection, contributor, period)
            head = said.summary
            assert head.opening_nano == closing_nano
            closing_nano = head.closing_nano
            by_role = Counter[str]()
            for fact in facts:
                by_role[fact.role if fact.role in {"correction", "payout"} else "earned"] += fact.amount_nano
            sums = (head.earned_nano, head.corrected_nano, head.paid_nano, head.lines)
            assert sums == (by_role["earned"], by_role["correction"], by_role["payout"], len(facts))
            assert Counter(map(fact_of, said.lines)) == Counter(facts)
            in_order = [(line.log_index, line.position) for line in said.lines]
            assert in_order == sorted(in_order)
            rated = {line.request_id for line in said.lines} & self.model.ratings.keys()
            assert said.ratings == {request: self.model.ratings[request] for request in rated}
            self.check_earnings(connection, contributor, period, facts)
        assert closing_nano == self.model.balances[f"contributor:{contributor}"]
        assert earnings(connection, contributor).total_nano == earned_nano(all_facts)
        listed, after = [], None
        while True:
            page = entries(connection, contributor, after, limit=3)
            listed += page.lines
            if (after := page.next_after) is None:
                break
        assert Counter(map(fact_of, listed)) == Counter(all_facts)
        in_order = [(line.log_index, line.position) for line in listed]
        assert in_order == sorted(set(in_order))

    def check_earnings(self, connection: Connection, contributor: str, period: str, facts: list[Fact]) -> None:
        expected: dict[str, Counter[str | None]] = {by: Counter() for by in ("document", "adapter", "model", "day")}
        for fact in facts:
            if fact.role == "payout":
                continue
            for by in ("document", "adapter"):
                expected[by][fact.item if fact.kind == by else None] += fact.amount_nano
            expected["model"][fact.served_model] += fact.amount_nano
            expected["day"][fact.day] += fact.amount_nano
        for by, groups in expected.items():
            found = earnings(connection, contributor, period, by)
            assert (Counter(found.groups), found.total_nano) == (groups, earned_nano(facts))


def record_of(request: str, charge_nano: int, weights: tuple[int, ...]) -> AttributionRecord:
    keys = [name.encode() for name, _ in PLAYERS]
    shares = apportion(1_000_000, weights, keys) if any(weights) else [0] * len(PLAYERS)
    players = [
        PlayerShare(id=name, share_ppm=share, terms=terms) for (name, terms), share in zip(PLAYERS, shares, strict=True)
    ]
    return attribution_record(request, charge_nano, players)


def fact_of(line: Any) -> Fact:
    told = {name: getattr(line, name) for name in Fact._fields if name != "day"}
    return Fact(day=line.time[:10], **told)


def stated(connection: Connection, period: str) -> dict[str, Any]:
    """What a period says of each contributor, without the ratings, which go on."""
    said = {contributor: statement(connection, contributor, period) for contributor in CONTRIBUTORS}
    return {contributor: (one.summary, one.closed_index, one.lines) for contributor, one in said.items()}


def earned_nano(facts: Iterable[Fact]) -> int:
    return sum(fact.amount_nano for fact in facts if fact.role != "payout")


def sum_nano(lines: Iterable[dict[str, str]]) -> int:
    return sum(int(line["amount_nano"]) for line in lines)


def test_the_laws_hold_in_every_history(new_database: NewDatabase) -> None:
    run_state_machine_as_test(
        lambda: BooksMachine(new_database), settings=settings(max_examples=8, stateful_step_count=25)
    )
