"""The wire: each form has one spelling, and every other text is refused as such."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_client import (
    MAX_BATCH_BYTES,
    MAX_BATCH_ENTRIES,
    Accepted,
    AcceptedError,
    Batch,
    BatchFault,
    BatchRefused,
    Checkpoint,
    Frontier,
    Signer,
)
from ledger_client.batches import fitting

SIGNER = Signer.generate("example.com/log")
HASHES = st.binary(min_size=32, max_size=32)


def batch(start: int, entries: tuple[bytes, ...], seen: int = 0, size: int | None = None) -> Batch:
    size = start + len(entries) if size is None else size
    note = SIGNER.sign(Checkpoint(origin=SIGNER.name, size=size, root=bytes(32)))
    return Batch(start=start, entries=entries, note=note, seen=seen)


BATCH = batch(7, (b"one", b"", b"three"), seen=9)


@given(st.integers(0, 2**62), st.lists(st.binary(max_size=300), min_size=1, max_size=20), st.integers(0, 2**63 - 1))
def test_a_batch_reads_back(start: int, entries: list[bytes], seen: int) -> None:
    made = batch(start, tuple(entries), seen)
    assert Batch.decode(made.encode()) == made


@given(st.data())
def test_bytes_that_are_not_quite_a_batch_are_refused_or_are_another_one(data: st.DataObject) -> None:
    raw = bytearray(BATCH.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        read = Batch.decode(bytes(raw))
    except BatchRefused:
        return
    assert read.encode() == raw


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"@v1", b"@v2"),
        (b"seen 9", b"seen 09"),
        (b"seen 9", b"seen -9"),
        (b"seen 9", b"seen 9223372036854775808"),
        (b"start 7", b"start 8"),
        (b"start 7", "start ٧".encode()),
        (b"note 1", b"note 9"),
        (b"\n\n", b"\n"),
        (b"example", b"exampl\xff"),
    ],
)
def test_a_batch_in_another_spelling_is_refused(old: bytes, new: bytes) -> None:
    raw = BATCH.encode()
    assert old in raw
    with pytest.raises(BatchRefused) as refused:
        Batch.decode(raw.replace(old, new, 1))
    assert refused.value.fault is BatchFault.MALFORMED


@pytest.mark.parametrize("raw", [b"", b"\0" * 100, b"{}", BATCH.encode()[:-1], b"x" * (MAX_BATCH_BYTES + 1)])
def test_what_is_no_batch_is_refused(raw: bytes) -> None:
    with pytest.raises(BatchRefused) as refused:
        Batch.decode(raw)
    assert refused.value.fault is BatchFault.MALFORMED


def test_a_batch_is_bounded_and_not_empty() -> None:
    batch(0, (b"",) * MAX_BATCH_ENTRIES)
    for entries in ((), (b"",) * (MAX_BATCH_ENTRIES + 1)):
        with pytest.raises(BatchRefused):
            batch(0, entries)
    with pytest.raises(BatchRefused, match="checkpoint is of 3"):
        batch(0, (b"",), size=3)


@given(st.integers(0, 70), st.integers(0, 65_535))
def test_what_fits_a_batch_fits_its_bytes(many: int, length: int) -> None:
    entries = [bytes(length)] * many
    taken = fitting(entries)
    assert bool(taken) == bool(many)
    if taken:
        assert len(batch(2**62, taken, 2**63 - 1).encode()) <= MAX_BATCH_BYTES
    if len(taken) < many:
        assert (len(taken) + 1) * length > MAX_BATCH_BYTES - 20_000
    assert len(fitting([b""] * (MAX_BATCH_ENTRIES + 1))) == MAX_BATCH_ENTRIES


@given(st.integers(0, 2**40), st.integers(1, MAX_BATCH_ENTRIES), st.data())
def test_an_acceptance_reads_back(start: int, many: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 2**62))
    count = size.bit_count()
    accepted = Accepted(
        start=start,
        end=start + many,
        log_start=size,
        time="2025-01-31T23:59:59Z",
        frontier=Frontier(size=size, hashes=tuple(data.draw(st.lists(HASHES, min_size=count, max_size=count)))),
        proof=tuple(data.draw(st.lists(HASHES, max_size=64))),
        note=BATCH.note,
    )
    text = accepted.format()
    assert Accepted.parse(text) == accepted
    position = data.draw(st.integers(0, len(text) - len(accepted.note) - 1))
    changed = text[:position] + data.draw(st.characters(exclude_categories=["Cs"])) + text[position + 1 :]
    try:
        read = Accepted.parse(changed)
    except AcceptedError:
        pass
    else:
        assert read.format() == changed


@pytest.mark.parametrize("text", ["", "tributary-accepted@v1\n", "null", BATCH.note])
def test_what_is_no_acceptance_is_refused(text: str) -> None:
    with pytest.raises(AcceptedError):
        Accepted.parse(text)
