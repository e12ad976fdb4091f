"""Two logs, one ledger, and everything that can happen between them, in any order."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger_client import Accepted, Batch, Entry, Received, Signer, shipped

from ..databases import opened, sqlite_file  # noqa: TID252  the tests are no package of their own
from .facts import registered
from .ledger_kit import Due, Elsewhere, Source

ORIGINS, LEDGER = ("one.example/log", "two.example/log"), "ledger.example/log"
SIGNERS = {origin: Signer.generate(origin) for origin in (*ORIGINS, LEDGER)}
KEY = SIGNERS[LEDGER].verifier


class Shipping(RuleBasedStateMachine):
    """The sender may stop after every step, and the network may repeat, delay and lose what it carries."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.sources = {
            origin: Source(self.stack.enter_context(opened(sqlite_file)), SIGNERS[origin]) for origin in ORIGINS
        }
        verifiers = [SIGNERS[origin].verifier for origin in ORIGINS]
        self.elsewhere = Elsewhere(self.stack.enter_context(opened(sqlite_file)), SIGNERS[LEDGER], verifiers)
        self.carried: list[Batch] = []
        self.replies: list[tuple[str, Due, Accepted]] = []
        self.written = 0

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        for origin, source in self.sources.items():
            while (due := source.next(LEDGER)) is not None:
                source.keep(source.verify(self.send(due[0]), KEY, due))
            assert self.held(origin) == source.entries
            assert source.fsck() == []
        assert self.elsewhere.fsck() == []
        self.stack.close()

    @rule(origin=st.sampled_from(ORIGINS), many=st.integers(1, 7))
    def commit(self, origin: str, many: int) -> None:
        self.sources[origin].commit(registered(number) for number in range(self.written, self.written + many))
        self.written += many

    @rule(origin=st.sampled_from(ORIGINS), entries=st.integers(1, 9), noted=st.booleans())
    def ship(self, origin: str, entries: int, noted: bool) -> None:
        source = self.sources[origin]
        if (due := source.next(LEDGER)) is None:
            return
        whole, seen = due
        batch = source.batch(whole.start, min(whole.start + entries, whole.end), whole.seen)
        self.carried.append(batch)
        accepted = self.send(batch)
        shipment = source.verify(accepted, KEY, (batch, seen))
        if noted:
            source.keep(shipment)
        else:
            self.replies.append((origin, (batch, seen), accepted))

    @precondition(lambda self: self.carried)
    @rule(data=st.data())
    def an_old_batch_arrives_again(self, data: st.DataObject) -> None:
        before = len(self.elsewhere.entries)
        self.send(data.draw(st.sampled_from(self.carried)))
        assert len(self.elsewhere.entries) == before

    @precondition(lambda self: self.replies)
    @rule(data=st.data())
    def an_old_reply_is_noted_late(self, data: st.DataObject) -> None:
        origin, due, accepted = data.draw(st.sampled_from(self.replies))
        source = self.sources[origin]
        source.keep(source.verify(accepted, KEY, due))

    @invariant()
    def what_is_held_is_a_prefix_and_what_is_acknowledged_is_held(self) -> None:
        if not hasattr(self, "stack"):
            return
        for origin, source in self.sources.items():
            held = self.held(origin)
            assert held == source.entries[: len(held)]
            with source.database.read() as connection:
                assert shipped(connection, LEDGER) <= len(held)

    def send(self, batch: Batch) -> Accepted:
        return asyncio.run(self.elsewhere.ledger.accept(batch))

    def held(self, origin: str) -> list[bytes]:
        received = [Received.of(Entry.decode(raw)) for raw in self.elsewhere.entries]
        own = [one for one in received if one.origin == origin]
        assert [one.log_index for one in own] == list(range(len(own)))
        return [one.entry.encode() for one in own]


TestShipping = Shipping.TestCase
TestShipping.settings = settings(max_examples=20, stateful_step_count=20)
