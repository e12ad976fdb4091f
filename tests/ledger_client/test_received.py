"""An entry inside of an entry: nothing of it is lost, and it always fits."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger_client import (
    MAX_ENTRY_BYTES,
    MAX_FACT_BYTES,
    Entry,
    EntryError,
    Frontier,
    Received,
    leaf_hash,
    merkle,
    verify_inclusion,
)

from .facts import TIME, fact, registered, used

data = st.dictionaries(
    st.text(max_size=8), st.none() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e15, 1e15) | st.text()
)
origins = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="+"), min_size=1, max_size=255)


@given(data, origins, st.integers(0, 2**53 - 1))
@example({"x": 1e21, "y": -0.0, "\U0001f99a": 1, "\uffff": 2}, "example.com/log", 0)
def test_the_wrapper_holds_the_very_bytes(data: dict[str, object], origin: str, log_index: int) -> None:
    entry = fact("document.registered", "d1", data)  # type: ignore[arg-type]
    received = Received(origin=origin, log_index=log_index, entry=entry, time=TIME)
    wrapper = received.wrapped()
    assert entry.encode() in wrapper.encode()
    read = Received.of(Entry.decode(wrapper.encode()))
    assert read == received
    assert read.entry.encode() == entry.encode()


@pytest.mark.parametrize("character", ["\U0001f99a", '"', "\\", "\x80", "\uffff", "a"])
def test_the_longest_fact_of_the_log_of_the_longest_name_can_be_received(character: str) -> None:
    room = MAX_FACT_BYTES - len(fact("document.registered", "d1", {"s": ""}).encode())
    longest = fact("document.registered", "d1", {"s": "x" * room})
    time = "2025-01-31T23:59:59.123456Z"
    received = Received(origin=character * 255, log_index=2**53 - 1, entry=longest, time=time)
    assert MAX_FACT_BYTES < len(received.wrapped().encode()) <= MAX_ENTRY_BYTES


def test_what_was_received_is_not_received_again() -> None:
    wrapper = Received(origin="a", log_index=0, entry=registered(1), time=TIME).wrapped()
    with pytest.raises(EntryError, match="again"):
        Received(origin="b", log_index=0, entry=wrapper, time=TIME).wrapped()


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "other"},
        {"origin": 1},
        {"log_index": 4},
        {"log_index": True},
        {"log_index": 3.5},
        {"entry": None},
        {"entry": {}},
        {"more": 1},
        {"entry": orjson.loads(registered(1).encode()) | {"specversion": "0.3"}},
        {"entry": orjson.loads(registered(1).encode()) | {"more": 1}},
        {"entry": orjson.loads(registered(2).encode())},
    ],
)
def test_a_wrapper_that_is_not_how_an_entry_is_held_is_refused(change: dict[str, object]) -> None:
    wrapper = Received(origin="example.com/log", log_index=3, entry=registered(1), time=TIME).wrapped()
    envelope = orjson.loads(wrapper.encode())
    del envelope["specversion"]
    with pytest.raises(EntryError):
        Received.of(Entry(**envelope | {"data": envelope["data"] | change}))
    with pytest.raises(EntryError):
        Received.of(used(1))


@pytest.mark.parametrize("change", [{"id": "0" * 64}, {"source": "metering"}, {"subject": "someone"}])
def test_a_wrapper_under_another_name_is_refused(change: dict[str, str]) -> None:
    wrapper = Received(origin="example.com/log", log_index=3, entry=registered(1), time=TIME).wrapped()
    envelope = orjson.loads(wrapper.encode())
    del envelope["specversion"]
    with pytest.raises(EntryError, match="not how"):
        Received.of(Entry(**envelope | change))


def test_what_looks_like_the_end_of_a_wrapper_inside_of_the_entry_is_not_it() -> None:
    inside = fact("document.registered", "d1", {"x": {"log_index": 3, "origin": "a"}, "y": ',"log_index":3,"origin":"'})
    for origin in ("a", ',"log_index":3,"origin":"'):
        received = Received(origin=origin, log_index=3, entry=inside, time=TIME)
        assert Received.of(received.wrapped()) == received


@given(st.integers(0, 70), st.integers(1, 70))
def test_a_frontier_and_what_stands_behind_it_prove_every_leaf_of_theirs(before: int, behind: int) -> None:
    leaves = [leaf_hash(bytes([number])) for number in range(before + behind)]
    start = Frontier().extend(leaves[:before])
    grown = start.extend(leaves[before:])
    hash_at = merkle.hashes_after(start, leaves[before:])
    for index in range(before, before + behind):
        path = merkle.inclusion_path(index, grown.size, hash_at)
        verify_inclusion(leaves[index], index, grown.size, path, grown.root())
    if before > 1:
        with pytest.raises(LookupError):
            hash_at(0, before - 1 - before % 2)
