"""The simulator: gateways, clients and a network around one database, all of it by lot from one seed.

Clients ask; what they ask waits in the network, where it may be doubled, overtaken and repeated. Gateways take some of
it at a time, each by its own clock, and commit it as one batch, in which the database may fail or the process may die.
The model is then told what committed, and everything that is stored must be what the model says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from random import Random
from typing import Any

from sqlalchemy import Connection, select

import ledger_client
import metering
from ledger_client import Entry
from metering import Books, CommitError, balance, balances, closed_periods, open_intents, statement
from metering.tables import draw_table, intent_table, rating_table
from tests.databases import engine_of

from .commands import ACCOUNTS, CONTRIBUTORS, DISTRIBUTOR, WORKS, Clients, expected_by
from .load import LOG, SIGNER, findings
from .model import CONTRIBUTOR, Command, Model, Refused
from .storage import CRASH, REPLY_LOST, STUMBLE, Fault, Storage, opened

START = datetime(2025, 1, 30, 12, tzinfo=UTC)
GATEWAYS = ("gw-1", "gw-2", "gw-3")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run came to. root: of the log at its end, in hex, with its size; happened: how often what did."""

    root: str
    size: int
    happened: Counter[str]


class Gateway:
    """A process that serves. Of it nothing survives a crash but its id and its clock's error."""

    def __init__(self, world: World, gateway_id: str) -> None:
        self.id = gateway_id
        self.skew = timedelta(seconds=world.lots.randint(-90, 90))
        self._world = world
        self._database = opened(world.url)  # kept for what it has compiled; its connections are a process's own
        self.storage = Storage(self._database, max_batch=world.lots.choice((1, 3, 256)))
        self.books = Books(gateway_id, self.now)

    def now(self) -> datetime:
        return self._world.time + self.skew

    def commit(self, commands: Sequence[Command], fault: Fault | None = None) -> list[Any]:
        works = [partial(WORKS[command.name], self.books) for command in commands]
        works = [lambda tx, work=work, command=command: work(tx, *command.arguments)
                 for work, command in zip(works, commands, strict=True)]  # fmt: skip
        return self.storage.commit(works, [expected_by(command) for command in commands], fault)

    def restart(self) -> None:
        self.storage.close()
        self.storage = Storage(self._database, max_batch=self._world.lots.choice((1, 3, 256)))


class World:
    """One history. url: of an empty database. Everything that happens follows from the seed."""

    def __init__(self, seed: int, url: str) -> None:
        self.lots = Random(seed)  # noqa: S311 - lots, and no secrets
        self.url = url
        self.time = START
        self.step = 0
        self.model = Model()
        self.happened: Counter[str] = Counter()
        self._clients = Clients(self.lots, self.model)
        self._network: list[Command] = []
        self._reader = opened(url)
        engine_of(self._reader, ledger_client.metadata, metering.metadata)
        self.gateways = [Gateway(self, name) for name in GATEWAYS[: self.lots.randint(1, 3)]]

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.storage.close()
        self._reader.close()

    def run(self, steps: int) -> Report:
        """Live for so many steps, let everything in flight arrive, and check. Raises AssertionError."""
        self._told(self.gateways[0], [Command(name="register", arguments=())], None)
        acts = {
            self._pass_time: 3,
            self._ask: 5,
            self._deliver: 8,
            self._sweep: 1,
            self._settle: 2,
            self._reset_clock: 1,
        }
        for self.step in range(steps):
            self.lots.choices(list(acts), list(acts.values()))[0]()
        while self._network:
            self._deliver()
        for gateway in self.gateways:
            self._restart(gateway)
        self.check()
        assert self.model.open == [], "after every gateway's restart nothing is pending"
        with self._reader.read() as connection:
            checkpoint = SIGNER.verifier.open(LOG.checkpoint(connection))
        return Report(root=checkpoint.root.hex(), size=checkpoint.size, happened=self.happened)

    # What happens.

    def _pass_time(self) -> None:
        minutes = self.lots.choices((1, 20, 60 * 9, 60 * 24 * 11), (6, 6, 5, 3))[0]
        self.time += timedelta(
            minutes=minutes, seconds=self.lots.randint(0, 59), microseconds=self.lots.randint(0, 999)
        )

    def _reset_clock(self) -> None:
        """A gateway's clock is put right, or wrong, and may go back."""
        self.lots.choice(self.gateways).skew = timedelta(seconds=self.lots.randint(-300, 300))

    def _ask(self) -> None:
        self._network += [self._clients.ask() for _ in range(self.lots.randint(1, 8))]

    def _sweep(self) -> None:
        gateway = self.lots.choice(self.gateways)
        before = _time(gateway.now() - timedelta(minutes=30))
        self._commit(gateway, [Command(name="sweep", arguments=(None, before, "its deadline passed"))])

    def _settle(self) -> None:
        gateway = self.lots.choice(self.gateways)
        self._network.append(self._clients.settle(_time(gateway.now())[:7]))

    def _deliver(self) -> None:
        """Hand some of what is in flight to a gateway, in any order, some of it twice or again later."""
        if not self._network:
            return
        batch = self.lots.sample(self._network, min(len(self._network), self.lots.choice((1, 2, 5, 12))))
        for command in batch:
            self._network.remove(command)
        doubled = [command for command in batch if self.lots.random() < 0.1]
        self._network += [command for command in batch if self.lots.random() < 0.08]
        self.happened["doubled"] += len(doubled)
        self._commit(self.lots.choice(self.gateways), batch + doubled)

    def _restart(self, gateway: Gateway) -> None:
        """Start a gateway anew; it ends what it left open. Where that fails it is started again."""
        reason = "the gateway stopped"
        while True:
            gateway.restart()
            command = Command(name="sweep", arguments=(gateway.id, None, reason))
            if not self._told(gateway, [command], self._fault()) and gateway.storage.ran:
                return

    # What follows.

    def _commit(self, gateway: Gateway, commands: Sequence[Command]) -> None:
        if self._told(gateway, commands, self._fault()):
            self._restart(gateway)
            self.check()

    def _fault(self) -> Fault | None:
        kind = self.lots.choices((None, CRASH, REPLY_LOST, STUMBLE), (16, 2, 1, 1))[0]
        return None if kind is None else Fault(kind=kind, at=self.lots.choice((0, 3, 8, 15, 25, 10**6)))

    def _told(self, gateway: Gateway, commands: Sequence[Command], fault: Fault | None) -> bool:
        """Commit commands, tell the model, and compare what each was told. Returns whether the process died."""
        now = _time(gateway.now())
        outcomes = gateway.commit(commands, fault)
        if fault is not None:
            self.happened[fault.kind] += 1
        for number, (command, outcome) in enumerate(zip(commands, outcomes, strict=True)):
            committed = number in gateway.storage.ran
            if isinstance(outcome, CommitError) and not committed:
                self._ask_again(command)
                continue
            try:
                due = self.model.tell(command, gateway.id, now)
            except Refused as refused:
                due = refused.name
            if isinstance(outcome, CommitError):
                self._ask_again(command)  # it landed, and nobody knows
                continue
            told = type(outcome).__name__ if isinstance(outcome, Exception) else outcome
            assert told == due, f"{command.name} of {gateway.id} at {now} was told {outcome!r}, not {due!r}: {command}"
            self.happened["refused" if isinstance(outcome, Exception) else command.name] += 1
        return gateway.storage.crashed

    def _ask_again(self, command: Command) -> None:
        if command.name != "sweep":  # which no client asked for
            self._network.append(command)

    # What must be.

    def check(self) -> None:
        """Compare everything that is stored with the model, and have the checkers look. Raises AssertionError."""
        with self._reader.read() as connection:
            self._check_log(connection)
            self._check_books(connection)
            for contributor in CONTRIBUTORS:
                self._check_statements(connection, contributor)
            found = findings(connection)
        assert not found, "\n".join(map(str, found))

    def _check_log(self, connection: Connection) -> None:
        stored = [Entry.decode(raw) for _, raw in LOG.entries(connection)]
        for log_index, (entry, fact) in enumerate(zip(stored, self.model.facts, strict=False)):
            postings: Any = entry.data.get("postings", ())
            net: Counter[str] = Counter()
            for posting in postings:
                net[posting["account"]] += int(posting["amount_nano"])
            said = (
                entry.type,
                entry.subject,
                entry.time,
                {account: amount for account, amount in net.items() if amount},
            )
            due = (fact.type, fact.subject, fact.time, dict(fact.net))
            assert said == due, f"entry {log_index} is {said}, not {due}"
        assert len(stored) == len(self.model.facts), (
            f"{len(stored)} entries are stored, {len(self.model.facts)} are due"
        )

    def _check_books(self, connection: Connection) -> None:
        model = self.model
        assert {account: nano for account, nano in balances(connection) if nano} == {
            account: nano for account, nano in model.balances.items() if nano
        }
        for account in ACCOUNTS:
            assert balance(connection, account).pending_nano == model.pending(account), f"pending on {account}"
        assert list(open_intents(connection)) == model.open
        ended = select(intent_table.c.request_id, intent_table.c.ended_index, intent_table.c.attribution_index)
        assert {row.request_id: (row.ended_index, row.attribution_index) for row in connection.execute(ended)} == {
            request_id: (request.ended, request.in_force and request.in_force[0])
            for request_id, request in model.requests.items()
        }
        given = select(rating_table.c.log_index, rating_table.c.rating).order_by(rating_table.c.log_index)
        assert [tuple(row) for row in connection.execute(given)] == sorted(
            rating for request in model.requests.values() for rating in request.ratings
        )
        drawn = {
            (row.subject, row.time_window, what): number
            for row in connection.execute(select(draw_table))
            for what, number in (("spent", row.spent_nano), ("requests", row.requests), ("tokens", row.tokens))
            if number
        }
        assert drawn == {place: number for place, number in model.draws.items() if number}, "budgets as drawn"
        closed = (closed_periods(connection, distributor) for distributor in (None, DISTRIBUTOR))
        assert sorted(chain.from_iterable(closed)) == sorted(model.closed)

    def _check_statements(self, connection: Connection, contributor: str) -> None:
        lines = self.model.lines(CONTRIBUTOR + contributor)
        opening = 0
        for period in sorted({fact.period for _, fact, _ in lines}):
            said = statement(connection, contributor, period)
            due = [(log_index, amount) for log_index, fact, amount in lines if fact.period == period]
            assert [(line.log_index, line.amount_nano) for line in said.lines] == due, f"{contributor} in {period}"
            assert said.summary.opening_nano == opening, f"{contributor} in {period}"
            opening = said.summary.closing_nano
        assert opening == self.model.balances[CONTRIBUTOR + contributor], f"the balance of {contributor}"


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
