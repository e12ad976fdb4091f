"""Receipts: they verify with the log's key alone, and not with anything about them changed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from ledger_client import (
    Checkpoint,
    Entry,
    Frontier,
    Line,
    Log,
    Receipt,
    ReceiptError,
    Signer,
    Verified,
    Verifier,
    inclusion_path,
    leaf_hash,
    verify_receipt,
)

from .conftest import ORIGIN
from .facts import attributed, granted, lines, registered, used, voided

# The example of c2sp.org/tlog-proof, whose extra line is not base64 and whose signatures are cut short.
SPECIFICATION_EXAMPLE = """\
c2sp.org/tlog-proof@v1
index 73894
gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=
EKNzoDWG8LGC0Yp9o+sv3qllpMP9uHQ9B20KNL+Q1zs=
RoopEkOdqkYqMB4MJXrbt/hMjOxsVn0IrWjpz1ZMMes=
AHCioX9nLjsrse6YhjRRmk1WUEirVOLLRoOQ6vfO5vk=

example.com/fancylog
109482
sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

— example.com/fancylog hI2DJw[...]1roloI=
"""

SIGNER = Signer.generate(ORIGIN)
VERIFIER = SIGNER.verifier
ENTRIES = [*(registered(number) for number in range(5)), used(0), attributed(0, 5), *map(registered, range(7, 11))]


def receipt_of(index: int, entries: list[Entry] = ENTRIES) -> str:
    """A receipt made by hand, of a tree of leaves alone."""
    leaves = [leaf_hash(entry.encode()) for entry in entries]

    def hash_at(level: int, number: int) -> bytes:
        frontier = Frontier()
        for leaf in leaves[number << level : (number + 1) << level]:
            frontier = frontier.append(leaf)
        return frontier.root()

    size = len(entries)
    root = hash_at(size.bit_length(), 0)
    note = SIGNER.sign(Checkpoint(origin=ORIGIN, size=size, root=root))
    path = tuple(inclusion_path(index, size, hash_at))
    return Receipt(index=index, path=path, note=note, entry=entries[index].encode()).format()


RECEIPT = receipt_of(6)


def outcome(verified: Verified) -> tuple[int, bool]:
    """The last step that ran, and whether it held."""
    assert all(step.ok for step in verified.steps[:-1])
    return verified.steps[-1].number, verified.steps[-1].ok


def test_a_receipt_verifies_with_the_key_alone() -> None:
    verified = verify_receipt(RECEIPT, Verifier.parse(SIGNER.verifier_key))
    assert verified.ok
    assert [step.number for step in verified.steps] == [1, 2, 3, 5, 6, 7]
    assert verified.entry == ENTRIES[6]
    assert verified.index == 6
    assert verified.checkpoint == VERIFIER.open(Receipt.parse(RECEIPT).note)
    assert str(verified).splitlines()[-1] == (
        "ok     7 amounts: answer.attributed: 2 lines sum to the charge of 1000 nano"
    )


@pytest.mark.parametrize("index", range(len(ENTRIES)))
def test_every_leaf_of_a_tree_has_a_receipt(index: int) -> None:
    assert verify_receipt(receipt_of(index).encode(), VERIFIER).ok


def test_a_log_of_one_entry_has_a_receipt_without_a_path() -> None:
    text = receipt_of(0, [registered(0)])
    assert Receipt.parse(text).path == ()
    assert verify_receipt(text, VERIFIER).ok


def test_the_log_writes_such_receipts(log: Log, engine: Engine, verifier: Verifier) -> None:
    with engine.begin() as connection:
        draft = log.draft(connection)
        for entry in ENTRIES:
            draft.append(entry)
        draft.seal()
        parts = Receipt.parse(log.receipt(connection, 6))
    assert parts.path == Receipt.parse(RECEIPT).path
    assert parts.entry == ENTRIES[6].encode()
    assert verify_receipt(parts.format(), verifier).ok


def test_one_bit_of_each_byte_changed_and_it_does_not_verify() -> None:
    for position in range(len(RECEIPT.encode())):
        raw = bytearray(RECEIPT.encode())
        raw[position] ^= 1
        assert not verify_receipt(bytes(raw), VERIFIER).ok, position


@given(st.integers(0, len(RECEIPT.encode()) - 1), st.integers(1, 255))
@settings(max_examples=500)
def test_any_byte_changed_and_it_does_not_verify(position: int, mask: int) -> None:
    raw = bytearray(RECEIPT.encode())
    raw[position] ^= mask
    verified = verify_receipt(bytes(raw), VERIFIER)
    assert not verified.ok
    assert verified.entry is None


@given(st.integers(0, len(RECEIPT.encode())), st.binary(max_size=3), st.integers(0, 3))
@settings(max_examples=300)
def test_bytes_put_in_or_taken_out_and_it_does_not_verify(position: int, put_in: bytes, taken_out: int) -> None:
    raw = RECEIPT.encode()
    changed = raw[:position] + put_in + raw[position + taken_out :]
    assert verify_receipt(changed, VERIFIER).ok == (changed == raw)


@given(st.text(st.characters(codec="utf-8")))
def test_any_other_text_fails_at_the_first_step(text: str) -> None:
    assert outcome(verify_receipt(text, VERIFIER)) == (1, False)


def test_the_layout_of_the_specification_is_read_and_written_back() -> None:
    parts = Receipt.parse(SPECIFICATION_EXAMPLE)
    assert (parts.index, len(parts.path), parts.entry) == (73_894, 5, None)
    assert parts.note.startswith("example.com/fancylog\n109482\n")
    assert parts.format() == SPECIFICATION_EXAMPLE


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.none() | st.binary(min_size=1, max_size=100),
)
def test_parse_undoes_format(index: int, path: list[bytes], entry: bytes | None) -> None:
    parts = Receipt(index=index, path=tuple(path), note="anything\n", entry=entry)
    assert Receipt.parse(parts.format()) == parts


LINES = RECEIPT.split("\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n".join(LINES[1:]),
        RECEIPT.replace("@v1", "@v2"),
        RECEIPT.replace("\nindex 6", ""),
        RECEIPT.replace("\nindex 6", "\nindex 06"),
        RECEIPT.replace("\nindex 6", "\nindex +6"),
        RECEIPT.replace("\nindex 6", "\nindex ６"),
        RECEIPT.replace("\nindex 6", "\nindex 6 "),
        RECEIPT.replace("\nindex 6", "\nindex 6\nindex 6"),
        RECEIPT.replace("\n", "\r\n"),
        "\n".join([LINES[0], LINES[2], LINES[1], *LINES[3:]]),
        "\n".join([*LINES[:3], LINES[3][:-4], *LINES[4:]]),
        "\n".join([*LINES[:2], LINES[1], *LINES[2:]]),
        RECEIPT.split("\n\n", maxsplit=1)[0] + "\n",
        RECEIPT.split("\n\n", maxsplit=1)[0] + "\n\n",
        RECEIPT.replace("\n\n", "\n" + LINES[3] * 64 + "\n\n", 1),
        RECEIPT + "x" * 2**18,
    ],
)
def test_malformed_receipts_are_refused(text: str) -> None:
    with pytest.raises(ReceiptError):
        Receipt.parse(text)
    assert outcome(verify_receipt(text, VERIFIER)) == (1, False)


def test_step_1_wants_a_checkpoint_that_parses_too() -> None:
    parts = Receipt.parse(RECEIPT)
    for note in (parts.note.removesuffix("\n"), SIGNER.sign_text("three\nlines\nbut no checkpoint\n")):
        assert outcome(verify_receipt(_changed(note=note), VERIFIER)) == (1, False)


def test_step_2_names_another_log_and_another_key() -> None:
    other = Signer.generate("example.com/other").verifier
    verified = verify_receipt(RECEIPT, other)
    assert outcome(verified) == (2, False)
    assert "'example.com/log'" in verified.steps[-1].detail
    assert outcome(verify_receipt(RECEIPT, Signer.generate(ORIGIN).verifier)) == (2, False)
    assert verified.checkpoint is None


def test_step_3_names_a_bad_signature() -> None:
    note = Receipt.parse(RECEIPT).note
    assert outcome(verify_receipt(_changed(note=note.replace("\n11\n", "\n12\n")), VERIFIER)) == (3, False)


def test_step_5_wants_the_expected_entry() -> None:
    expected = ENTRIES[6].encode()
    bare = _changed(entry=None)
    assert verify_receipt(RECEIPT, VERIFIER, entry=expected).ok
    assert verify_receipt(bare, VERIFIER, entry=expected).ok
    assert outcome(verify_receipt(bare, VERIFIER)) == (5, False)
    assert outcome(verify_receipt(RECEIPT, VERIFIER, entry=ENTRIES[5].encode())) == (5, False)
    assert outcome(verify_receipt(bare, VERIFIER, entry=ENTRIES[5].encode())) == (6, False)


def test_step_6_names_an_entry_that_is_elsewhere_in_the_log() -> None:
    assert outcome(verify_receipt(_changed(index=5), VERIFIER)) == (6, False)
    assert outcome(verify_receipt(_changed(index=11), VERIFIER)) == (6, False)
    verified = verify_receipt(_changed(entry=ENTRIES[5].encode()), VERIFIER)
    assert outcome(verified) == (6, False)
    assert verified.checkpoint is not None
    assert (verified.index, verified.entry) == (None, None)


@pytest.mark.parametrize(
    ("entry", "ok"),
    [
        (used(0), True),
        (used(0, 0), True),
        (voided(0), True),
        (granted("caller:ann", 5), True),
        (attributed(0, 0, 0, postings=[]), True),
        (attributed(0, 0, charge_nano="1001"), False),
        (attributed(0, 0, split=lines(contributor_ada=999)), False),
        (attributed(0, 0, split=lines(contributor_ada=1250, platform=-250)), False),
        (attributed(0, 0, split=lines(contributor_bob=750, platform=250)), False),
        (attributed(0, 0, split="everything"), False),
        (used(0, postings=lines(caller_ann=-1000, suspense=999)), False),
        (used(0, postings=lines(caller_ann=-999, suspense=999)), False),
        (used(0, charge_nano=1000), False),
        (used(0, charge_nano="-1000", postings=lines(caller_ann=1000, suspense=-1000)), False),
        (used(0, charge_nano="01000"), False),
        (used(0, postings=["suspense"]), False),
        (used(0, postings=[{"account": 1, "amount_nano": "0"}]), False),
    ],
)
def test_step_7_wants_amounts_that_agree(entry: Entry, ok: bool) -> None:
    assert outcome(verify_receipt(receipt_of(0, [entry]), VERIFIER)) == (7, ok)


def test_step_7_wants_an_entry() -> None:
    raw = b'{"not":"an entry"}'
    note = SIGNER.sign(Checkpoint(origin=ORIGIN, size=1, root=leaf_hash(raw)))
    text = Receipt(index=0, path=(), note=note, entry=raw).format()
    verified = verify_receipt(text, VERIFIER)
    assert outcome(verified) == (7, False)
    assert (verified.index, verified.entry) == (0, None)


def test_step_8_compares_a_claim_with_all_lines_of_its_account() -> None:
    split = [*lines(contributor_ada=200, platform=300), *lines(contributor_ada=500)]
    moved = lines(suspense=-1000, platform=300, contributor_ada=700)
    text = receipt_of(0, [attributed(0, 0, split=split, postings=moved)])
    for account, amount, ok in [
        ("contributor:ada", 700, True),
        ("contributor:ada", 500, False),
        ("contributor:bob", 1, False),
    ]:
        verified = verify_receipt(text, VERIFIER, claim=Line(account=account, amount_nano=amount))
        assert outcome(verified) == (8, ok)
        assert account in verified.steps[-1].detail
    claim = Line(account="contributor:ada", amount_nano=1)
    assert outcome(verify_receipt(receipt_of(0, [used(0)]), VERIFIER, claim=claim)) == (8, False)


def test_a_failure_prints_its_step() -> None:
    printed = str(verify_receipt(_changed(index=5), VERIFIER)).splitlines()
    assert printed[-1] == "FAILED 6 inclusion: the path from leaf 5 does not lead to the root of the tree of 11"


def _changed(**changes: object) -> str:
    parts = Receipt.parse(RECEIPT)
    fields = {"index": parts.index, "path": parts.path, "note": parts.note, "entry": parts.entry}
    return Receipt(**(fields | changes)).format()
