"""Entries: one fact, one encoding, and nothing else is read back."""

from __future__ import annotations

import enum
import hashlib
import json
import uuid
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import orjson
import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from ledger_client import ENTRY_TYPES, MAX_ENTRY_BYTES, MAX_FACT_BYTES, Entry, EntryError, entry_id
from ledger_client.entries import _exact, _fast


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


# Every scalar, and those that two encoders write differently: whole and tiny floats, the two zeros, keys whose UTF-16
# order is not that of their code points, and strings that look like numbers.
SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.integers(-(10**7), 10**7).map(lambda millionths: millionths / 10**6)
    | st.builds(lambda number, power: float(Fraction(number, 2**power)), st.integers(1, 2**60), st.integers(0, 80))
    | st.sampled_from([0.0, -0.0, 5.0, -10.0, 1e-5, 9.9e-6, 1e-6, 1e-7, 1e15, 1e16, 1e20, 1e21, 1e22, 2.0**53])
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["1.0,", "[1.0]", "-0}", "1e5,", ":-0.0,", "\U0001f99a", "\uffff", "\x7f\x00\b\u2028", "\ud800"])
)
KEYS = st.text(st.characters(), max_size=4) | st.sampled_from(["\U0001f99a", "\uffff", "\ue000", "a.0,", "-0]"])
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)


@given(st.dictionaries(KEYS, ANYTHING, max_size=6))
@example({"n": [0.1, 1.5, 9007199254740991, -0.0, 0.0, 100.0]})
@example({"\U0001f99a": 1, "\uffff": 2})
def test_the_fast_encoder_writes_what_rfc_8785_says_or_nothing(data: dict[str, Any]) -> None:
    written = _fast(data)
    if written is None:
        return
    raw, read = written
    assert raw == rfc8785.dumps(data)
    assert read == json.loads(raw)
    assert (raw, repr(read)) == (_exact(data)[0], repr(_exact(data)[1]))


RECORDED: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(1e-5, 9e14)
    | st.sampled_from([0.0, -0.0, 5.0, -10.0])
    | st.text(
        st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cc"], exclude_characters=".-e"), max_size=9
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_xyz", min_size=1, max_size=9), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text("abc_xyz", min_size=1, max_size=9), RECORDED, max_size=6))
def test_what_our_records_are_made_of_takes_the_fast_encoder(data: dict[str, Any]) -> None:
    assert _fast(data) is not None


class _Colour(enum.Enum):
    RED = "red"


class _Word(enum.StrEnum):
    YES = "yes"


class _Whole(int):
    pass


@pytest.mark.parametrize(
    "value",
    [
        uuid.UUID(int=1),
        datetime(2025, 1, 1, tzinfo=UTC),
        _Colour.RED,
        orjson.Fragment(b"1"),
        {_Colour.RED: 1},
        {1, 2},
        1j,
    ],
)
def test_what_is_not_json_is_refused_by_both_encoders(value: Any) -> None:
    assert _fast({"value": value}) is None
    with pytest.raises(EntryError):
        entry(data={"value": value})


@pytest.mark.parametrize("value", [_Word.YES, _Whole(7), {_Word.YES: _Word.YES}, (1, "two"), (1.0, ()), True])
def test_what_only_resembles_json_is_written_as_before(value: Any) -> None:
    assert (
        entry(data={"value": value}).encode()
        == _exact(
            {
                "data": {"value": value},
                **{name: getattr(entry(), name) for name in ("id", "source", "subject", "time", "type")},
                "specversion": "1.0",
            }
        )[0]
    )


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
        {"data": {"n": 2.0**53}},
        {"data": {"n": 1e15, "m": 9999999999999998.0}},
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
    for kind, most in (("usage.recorded", MAX_FACT_BYTES), ("entry.received", MAX_ENTRY_BYTES)):
        room = most - len(entry(type=kind, data={"s": ""}).encode())
        longest = entry(type=kind, data={"s": "x" * room})
        assert len(longest.encode()) == most
        assert Entry.decode(longest.encode()) == longest
        with pytest.raises(EntryError, match=f"{most} bytes"):
            entry(type=kind, data={"s": "x" * (room + 1)})
        with pytest.raises(EntryError, match=f"{most} bytes"):
            Entry.decode(longest.encode().replace(b"xx", b"xxx", 1))


def _edited(**changes: Any) -> bytes:
    return json.dumps(json.loads(entry().encode()) | changes, separators=(",", ":"), sort_keys=True).encode()


_SWAPPED = ('"\U0001f99a":1,"\uffff":1'.encode(), '"\uffff":1,"\U0001f99a":1'.encode())


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
        entry().encode().replace(b":12", b":5.0"),
        entry().encode().replace(b":12", b":-0.0"),
        entry().encode().replace(b":12", b":1e+30").replace(b"e+", b"e"),
        entry().encode().replace(b":12", b":1e-6"),
        entry().encode().replace(b":12", b":1e16"),
        entry().encode().replace(b":12", b":100000000000000000000"),
        entry().encode().replace(b":12", b":18446744073709551616"),
        entry().encode().replace(b":12", b":0.10"),
        entry().encode().replace(b'"req_1"', b'"\\ud800"'),
        entry().encode().replace(b"req_1", b"req_\xed\xa0\x80"),
        entry(data={"b": 1, "c": 2}).encode().replace(b'"b":1,"c":2', b'"c":2,"b":1'),
        entry(data={"\uffff": 1, "\U0001f99a": 1}).encode().replace(*_SWAPPED),
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
