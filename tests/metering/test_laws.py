"""The books against a model of them: random histories on a real database, the laws checked after every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

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
from ledger_client import Signer, fsck
from metering import (
    AdapterTerms,
    DocumentTerms,
    InsufficientCredit,
    Intent,
    IntentError,
    MeteringError,
    PlayerShare,
    SplitLine,
    balances,
    earnings,
    entries,
    fsck_books,
    open_intents,
    statement,
)
from metering.store import posting_table

from ..databases import NewDatabase, opened  # noqa: TID252  the tests are no package of their own
from .kit import Clock, attribution_record, logged, new_books, open_engine, request_id, usage_record

T = TypeVar("T")
Write = Callable[[Connection], int]
CALLERS = ("caller:alice", "caller:bob")
CONTRIBUTORS = ("ann", "bob", "dev")
PLAYERS = (
    ("doc_1", DocumentTerms(owner="ann")),
    ("doc_2", DocumentTerms(owner="bob")),
    ("concise", AdapterTerms(developer="dev", datasets=(("ann", 1), ("bob", 2)))),
)
MODELS = ("chat", "plain")


@dataclass
class Model:
    """What the books should say, kept in plain dictionaries."""

    balances: Counter[str] = field(default_factory=Counter)
    open: dict[str, Intent] = field(default_factory=dict)
    charged: dict[str, tuple[int, str]] = field(default_factory=dict)  # charge and served model
    attributed: set[str] = field(default_factory=set)
    sequence: Counter[str] = field(default_factory=Counter)
    earned: list[tuple[str, str, SplitLine]] = field(default_factory=list)  # day, served model, line

    def available(self, account: str) -> int:
        pending = sum(intent.maximum_nano for intent in self.open.values() if intent.account == account)
        return self.balances[account] - pending

    def move(self, debited: str, credited: str, amount_nano: int) -> None:
        self.balances[debited] -= amount_nano
        self.balances[credited] += amount_nano


class BooksMachine(RuleBasedStateMachine):
    admitted: Bundle[Intent] = Bundle("admitted")

    def __init__(self, new_database: NewDatabase) -> None:
        super().__init__()
        self.resources = ExitStack()
        self.engine = open_engine(self.resources.enter_context(opened(new_database)))
        self.signer = Signer.generate("example.com/log")
        self.clock = Clock()
        self.model = Model()
        self.numbers = count()
        self.written: list[tuple[Write, int]] = []
        self.restart("gw-1")
        for account in CALLERS:
            self.grant(account, 150_000)

    def teardown(self) -> None:
        with self.resources, self.engine.begin() as connection:
            self.log.seal(connection)
            findings = fsck(
                self.log.entries(connection),
                self.log.checkpoints(connection),
                dict(balances(connection)),
                self.signer.verifier,
                open_intents={(intent.gateway, intent.gateway_seq) for intent in open_intents(connection)},
            )
            findings += fsck_books(connection, self.log)
            assert findings == []

    @rule(gateway=st.sampled_from(["gw-1", "gw-2"]))
    def restart(self, gateway: str) -> None:
        """Of a process nothing survives but the database and the key."""
        self.gateway = gateway
        self.books, self.log = new_books(gateway, self.clock, self.signer)

    @rule(hours=st.integers(1, 24 * 20))
    def pass_time(self, hours: int) -> None:
        self.clock.advance(hours=hours)

    @rule(account=st.sampled_from(CALLERS), amount_nano=st.integers(1, 50_000))
    def grant(self, account: str, amount_nano: int) -> None:
        key = f"grant-{next(self.numbers)}"
        self.write(lambda connection: self.books.grant_credit(connection, account, amount_nano, "more", key))
        self.model.move("funding", account, amount_nano)

    @rule(target=admitted, account=st.sampled_from(CALLERS), maximum_nano=st.integers(0, 100_000))
    def admit(self, account: str, maximum_nano: int) -> Intent | MultipleResults[Intent]:
        request = request_id(next(self.numbers))
        if maximum_nano > self.model.available(account):
            with pytest.raises(InsufficientCredit):
                self.commit(lambda connection: self.books.admit(connection, account, maximum_nano, request))
            return multiple()
        intent = self.commit(lambda connection: self.books.admit(connection, account, maximum_nano, request))
        assert intent.gateway_seq == self.model.sequence[self.gateway]
        self.model.sequence[self.gateway] += 1
        self.model.open[request] = intent
        return intent

    @rule(
        intent=admitted,
        prompt_tokens=st.integers(0, 300),
        completion_tokens=st.integers(0, 50),
        served_model=st.sampled_from(MODELS),
    )
    def record_usage(self, intent: Intent, prompt_tokens: int, completion_tokens: int, served_model: str) -> None:
        request = intent.request_id
        record = usage_record(prompt_tokens, completion_tokens, served_model=served_model)
        if request not in self.model.open or record.charge_nano > intent.maximum_nano:
            record = usage_record(prompt_tokens, completion_tokens + 1_000)
            with pytest.raises((IntentError, MeteringError)):
                self.commit(lambda connection: self.books.record_usage(connection, intent, record))
            return
        self.write(lambda connection: self.books.record_usage(connection, intent, record))
        del self.model.open[request]
        self.model.charged[request] = (record.charge_nano, served_model)
        self.model.move(intent.account, "suspense", record.charge_nano)

    @rule(intent=admitted)
    def void(self, intent: Intent) -> None:
        reason = f"the client left {intent.request_id}"
        if intent.request_id in self.model.charged:
            with pytest.raises(IntentError):
                self.commit(lambda connection: self.books.void(connection, intent, reason))
            return
        self.write(lambda connection: self.books.void(connection, intent, reason))
        self.model.open.pop(intent.request_id, None)

    @precondition(lambda self: self.model.charged.keys() - self.model.attributed)
    @rule(data=st.data(), weights=st.tuples(*[st.integers(0, 9)] * len(PLAYERS)))
    def attribute(self, data: st.DataObject, weights: tuple[int, ...]) -> None:
        request = data.draw(st.sampled_from(sorted(self.model.charged.keys() - self.model.attributed)))
        charge_nano, served_model = self.model.charged[request]
        self.model.attributed.add(request)
        keys = [name.encode() for name, _ in PLAYERS]
        shares = apportion(1_000_000, weights, keys) if any(weights) else [0] * len(PLAYERS)
        players = [
            PlayerShare(id=name, share_ppm=share, terms=terms)
            for (name, terms), share in zip(PLAYERS, shares, strict=True)
        ]
        record = attribution_record(request, charge_nano, players)
        self.write(lambda connection: self.books.record_attribution(connection, record))
        for line in record.split:
            self.model.move("suspense", line.account, line.amount_nano)
            self.model.earned.append((self.clock.now.isoformat()[:10], served_model, line))

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The reply was lost, perhaps long ago, and whatever gateway runs now writes the same again."""
        write, log_index = data.draw(st.sampled_from(self.written))
        assert self.commit(write) == log_index

    def write(self, write: Write) -> None:
        self.written.append((write, self.commit(write)))

    def commit(self, work: Callable[[Connection], T]) -> T:
        """Do the work in a transaction that a crash takes away, then in one that commits."""
        with self.engine.connect() as connection:
            work(connection)
        with self.engine.begin() as connection:
            result = work(connection)
            self.log.seal(connection)
        return result

    @invariant()
    def laws_hold(self) -> None:
        with self.engine.begin() as connection:
            logged_entries = logged(self.log, connection)
            stored = Counter(dict(balances(connection)))
            still_open = list(open_intents(connection))
            rows = connection.execute(select(posting_table.c.account, posting_table.c.amount_nano)).all()
            pending = {account: self.books.balance(connection, account).pending_nano for account in CALLERS}
        replayed: Counter[str] = Counter()
        for entry in logged_entries:
            assert sum_nano(entry.data.get("postings", ())) == 0, "I1"
            if entry.type == "answer.attributed":
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

    @precondition(lambda self: self.model.earned)
    @invariant()
    def contributors_see_what_was_posted(self) -> None:
        with self.engine.begin() as connection:
            for contributor in CONTRIBUTORS:
                self.check_contributor(connection, contributor)

    def check_contributor(self, connection: Connection, contributor: str) -> None:
        earned = [fact for fact in self.model.earned if fact[2].account == f"contributor:{contributor}"]
        ever = earnings(connection, contributor)
        assert ever.total_nano == self.model.balances[f"contributor:{contributor}"]
        months = {day[:7] for day, _, _ in earned} | {self.clock.now.isoformat()[:7]}
        closing_nano = 0
        for period in sorted(months):
            facts = [fact for fact in earned if fact[0].startswith(period)]
            said = statement(connection, contributor, period)
            assert said.opening_nano == closing_nano
            closing_nano = said.closing_nano
            assert [line.amount_nano for line in said.lines] == [line.amount_nano for _, _, line in facts]
            expected: dict[str, Counter[str | None]] = {by: Counter() for by in ("document", "adapter", "model", "day")}
            for day, served_model, line in facts:
                for by in ("document", "adapter"):
                    expected[by][line.item if line.kind == by else None] += line.amount_nano
                expected["model"][served_model] += line.amount_nano
                expected["day"][day] += line.amount_nano
            for by, groups in expected.items():
                found = earnings(connection, contributor, period, by)
                assert (found.groups, found.total_nano) == (groups, said.total_nano)
        assert closing_nano == ever.total_nano
        listed, after = [], None
        while True:
            page = entries(connection, contributor, after, limit=3)
            listed += [line.amount_nano for line in page.lines]
            if (after := page.next_after) is None:
                break
        assert listed == [line.amount_nano for _, _, line in earned]


def sum_nano(lines: Iterable[dict[str, str]]) -> int:
    return sum(int(line["amount_nano"]) for line in lines)


def test_the_laws_hold_in_every_history(new_database: NewDatabase) -> None:
    run_state_machine_as_test(
        lambda: BooksMachine(new_database), settings=settings(max_examples=12, stateful_step_count=25)
    )
