"""Entries: one fact, one encoding, and nothing else is read back."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_client import ENTRY_TYPES, MAX_ENTRY_BYTES, Entry, EntryError, entry_id


def entry(**changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "id": entry_id("example.com/log", "usage:req_1"),
        "source": "example.com/log",
        "type": "usage.recorded",
        "time": "2025-01-31T23:59:59.25Z",
        "subject": "req_1",
        "data": {"charge_nano": "1500", "prompt_tokens": 12},
    }
    return Entry(**(fields | changes))


def test_the_encoding_is_canonical_cloudevents_json() -> None:
    assert entry().encode().decode() == (
        '{"data":{"charge_nano":"1500","prompt_tokens":12},'
        '"id":"d4991c841ba2f8820144b94ab0deee867aa8f26e8be0f3c41b256ef681926074",'
        '"source":"example.com/log","specversion":"1.0","subject":"req_1",'
        '"time":"2025-01-31T23:59:59.25Z","type":"usage.recorded"}'
    )


def test_rfc_8785_sorts_and_writes_numbers_as_its_example() -> None:
    # RFC 8785 section 3.2.2 and 3.2.3, without the number that rounds.
    data = {
        "numbers": [1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '€$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    assert '"data":{"literals":[null,true,false],"numbers":[1e+30,4.5,0.002,1e-27],"string":' in (
        entry(data=data).encode().decode()
    )
    assert r'"string":"€$\u000f\nA' in entry(data=data).encode().decode()


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-1e15, 1e15)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), JSON_VALUES, max_size=6))
def test_decode_undoes_encode(data: dict[str, Any]) -> None:
    written = entry(data=data)
    read = Entry.decode(written.encode())
    assert read == written
    assert read.encode() == written.encode()
    assert read.data == data


def test_an_entry_holds_no_reference_to_what_it_was_made_from() -> None:
    data = {"postings": [{"account": "platform", "amount_nano": "1"}]}
    written = entry(data=data)
    before = written.encode()
    data["postings"].clear()
    assert written.encode() == before
    assert Entry.decode(before) == written


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "8B" * 32},
        {"id": "ab" * 31},
        {"id": 7},
        {"source": ""},
        {"source": "two words"},
        {"source": "x" * 256},
        {"source": "é"},
        {"type": "usage.forgotten"},
        {"type": None},
        {"time": "2025-01-31T23:59:59+00:00"},
        {"time": "2025-02-30T00:00:00Z"},
        {"time": "2025-01-31 23:59:59Z"},
        {"time": "2025-01-31T23:59:59.Z"},
        {"time": "2025-01-31T23:59:59Z\n"},
        {"time": "٢٠٢٥-01-31T23:59:59Z"},
        {"subject": ""},
        {"subject": "a\nb"},
        {"subject": "x" * 256},
        {"data": []},
        {"data": {"n": 2**53}},
        {"data": {"n": 1e20}},
        {"data": {"n": float("nan")}},
        {"data": {"n": float("inf")}},
        {"data": {"s": "\ud800"}},
        {"data": {"\ud800": 1}},
        {"data": {1: "a"}},
        {"data": {"b": b"bytes"}},
    ],
)
def test_what_an_entry_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(EntryError):
        entry(**changes)


def test_an_endless_nest_is_refused_not_a_crash() -> None:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    with pytest.raises(EntryError):
        entry(data={"nest": nest})
    with pytest.raises(EntryError):
        Entry.decode(b"[" * MAX_ENTRY_BYTES)


def test_the_longest_entry_fits_a_bundle_and_one_more_byte_does_not() -> None:
    room = MAX_ENTRY_BYTES - len(entry(data={"s": ""}).encode())
    longest = entry(data={"s": "x" * room})
    assert len(longest.encode()) == MAX_ENTRY_BYTES
    assert Entry.decode(longest.encode()) == longest
    with pytest.raises(EntryError, match="65535 bytes"):
        entry(data={"s": "x" * (room + 1)})
    with pytest.raises(EntryError, match="65535 bytes"):
        Entry.decode(longest.encode() + b" ")


def _edited(**changes: Any) -> bytes:
    return json.dumps(json.loads(entry().encode()) | changes, separators=(",", ":"), sort_keys=True).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"\xef\xbb\xbf" + entry().encode(),
        entry().encode() + b"\n",
        b" " + entry().encode(),
        entry().encode().replace(b":12", b":12.0"),
        entry().encode().replace(b":12", b":1.2e1"),
        entry().encode().replace(b":12", b":-0"),
        entry().encode().replace(b":12", b":NaN"),
        entry().encode().replace(b":12", b":9007199254740992"),
        entry().encode().replace(b":12", b":" + b"9" * 5000),
        entry().encode().replace(b"req_1", b"req\\u005f1"),
        entry().encode().replace(b'"prompt_tokens":12', b'"prompt_tokens":12,"prompt_tokens":12'),
        entry().encode().replace(b"1.0", b"1.1"),
        entry().encode().decode().encode("utf-16"),
        _edited(extra=1),
        _edited(id=None),
        _edited(data="x"),
        json.dumps(json.loads(entry().encode())).encode(),
    ],
)
def test_bytes_that_are_no_entry_are_refused(raw: bytes) -> None:
    with pytest.raises(EntryError):
        Entry.decode(raw)


@given(st.integers(0, len(entry().encode()) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_is_another_entry(position: int, mask: int) -> None:
    raw = bytearray(entry().encode())
    raw[position] ^= mask
    try:
        other = Entry.decode(bytes(raw))
    except EntryError:
        return
    assert other != entry()
    assert other.encode() == bytes(raw)


def test_entry_ids_are_derived_from_all_three_parts() -> None:
    assert entry_id("a", "b", 3) == hashlib.sha256(b"a\x00b\x003").hexdigest()
    assert len({entry_id(*parts) for parts in [("a", "b", 0), ("a", "b", 1), ("ab", "c", 0), ("a", "bc", 0)]}) == 4


@pytest.mark.parametrize("parts", [("", "b", 0), ("a", "", 0), ("a\0b", "c", 0), ("a", "b\0c", 0), ("a", "b", -1)])
def test_entry_ids_of_ambiguous_parts_are_refused(parts: tuple[str, str, int]) -> None:
    with pytest.raises(EntryError):
        entry_id(*parts)


def test_entry_types_are_dotted_pairs() -> None:
    assert all(name.count(".") == 1 and name.replace(".", "").isalpha() for name in ENTRY_TYPES)
