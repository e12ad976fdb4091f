"""A log whose checkpoints are cosigned: what it hands out, and what a receipt with a quorum proves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from ledger_client import (
    Checkpoint,
    Log,
    Note,
    Quorum,
    QuorumError,
    Receipt,
    Signer,
    Verifier,
    WitnessSigner,
    fsck,
    leaf_hash,
    verify_receipt,
)

from .facts import registered

WITNESSES = [WitnessSigner.generate(f"witness.example/w{number}") for number in range(3)]
VERIFIERS = tuple(witness.verifier for witness in WITNESSES)
TIME_S = 1_790_000_000


@pytest.fixture
def log(signer: Signer) -> Log:
    return Log(signer, Quorum(witnesses=VERIFIERS, count=2))


def grow(engine: Engine, log: Log, size: int) -> None:
    """Append and seal up to this size, one checkpoint an entry."""
    for number in range(size):
        with engine.begin() as connection:
            if log.size(connection) == number:
                draft = log.draft(connection)
                draft.append(registered(number))
                draft.seal()


def cosign(engine: Engine, log: Log, size: int, *signers: WitnessSigner, time_s: int = TIME_S) -> None:
    with engine.begin() as connection:
        note = next(note for note in log.checkpoints(connection) if f"\n{size}\n" in note)
        for signer in signers:
            log.add_cosignature(connection, size, signer.verifier, signer.cosign(Note.parse(note).text, time_s))


def published(engine: Engine, log: Log) -> tuple[int, int]:
    """The size of the published checkpoint, and how many cosignatures it has."""
    with engine.begin() as connection:
        note = Note.parse(log.published(connection))
    found = [verifier.find(note) for verifier in VERIFIERS]
    return int(note.text.split("\n")[1]), len([one for one in found if one])


def receipt(engine: Engine, log: Log, log_index: int) -> str:
    with engine.begin() as connection:
        return log.receipt(connection, log_index)


def head(text: str) -> tuple[int, int]:
    note = Note.parse(Receipt.parse(text).note)
    return int(note.text.split("\n")[1]), len(note.signatures) - 1


def test_the_newest_checkpoint_with_a_quorum_is_published(log: Log, engine: Engine) -> None:
    assert published(engine, log) == (0, 0)
    grow(engine, log, 3)
    assert published(engine, log) == (3, 0)
    cosign(engine, log, 3, WITNESSES[0])
    assert published(engine, log) == (3, 1)
    cosign(engine, log, 2, *WITNESSES[:2])
    assert published(engine, log) == (2, 2)
    cosign(engine, log, 3, WITNESSES[2])
    assert published(engine, log) == (3, 2)
    grow(engine, log, 5)
    assert published(engine, log) == (3, 2)
    cosign(engine, log, 5, *WITNESSES)
    assert published(engine, log) == (5, 3)


def test_a_receipt_is_under_the_newest_quorum_that_has_the_entry(log: Log, engine: Engine, verifier: Verifier) -> None:
    grow(engine, log, 4)
    cosign(engine, log, 2, *WITNESSES)
    cosign(engine, log, 3, *WITNESSES[1:])
    cosign(engine, log, 4, WITNESSES[0])
    assert [head(receipt(engine, log, index)) for index in range(4)] == [(3, 2), (3, 2), (3, 2), (4, 1)]
    for index in range(3):
        assert verify_receipt(receipt(engine, log, index), verifier, witnesses=VERIFIERS, quorum=2).ok
    waiting = verify_receipt(receipt(engine, log, 3), verifier, witnesses=VERIFIERS, quorum=2)
    assert (waiting.ok, waiting.steps[-1].number) == (False, 4)
    assert verify_receipt(receipt(engine, log, 3), verifier).ok


def test_a_log_without_witnesses_hands_out_its_newest_checkpoint(signer: Signer, log: Log, engine: Engine) -> None:
    grow(engine, log, 4)
    cosign(engine, log, 2, *WITNESSES)
    alone = Log(signer)
    assert published(engine, alone) == (4, 0)
    assert head(receipt(engine, alone, 0)) == (4, 0)


def test_witnesses_that_are_no_longer_asked_do_not_count(signer: Signer, log: Log, engine: Engine) -> None:
    grow(engine, log, 4)
    cosign(engine, log, 2, *WITNESSES)
    cosign(engine, log, 3, *WITNESSES[:2])
    rekeyed = WitnessSigner.generate(WITNESSES[0].name)
    after = Log(signer, Quorum(witnesses=(rekeyed.verifier, *VERIFIERS[1:]), count=2))
    assert head(receipt(engine, after, 0)) == (2, 2)
    cosign(engine, after, 3, rekeyed)
    assert head(receipt(engine, after, 0)) == (3, 2)


def test_a_cosignature_is_kept_once(log: Log, engine: Engine) -> None:
    grow(engine, log, 2)
    cosign(engine, log, 2, WITNESSES[0])
    cosign(engine, log, 2, WITNESSES[0], WITNESSES[1], time_s=TIME_S + 1)
    assert published(engine, log) == (2, 2)
    with engine.begin() as connection:
        assert [log.cosigned_size(connection, verifier) for verifier in VERIFIERS] == [2, 2, 0]


def test_cosignatures_leave_the_stored_checkpoints_as_they_were(log: Log, engine: Engine, verifier: Verifier) -> None:
    grow(engine, log, 3)
    with engine.begin() as connection:
        before = list(log.checkpoints(connection))
    cosign(engine, log, 3, *WITNESSES)
    with engine.begin() as connection:
        assert list(log.checkpoints(connection)) == before
        assert fsck(log.entries(connection), log.checkpoints(connection), {}, verifier) == []


# Step 4 of a verification


@pytest.fixture
def cosigned(log: Log, engine: Engine) -> str:
    grow(engine, log, 3)
    cosign(engine, log, 3, *WITNESSES[:2])
    return receipt(engine, log, 1)


def test_a_quorum_is_a_step_of_its_own(cosigned: str, verifier: Verifier) -> None:
    verified = verify_receipt(cosigned, verifier, witnesses=VERIFIERS, quorum=2)
    assert verified.ok
    assert [step.number for step in verified.steps] == [1, 2, 3, 4, 5, 6, 7]
    assert verified.steps[3].detail == (
        "2 of 3 witnesses: witness.example/w0 at 2026-09-21T14:13:20Z, witness.example/w1 at 2026-09-21T14:13:20Z"
    )
    assert [step.number for step in verify_receipt(cosigned, verifier).steps] == [1, 2, 3, 5, 6, 7]


def test_a_quorum_that_is_not_met_names_its_step(cosigned: str, verifier: Verifier) -> None:
    verified = verify_receipt(cosigned, verifier, witnesses=VERIFIERS, quorum=3)
    assert not verified.ok
    assert str(verified.steps[-1]) == (
        "FAILED 4 witness quorum: 2 of 3 witnesses cosigned (witness.example/w0, witness.example/w1), "
        "and 3 are asked for"
    )
    assert verified.entry is None


def test_without_a_number_every_witness_is_asked_for(cosigned: str, verifier: Verifier) -> None:
    assert verify_receipt(cosigned, verifier, witnesses=VERIFIERS[:2]).ok
    assert not verify_receipt(cosigned, verifier, witnesses=VERIFIERS).ok
    assert not verify_receipt(cosigned, verifier, witnesses=VERIFIERS[2:]).ok


@pytest.mark.parametrize(("witnesses", "quorum"), [((), 1), ((), 0), (VERIFIERS, 0), (VERIFIERS, 4)])
def test_a_quorum_that_asks_for_nothing_is_no_quorum(
    witnesses: tuple[()], quorum: int, cosigned: str, verifier: Verifier
) -> None:
    with pytest.raises(QuorumError):
        verify_receipt(cosigned, verifier, witnesses=witnesses, quorum=quorum)


def test_a_time_beyond_the_calendar_is_told_in_seconds(log: Log, engine: Engine, verifier: Verifier) -> None:
    grow(engine, log, 1)
    cosign(engine, log, 1, *WITNESSES, time_s=2**63 - 1)
    verified = verify_receipt(receipt(engine, log, 0), verifier, witnesses=VERIFIERS)
    assert verified.ok
    assert "at 9223372036854775807 s" in verified.steps[3].detail


ONE = Signer.generate("example.com/log")


@given(st.data())
@settings(max_examples=200)
def test_a_cosigned_receipt_with_any_byte_changed_fails(data: st.DataObject) -> None:
    # A tree of one leaf, so that the receipt needs no log.
    entry = registered(0).encode()
    checkpoint = Checkpoint(origin="example.com/log", size=1, root=leaf_hash(entry))
    note = ONE.sign(checkpoint) + "".join(signer.cosign(checkpoint.format(), TIME_S).line for signer in WITNESSES)
    raw = bytearray(Receipt(index=0, path=(), note=note, entry=entry).format().encode())
    assert verify_receipt(bytes(raw), ONE.verifier, witnesses=VERIFIERS).ok
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert not verify_receipt(bytes(raw), ONE.verifier, witnesses=VERIFIERS).ok
