"""The checker: a sound log has no findings, and each way of tampering is named with its invariant and entry."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, update

from ledger_client import (
    Amounts,
    Checkpoint,
    Entry,
    EntryError,
    Finding,
    Frontier,
    Log,
    Progress,
    Signer,
    StoredLog,
    Verifier,
    fsck,
    fsck_derived,
    leaf_hash,
)
from ledger_client.tables import log_entry, log_hash, log_head

from .conftest import ORIGIN
from .facts import attributed, granted, lines, priced, registered, ruled, used, voided

SIGNER = Signer.generate(ORIGIN)
# The life of two gateways: numbers out of order, a void, a free request, and an answer not yet attributed.
SOUND = [
    priced(),
    ruled(),
    granted("caller:ann", 100_000),
    used(1),
    used(0, 777),
    attributed(1, 3),
    voided(2),
    used(3, 0),
    attributed(3, 7, 0, split=[], postings=[]),
    attributed(0, 4, 777),
    replace(
        used(0, gateway="g2", request_id="req_other", charge_nano="5", postings=lines(caller_ann=-5, suspense=5)),
        id=registered(99).id,
    ),
]
SIGNED_SIZES = (1, 5, 6, 7, 10, 11)


def heads(raws: list[bytes], sizes: Collection[int] = SIGNED_SIZES) -> list[str]:
    frontier, notes = Frontier(), []
    for raw in raws:
        frontier = frontier.append(leaf_hash(raw))
        if frontier.size in sizes:
            notes.append(SIGNER.sign(Checkpoint(origin=ORIGIN, size=frontier.size, root=frontier.root())))
    return notes


def balances_of(entries: list[Entry]) -> Counter[str]:
    balances: Counter[str] = Counter()
    for entry in entries:
        for line in Amounts.of(entry).postings:
            balances[line.account] += line.amount_nano
    return balances


def check(
    entries: list[Entry], *, balances: Mapping[str, int] | None = None, **more: Any
) -> list[tuple[str, int | None]]:
    """fsck of a log whose every entry was signed as it stands, so that only what the entries say can be wrong."""
    raws = [entry.encode() for entry in entries]
    findings = fsck(enumerate(raws), heads(raws, range(1, 99)), balances, SIGNER.verifier, **more)
    return [(finding.invariant, finding.log_index) for finding in findings]


def with_entry(position: int, entry: Entry) -> list[Entry]:
    return [*SOUND[:position], entry, *SOUND[position + 1 :]]


def test_a_sound_log_has_no_findings() -> None:
    raws = [entry.encode() for entry in SOUND]
    seen: list[Progress] = []
    findings = fsck(enumerate(raws), heads(raws), balances_of(SOUND), SIGNER.verifier, progress=seen.append)
    assert findings == []
    assert [step.done for step in seen] == [11]
    assert check(SOUND, balances={"platform": 0, **balances_of(SOUND)}) == []
    assert fsck([], [], {}, SIGNER.verifier) == []


def test_progress_is_told_now_and_then() -> None:
    seen: list[Progress] = []
    raws = [registered(number).encode() for number in range(2001)]
    notes = heads(raws, [2001])
    assert fsck(enumerate(raws), notes, None, SIGNER.verifier, total=2001, progress=seen.append) == []
    assert [(step.done, step.total) for step in seen] == [(1000, 2001), (2000, 2001), (2001, 2001)]
    assert all(step.rate > 0 for step in seen)


def test_i1_names_postings_that_do_not_balance() -> None:
    grant = granted("caller:bob", 5)
    unbalanced = replace(grant, data={**grant.data, "postings": lines(caller_bob=5, funding=-4)})
    assert check([*SOUND, unbalanced]) == [("I1", 11)]
    assert check([*SOUND, used(4, postings="none")]) == [("I1", 11)]


def test_i1_names_balances_that_do_not_sum_to_zero() -> None:
    balances = balances_of(SOUND)
    balances["platform"] += 1
    assert check(SOUND, balances=balances) == [("I1", None), ("I3", None)]


@pytest.mark.parametrize(
    "entry",
    [
        attributed(1, 3, split=lines(contributor_ada=999)),
        attributed(1, 3, postings=lines(suspense=-1000, contributor_bob=750, platform=250)),
        attributed(1, 3, 999),
        attributed(1, 4),
        attributed(1, 5),
        attributed(1, -1),
        attributed(1, "3"),  # type: ignore[arg-type]
        attributed(5, 3),
    ],
)
def test_i2_names_a_split_that_is_not_of_its_charge(entry: Entry) -> None:
    assert ("I2", 5) in check(with_entry(5, entry))
    assert {invariant for invariant, _ in check(with_entry(5, entry))} == {"I2"}


def test_i2_names_a_charge_that_is_not_what_moved() -> None:
    assert check(with_entry(3, used(1, charge_nano="999"))) == [("I2", 3), ("I2", 5)]


def test_i2_names_a_second_attribution() -> None:
    again = replace(attributed(1, 3), id=registered(98).id)
    assert check([*SOUND, again]) == [("I2", 11)]


def test_i3_names_the_account_whose_balance_is_not_its_replay() -> None:
    balances = balances_of(SOUND)
    balances["platform"] -= 5
    balances["contributor:ada"] += 5
    raws = [entry.encode() for entry in SOUND]
    findings = fsck(enumerate(raws), heads(raws), balances, SIGNER.verifier)
    assert [finding.invariant for finding in findings] == ["I3", "I3"]
    assert str(findings[0]) == "I3: the balance of contributor:ada is 1338 nano, but its postings sum to 1333"
    assert "platform" in findings[1].message
    del balances["platform"]
    assert ("I3", None) in check(SOUND, balances=balances)


def test_i4_names_a_number_that_never_ended() -> None:
    raws = [entry.encode() for entry in [*SOUND, used(6)]]
    findings = fsck(enumerate(raws), heads(raws, [12]), None, SIGNER.verifier)
    assert list(map(str, findings)) == [
        "I4: sequence number has no entry, and is not open: 4 of gateway g1, 5 of gateway g1"
    ]
    assert check([*SOUND, used(6)], open_intents={("g1", 4), ("g1", 5), ("g1", 7)}) == []
    assert check([*SOUND, used(30)]) == [("I4", None)]


def test_i4_names_a_number_that_ended_twice() -> None:
    assert check([*SOUND, voided(1, request_id="req_new")]) == [("I4", 11)]
    assert check([*SOUND, used(4, gateway="g2", gateway_seq=0)]) == [("I4", 11)]


def test_i4_names_an_intent_that_is_open_and_ended() -> None:
    assert check(SOUND, open_intents=[("g1", 1), ("g1", 4), ("g3", 0)]) == [("I4", None)]


@pytest.mark.parametrize("number", [-1, True, "7", None, 1.5])
def test_i4_names_a_number_that_is_none(number: Any) -> None:
    assert check([*SOUND, used(4, gateway_seq=number)]) == [("I4", 11)]


def test_i4_names_a_leap_without_counting_it_out() -> None:
    assert check([*SOUND, used(2**52)]) == [("I4", 11)]


def test_i5_names_a_dropped_entry() -> None:
    raws = [entry.encode() for entry in SOUND]
    kept = [(index, raw) for index, raw in enumerate(raws) if index != 6]
    findings = fsck(kept, heads(raws), None, SIGNER.verifier)
    assert [(finding.invariant, finding.log_index) for finding in findings] == [("I5", 7), ("I5", None), ("I4", None)]


def test_i5_names_entries_cut_off_the_end() -> None:
    raws = [entry.encode() for entry in SOUND]
    findings = fsck(enumerate(raws[:8]), heads(raws), None, SIGNER.verifier)
    assert list(map(str, findings)) == ["I5: a checkpoint was signed over 10 entries, but the log has 8"]


def test_i5_names_entries_that_no_checkpoint_covers() -> None:
    raws = [entry.encode() for entry in SOUND]
    findings = fsck(enumerate(raws), heads(raws, [1, 8]), None, SIGNER.verifier)
    assert [(finding.invariant, finding.log_index) for finding in findings] == [("I5", 8)]


def test_i5_names_a_checkpoint_that_the_key_did_not_sign() -> None:
    raws = [entry.encode() for entry in SOUND]
    notes = heads(raws)
    for forged in (
        notes[2].replace("\n6\n", "\n7\n"),
        Signer.generate(ORIGIN).sign(Checkpoint(origin=ORIGIN, size=6, root=bytes(32))),
        "no note",
    ):
        findings = fsck(enumerate(raws), [*notes[:2], forged, *notes[3:]], None, SIGNER.verifier)
        assert [finding.invariant for finding in findings] == ["I5"]
        assert "checkpoint 2" in findings[0].message


def test_i5_names_a_checkpoint_out_of_order_and_a_fork() -> None:
    raws = [entry.encode() for entry in SOUND]
    notes = heads(raws)
    fork = SIGNER.sign(Checkpoint(origin=ORIGIN, size=6, root=bytes(32)))
    findings = fsck(enumerate(raws), [*notes[:3], fork, *notes[3:]], None, SIGNER.verifier)
    assert list(map(str, findings)) == ["I5: checkpoint 3 of those stored, of 6 entries, follows one of 6"]


def test_i6_names_an_id_that_is_there_twice() -> None:
    assert check([*SOUND, SOUND[2]]) == [("I6", 11)]
    raws = [entry.encode() for entry in [*SOUND, SOUND[2], SOUND[2]]]
    assert [str(finding) for finding in fsck(enumerate(raws), heads(raws, range(1, 99)), None, SIGNER.verifier)] == [
        f"I6 at log index {log_index}: the id is that of entry 2 too" for log_index in (11, 12)
    ]


def test_i6_names_a_request_that_ended_twice() -> None:
    assert check([*SOUND, voided(4, request_id="req_2")]) == [("I6", 11)]


def test_i8_names_a_changed_entry() -> None:
    raws = [entry.encode() for entry in SOUND]
    changed = [replace(SOUND[0], subject="another").encode(), *raws[1:]]
    assert list(map(str, fsck(enumerate(changed), heads(raws), None, SIGNER.verifier))) == [
        "I8 at log index 0: entry 0 is not what the checkpoint of 1 entries was signed over"
    ]
    later = [*raws[:8], attributed(3, 7, 0, split=[], postings=[], reason="another").encode(), *raws[9:]]
    findings = fsck(enumerate(later), heads(raws), None, SIGNER.verifier)
    assert list(map(str, findings)) == [
        "I8 at log index 7: one of entries 7 to 9 is not what the checkpoint of 10 entries was signed over"
    ]


def test_i8_names_a_checkpoint_over_another_history() -> None:
    raws = [entry.encode() for entry in SOUND]
    fork = SIGNER.sign(Checkpoint(origin=ORIGIN, size=6, root=bytes(32)))
    notes = heads(raws)
    findings = fsck(enumerate(raws), [*notes[:2], fork, *notes[3:]], None, SIGNER.verifier)
    assert [(finding.invariant, finding.log_index) for finding in findings] == [("I8", 5)]


def test_i8_names_bytes_that_are_no_entry() -> None:
    raws = [SOUND[0].encode(), b"{}"]
    findings = fsck(enumerate(raws), heads(raws, [1, 2]), None, SIGNER.verifier)
    assert [(finding.invariant, finding.log_index) for finding in findings] == [("I8", 1)]


@given(st.integers(0, len(SOUND) - 1), st.integers(0, 2**16), st.integers(1, 255))
@settings(max_examples=100)
def test_no_byte_of_a_signed_log_changes_unnoticed(index: int, offset: int, mask: int) -> None:
    raws = [entry.encode() for entry in SOUND]
    changed = bytearray(raws[index])
    changed[offset % len(changed)] ^= mask
    tampered = [*raws[:index], bytes(changed), *raws[index + 1 :]]
    findings = fsck(enumerate(tampered), heads(raws, range(1, 12)), None, SIGNER.verifier)
    assert ("I8", index) in {(finding.invariant, finding.log_index) for finding in findings}


@pytest.fixture
def stored(log: Log, engine: Engine) -> Callable[[], list[Finding]]:
    with engine.begin() as connection:
        draft = log.draft(connection)
        for entry in SOUND:
            draft.append(entry)
            draft.seal()
        for number in range(100, 400):
            draft.append(registered(number))
        draft.seal()

    def findings() -> list[Finding]:
        with engine.connect() as connection:
            return fsck_derived(connection)

    return findings


def test_a_stored_log_is_sound(
    log: Log, engine: Engine, verifier: Verifier, stored: Callable[[], list[Finding]]
) -> None:
    with engine.connect() as connection:
        found = fsck(log.entries(connection), log.checkpoints(connection), balances_of(SOUND), verifier)
    assert found == stored() == []
    with engine.begin() as connection:
        draft = log.draft(connection)
        draft.append(registered(500))
        draft.write()  # not in the tree yet, and nothing has been said of it
    assert stored() == []


def test_one_pass_checks_entries_and_what_is_stored_beside_them(
    log: Log, engine: Engine, verifier: Verifier, stored: Callable[[], list[Finding]]
) -> None:
    def found() -> list[tuple[str, int | None]]:
        with engine.connect() as connection:
            law = StoredLog(connection)
            notes = log.checkpoints(connection)
            findings = fsck(law.entries(), notes, balances_of(SOUND), verifier, laws=[law], processes=1)
        return [(finding.invariant, finding.log_index) for finding in findings]

    assert found() == []
    with engine.begin() as connection:
        connection.execute(update(log_entry).where(log_entry.c.log_index == 300).values(entry=registered(7).encode()))
        connection.execute(update(log_hash).values(hash=bytes(32)))
    assert {*found()} == {("I8", 11), ("I8", 300), ("I5", None)}
    assert {(finding.invariant, finding.log_index) for finding in stored()} == {("I8", 300), ("I5", None)}


def test_notes_that_helpers_open_are_reported_as_if_there_were_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["ledger_client.fsck"], "_NOTES", 2)  # the function hides the module
    raws = [entry.encode() for entry in SOUND]
    notes = heads(raws)
    notes[3] = notes[2]
    notes.insert(1, "no note")
    alone = fsck(enumerate(raws), notes, None, SIGNER.verifier)
    assert len(alone) == 2
    assert fsck(enumerate(raws), notes, None, SIGNER.verifier, processes=2) == alone
    assert fsck(enumerate(raws[:5]), heads(raws), None, SIGNER.verifier, processes=1) == fsck(
        enumerate(raws[:5]), heads(raws), None, SIGNER.verifier
    )


def test_laws_that_go_on_in_another_process_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["ledger_client.fsck"]
    again = replace(attributed(1, 3), id=registered(98).id)
    grant = granted("caller:bob", 5)
    entries = [
        *SOUND,
        again,
        replace(grant, data={**grant.data, "postings": lines(caller_bob=5, funding=-4)}),
        used(4, postings="none"),
        replace(used(5), id=SOUND[0].id),
    ]
    raws = [*(entry.encode() for entry in entries), b"{}"]

    def found(processes: int) -> list[str]:
        notes = heads(raws, range(1, 99))
        balances = balances_of(SOUND) + Counter({"platform": 1})
        return sorted(map(str, fsck(enumerate(raws), notes, balances, SIGNER.verifier, processes=processes)))

    alone = found(0)
    assert {text[:2] for text in alone} == {"I1", "I2", "I3", "I6", "I8"}
    for many in (1, 6, len(raws)):
        monkeypatch.setattr(module, "_MANY_ENTRIES", many)
        assert found(1) == alone


@pytest.mark.parametrize(
    ("tamper", "invariant", "log_index"),
    [
        (update(log_entry).where(log_entry.c.log_index == 7).values(entry=registered(700).encode()), "I8", 7),
        (update(log_entry).where(log_entry.c.log_index == 7).values(entry=b"[]"), "I8", 7),
        (update(log_entry).where(log_entry.c.log_index == 7).values(entry_id="0" * 64), "I8", 7),
        (update(log_hash).values(hash=bytes(32)), "I5", None),
        (delete(log_hash), "I5", None),
        (insert(log_hash).values(level=1, number=1, hash=bytes(32)), "I5", None),
        (update(log_head).values(size=310), "I5", None),
        (update(log_head).values(size=312), "I5", None),
        (update(log_head).values(frontier=bytes(32 * 5)), "I5", None),
        (delete(log_entry).where(log_entry.c.log_index == 310), "I5", None),
    ],
)
def test_what_does_not_follow_from_the_entries_is_named(
    engine: Engine, stored: Callable[[], list[Finding]], tamper: Any, invariant: str, log_index: int | None
) -> None:
    with engine.begin() as connection:
        connection.execute(tamper)
    found = stored()
    assert {(finding.invariant, finding.log_index) for finding in found} == {(invariant, log_index)}


def test_a_changed_leaf_hash_is_named_by_its_entry(engine: Engine, stored: Callable[[], list[Finding]]) -> None:
    with engine.begin() as connection:
        connection.execute(update(log_entry).where(log_entry.c.log_index == 7).values(leaf_hash=bytes(32)))
    assert ("I8", 7) in {(finding.invariant, finding.log_index) for finding in stored()}


def test_amounts_that_cannot_be_read_are_an_entry_error() -> None:
    with pytest.raises(EntryError, match="decimal string"):
        Amounts.of(used(0, charge_nano="1e3"))
