"""What every ledger does, asked of the one in this process and of the same one over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest
import sqlalchemy as sa

from ledger_client import (
    Batch,
    BatchFault,
    BatchRefused,
    Checkpoint,
    Entry,
    Ledger,
    LedgerInconsistent,
    Line,
    Log,
    Logged,
    NotInLog,
    Received,
    RemoteLedger,
    Signer,
    StoredReceived,
    forks,
    leaf_hash,
    ledger_receipt,
    sources,
    verify_receipt,
)
from ledger_client.tables import log_entry, log_received, log_shipment

from ..databases import NewDatabase, opened  # noqa: TID252  the tests are no package of their own
from .facts import attributed, registered, used, voided
from .ledger_kit import Elsewhere, Source
from .serving import serving

ORIGIN, SECOND, LEDGER = "example.com/log", "second.example/log", "ledger.example/log"
SIGNERS = {origin: Signer.generate(origin) for origin in (ORIGIN, SECOND, LEDGER)}
KEY = SIGNERS[LEDGER].verifier


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def source(stack: ExitStack, new_database: NewDatabase) -> Source:
    source = Source(stack.enter_context(opened(new_database)), SIGNERS[ORIGIN])
    source.commit([registered(1), used(0), attributed(0, 1)])
    source.commit([voided(1)])
    source.commit(registered(number) for number in range(2, 8))
    return source


@pytest.fixture
def elsewhere(stack: ExitStack, new_database: NewDatabase) -> Elsewhere:
    verifiers = [SIGNERS[origin].verifier for origin in (ORIGIN, SECOND)]
    return Elsewhere(stack.enter_context(opened(new_database)), SIGNERS[LEDGER], verifiers)


@pytest.fixture(params=["local", "remote"])
async def ledger(request: pytest.FixtureRequest, stack: ExitStack, elsewhere: Elsewhere) -> AsyncIterator[Ledger]:
    if request.param == "local":
        yield elsewhere.ledger
        return
    url = stack.enter_context(serving(elsewhere.app))
    async with httpx.AsyncClient() as http:
        yield RemoteLedger(url, http)


def stored(elsewhere: Elsewhere) -> list[bytes]:
    return [Received.of(Entry.decode(raw)).entry.encode() for raw in elsewhere.entries]


async def refused(ledger: Ledger, batch: Batch, elsewhere: Elsewhere) -> BatchRefused:
    """Have a batch refused, with nothing written."""
    before = elsewhere.entries
    with pytest.raises(BatchRefused) as error:
        await ledger.accept(batch)
    assert elsewhere.entries == before
    assert elsewhere.fsck() == []
    return error.value


async def test_what_was_accepted_is_held_and_proved(ledger: Ledger, source: Source, elsewhere: Elsewhere) -> None:
    for start, end in ((0, 2), (2, 3), (3, 10)):
        due, _ = source.next(LEDGER) or pytest.fail("nothing is due")
        accepted = await ledger.accept(source.batch(start, end, seen=due.seen))
        assert (accepted.start, accepted.end, accepted.log_start) == (start, end, start)
        source.keep(source.verify(accepted, KEY))
    assert source.next(LEDGER) is None
    assert stored(elsewhere) == source.entries
    assert (elsewhere.fsck(), source.fsck()) == ([], [])
    assert await ledger.size(ORIGIN) == 10
    assert await ledger.size(SECOND) == 0


async def test_receipts_from_either_side_verify_down_to_the_claim(ledger: Ledger, source: Source) -> None:
    for start, end in ((0, 2), (2, 10)):
        due, _ = source.next(LEDGER) or pytest.fail("nothing is due")
        source.keep(source.verify(await ledger.accept(source.batch(start, end, due.seen)), KEY))
    claim = Line(account="contributor:ada", amount_nano=750)
    for log_index in range(10):
        with source.database.read() as connection:
            own = ledger_receipt(connection, source.log, LEDGER, log_index)
        theirs = await ledger.receipt(ORIGIN, log_index)
        for text in (own, theirs):
            verified = verify_receipt(text, KEY, claim=claim if log_index == 2 else None)
            assert verified.ok, str(verified)
            assert verified.entry is not None
            received = Received.of(verified.entry)
            assert (received.origin, received.log_index) == (ORIGIN, log_index)
            assert received.entry.encode() == source.entries[log_index]
        assert not verify_receipt(own, KEY, claim=Line(account="contributor:ada", amount_nano=751)).ok
    for origin, log_index in ((ORIGIN, 10), (SECOND, 0), ("no such log", 0)):
        with pytest.raises(NotInLog):
            await ledger.receipt(origin, log_index)
    with source.database.read() as connection, pytest.raises(NotInLog):
        ledger_receipt(connection, source.log, LEDGER, 10)
    with source.database.read() as connection, pytest.raises(NotInLog):
        ledger_receipt(connection, source.log, "other ledger", 0)


async def test_a_replay_is_answered_alike_and_writes_nothing(
    ledger: Ledger, source: Source, elsewhere: Elsewhere
) -> None:
    first = await ledger.accept(source.batch(0, 4))
    await ledger.accept(source.batch(4, 7))
    before = elsewhere.entries
    for start, end in ((0, 4), (0, 1), (0, 7), (0, 10), (1, 3), (3, 9)):
        assert await ledger.accept(source.batch(start, end)) == first
    assert elsewhere.entries == before
    # A sender that lost the reply and cuts its batches in another way takes what it gets.
    shipment = source.verify(first, KEY)
    assert (shipment.start, shipment.end) == (0, 4)
    source.keep(shipment)
    source.keep(shipment)
    assert (source.next(LEDGER) or pytest.fail("nothing is due"))[0].start == 4


async def test_two_logs_interleave_and_neither_sees_the_other(
    ledger: Ledger, source: Source, elsewhere: Elsewhere, new_database: NewDatabase
) -> None:
    with opened(new_database) as database:
        second = Source(database, SIGNERS[SECOND])
        second.commit(source_entry for source_entry in map(Entry.decode, source.entries))
        second.commit([registered(99)])
        logs = {ORIGIN: source, SECOND: second}

        async def ship(origin: str) -> None:
            log = logs[origin]
            while (due := log.next(LEDGER)) is not None:
                batch = log.batch(due[0].start, due[0].start + 1, due[0].seen)
                log.keep(log.verify(await ledger.accept(batch), KEY, due))

        await asyncio.gather(ship(ORIGIN), ship(SECOND), ship(ORIGIN))
        with elsewhere.database.read() as connection:
            assert sources(connection) == {ORIGIN: 10, SECOND: 11}
        assert len(elsewhere.entries) == 21
        assert (elsewhere.fsck(), source.fsck(), second.fsck()) == ([], [], [])


async def test_a_batch_from_further_on_is_told_where_to_begin(
    ledger: Ledger, source: Source, elsewhere: Elsewhere
) -> None:
    error = await refused(ledger, source.batch(1, 3), elsewhere)
    assert (error.fault, error.size) == (BatchFault.AHEAD, 0)
    await ledger.accept(source.batch(0, 3))
    error = await refused(ledger, source.batch(4, 5), elsewhere)
    assert (error.fault, error.size) == (BatchFault.AHEAD, 3)
    error = await refused(ledger, source.batch(3, 5, seen=4), elsewhere)  # it lost what it had signed
    assert error.fault is BatchFault.AHEAD


async def test_a_batch_that_was_tampered_with_is_refused_and_blames_nobody(
    ledger: Ledger, source: Source, elsewhere: Elsewhere
) -> None:
    await ledger.accept(source.batch(0, 2))
    honest = source.batch(2, 5)
    one, two, three = honest.entries
    for entries in ((one, three, two), (one, two, registered(77).encode()), (two, two, three)):
        error = await refused(ledger, replace(honest, entries=entries), elsewhere)
        assert error.fault is BatchFault.INCONSISTENT
    with elsewhere.database.read() as connection:
        assert forks(connection) == {}
    for entries in ((one, two, b"{}"), (one, two, three + b" "), (one, two, b"")):
        assert (await refused(ledger, replace(honest, entries=entries), elsewhere)).fault is BatchFault.MALFORMED
    again = replace(honest, entries=(one, two, elsewhere.entries[0]))
    assert (await refused(ledger, again, elsewhere)).fault is BatchFault.MALFORMED


async def test_only_the_keys_that_are_trusted_for_a_log_sign_for_it(
    ledger: Ledger, source: Source, elsewhere: Elsewhere
) -> None:
    honest = source.batch(0, 2)
    stranger = Signer.generate("stranger.example/log")
    for signer, fault in ((Signer.generate(ORIGIN), BatchFault.UNTRUSTED), (stranger, BatchFault.UNKNOWN_LOG)):
        checkpoint = Checkpoint(origin=signer.name, size=2, root=honest.checkpoint.root)
        assert (await refused(ledger, replace(honest, note=signer.sign(checkpoint)), elsewhere)).fault is fault
    text, _, signature = honest.note.rpartition("\n— ")
    other = source.batch(0, 3).note.rpartition("\n— ")[2]
    assert signature != other
    error = await refused(ledger, replace(honest, note=f"{text}\n— {other}"), elsewhere)
    assert error.fault is BatchFault.UNTRUSTED


async def test_a_fork_is_refused_for_ever_and_its_evidence_kept(
    ledger: Ledger, source: Source, elsewhere: Elsewhere, new_database: NewDatabase
) -> None:
    await ledger.accept(source.batch(0, 6))
    with opened(new_database) as database:
        fork = Source(database, SIGNERS[ORIGIN])
        fork.commit(map(Entry.decode, source.entries[:4]))
        fork.commit(registered(number) for number in range(50, 60))
        evidence = fork.batch(4, 6).note
        for _ in range(2):
            assert (await refused(ledger, fork.batch(4, 6), elsewhere)).fault is BatchFault.FORKED
            assert (await refused(ledger, fork.batch(0, 5), elsewhere)).fault is BatchFault.FORKED
            assert (await refused(ledger, fork.batch(4, 10), elsewhere)).fault is BatchFault.INCONSISTENT
            assert (await refused(ledger, fork.batch(6, 10), elsewhere)).fault is BatchFault.INCONSISTENT
            with elsewhere.database.read() as connection:
                assert forks(connection) == {ORIGIN: evidence}
        # What both histories share is no contradiction, but what is held behind it is none of the fork's.
        assert (await ledger.accept(fork.batch(0, 4))).end == 6
        with pytest.raises(LedgerInconsistent):
            fork.verify(await ledger.accept(fork.batch(0, 4)), KEY)
    assert stored(elsewhere) == source.entries[:6]
    await ledger.accept(source.batch(6, 10))
    assert stored(elsewhere) == source.entries


async def test_a_log_that_was_rewritten_is_found_out_at_its_next_batch(
    ledger: Ledger, source: Source, elsewhere: Elsewhere, new_database: NewDatabase
) -> None:
    await ledger.accept(source.batch(0, 3))
    with opened(new_database) as database:
        rewritten = Source(database, SIGNERS[ORIGIN])
        rewritten.commit([registered(1), used(0, 2000)])
        assert (await refused(ledger, rewritten.batch(0, 2), elsewhere)).fault is BatchFault.FORKED


async def test_a_sender_believes_no_acceptance_that_proves_nothing(
    ledger: Ledger, source: Source, elsewhere: Elsewhere
) -> None:
    source.keep(source.verify(await ledger.accept(source.batch(0, 3)), KEY))
    due, seen = source.next(LEDGER) or pytest.fail("nothing is due")
    accepted = await ledger.accept(source.batch(3, 8, due.seen))
    source.verify(accepted, KEY)
    other = Log(Signer.generate(LEDGER))
    with elsewhere.database.read() as connection:
        forged = other._signer.sign(
            Checkpoint(origin=LEDGER, size=8, root=elsewhere.log.frontier(connection, 8).root())
        )
        shorter = elsewhere.log.checkpoint_at(connection, 7)
        unrelated = SIGNERS[LEDGER].sign(Checkpoint(origin=LEDGER, size=8, root=bytes(32)))
    assert seen
    for change in (
        {"note": forged},
        {"note": shorter},
        {"note": unrelated},
        {"proof": ()},
        {"proof": (*accepted.proof, bytes(32))},
        {"proof": (bytes(32), *accepted.proof[1:])},
        {"time": "2025-02-01T00:00:00.000001Z"},
        {"time": "yesterday"},
        {"end": 7},
        {"end": 9},
        {"end": 11},
        {"start": 2},
        {"start": 4},
        {"frontier": replace(accepted.frontier, hashes=(bytes(32), *accepted.frontier.hashes[1:]))},
    ):
        with pytest.raises(LedgerInconsistent):
            source.verify(replace(accepted, **change), KEY)  # type: ignore[arg-type]


async def test_a_ledger_that_was_rolled_back_is_found_out(
    ledger: Ledger, source: Source, elsewhere: Elsewhere, new_database: NewDatabase
) -> None:
    source.keep(source.verify(await ledger.accept(source.batch(0, 3)), KEY))
    due, _ = source.next(LEDGER) or pytest.fail("nothing is due")
    with opened(new_database) as database:
        restored = Elsewhere(database, SIGNERS[LEDGER], elsewhere.sources)
        with pytest.raises(BatchRefused) as error:
            await restored.ledger.accept(due)
        assert (error.value.fault, error.value.size) == (BatchFault.AHEAD, 0)
        # Even one that takes the entries anew, as if nothing had been, has signed another history of its own.
        restored.now = restored.now.replace(year=2026)
        await restored.ledger.accept(source.batch(0, 3))
        with pytest.raises(LedgerInconsistent):
            source.verify(await restored.ledger.accept(due), KEY)


async def test_fsck_names_what_was_changed_in_a_ledger(source: Source, elsewhere: Elsewhere) -> None:
    await elsewhere.ledger.accept(source.batch(0, 4))
    await elsewhere.ledger.accept(source.batch(4, 10))
    assert elsewhere.fsck() == []

    def findings(statement: sa.Executable) -> set[str]:
        with elsewhere.database.engine.connect() as connection:  # which rolls back
            connection.execute(statement)
            law = StoredReceived(connection, elsewhere.sources)
            faults = [
                invariant
                for log_index, raw in elsewhere.log.entries(connection)
                for invariant, _ in law.entry(Logged(log_index, leaf_hash(raw), Entry.decode(raw), None))
            ]
            return {*faults, *(finding.invariant for finding in law.end())}

    rows = log_received.c
    wrong = Received(origin=ORIGIN, log_index=5, entry=registered(88), time="2025-02-01T00:00:00.000000Z").wrapped()
    bad = used(3, 1000, postings=[])
    unbalanced = Received(origin=ORIGIN, log_index=5, entry=bad, time="2025-02-01T00:00:00.000000Z").wrapped()
    changed = sa.update(log_entry).where(log_entry.c.log_index == 5)
    assert findings(changed.values(entry=wrong.encode())) == {"I8"}
    assert findings(changed.values(entry=unbalanced.encode())) == {"I2", "I8"}
    assert findings(sa.delete(log_entry).where(log_entry.c.log_index == 9)) == {"I5"}
    assert findings(sa.delete(log_received).where(rows.source_end == 10)) == {"I5"}
    assert findings(sa.update(log_received).values(log_start=rows.log_start + 1)) == {"I5"}
    assert findings(sa.update(log_received).values(frontier=bytes(32))) == {"I8"}
    assert findings(sa.update(log_received).values(note=source.batch(0, 3).note)) == {"I8"}
    stranger = Signer.generate(ORIGIN).sign(source.batch(0, 4).checkpoint)
    assert findings(sa.update(log_received).where(rows.source_end == 4).values(note=stranger)) == {"I8"}


async def test_fsck_names_what_a_ledger_did_not_sign_for(source: Source, elsewhere: Elsewhere) -> None:
    for end in (4, 10):
        due, _ = source.next(LEDGER) or pytest.fail("nothing is due")
        source.keep(source.verify(await elsewhere.ledger.accept(source.batch(due.start, end, due.seen)), KEY))
    assert source.fsck() == []
    with source.database.write() as connection:
        connection.execute(sa.update(log_entry).where(log_entry.c.log_index == 5).values(entry=registered(88).encode()))
    assert [(found.invariant, found.log_index) for found in source.fsck()] == [("I8", 4)]
    with source.database.write() as connection:
        connection.execute(sa.delete(log_shipment).where(log_shipment.c.log_end == 4))
    assert [(found.invariant, found.log_index) for found in source.fsck()] == [("I5", 4), ("I8", 4)]
