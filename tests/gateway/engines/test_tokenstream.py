from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.engines.tokenstream import TokenStream

if TYPE_CHECKING:
    from gateway.engines.tokenizer import ChatTokenizer


def decode_bytes(ids: Sequence[int]) -> str:
    """A toy tokenizer: an id below 256 is a byte, any other a special token without text."""
    return bytes(i for i in ids if i < 256).decode(errors="replace")


def stream(stream: TokenStream, ids: Sequence[int]) -> list[tuple[tuple[int, ...], str]]:
    pieces = []
    for token_id in ids:
        pieces.append(stream.push(token_id))
        if stream.stopped:
            return pieces
    return [*pieces, stream.finish()]


BYTES = st.lists(st.integers(0, 257), max_size=40) | st.text(max_size=20).map(lambda text: list(text.encode()))
# Few letters, so that stop sequences begin, fail and succeed often.
LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@given(BYTES)
def test_pieces_join_to_the_decoding_of_all_ids(ids: list[int]) -> None:
    pieces = stream(TokenStream(decode_bytes), ids)
    assert "".join(text for _, text in pieces) == decode_bytes(ids)
    assert [i for part, _ in pieces for i in part] == ids


@given(st.text(max_size=20))
def test_no_piece_holds_half_a_character(text: str) -> None:
    ids = list(text.encode())
    pieces = stream(TokenStream(decode_bytes), ids)
    assert all(part.encode() in text.encode() for _, part in pieces)
    assert "".join(part for _, part in pieces) == text


@given(LETTERS, STOPS, st.lists(st.integers(1, 4), max_size=30))
def test_text_ends_before_the_first_stop_sequence_wherever_tokens_part(
    text: str, stops: list[str], lengths: list[int]
) -> None:
    tokens = []
    while text:
        size = lengths.pop() if lengths else 3
        tokens.append(text[:size])
        text = text[size:]

    def decode(ids: Sequence[int]) -> str:
        return "".join(tokens[i] for i in ids)

    # The law, said without streaming: take tokens until one completes a stop sequence, then cut before it.
    expected = ""
    for count in range(len(tokens) + 1):
        expected = decode(range(count))
        if found := [at for stop in stops if (at := expected.find(stop)) >= 0]:
            expected = expected[: min(found)]
            break

    target = TokenStream(decode, stops)
    pieces = stream(target, range(len(tokens)))
    assert "".join(part for _, part in pieces) == expected
    assert target.stopped == bool(found)
    released = [i for ids, _ in pieces for i in ids]
    assert released == list(range(len(released)))
    assert decode(released).startswith(expected), "the released ids cover the released text"
    assert not released or len(decode(released[:-1])) < len(expected), "and no id without a part in it"


def test_text_that_may_begin_a_stop_sequence_waits() -> None:
    target = TokenStream(decode_bytes, ["\n\n"])
    assert target.push(ord("a")) == ((ord("a"),), "a")
    assert target.push(ord("\n")) == ((), "")
    assert target.push(ord("b")) == ((ord("\n"), ord("b")), "\nb")


def test_a_stop_sequence_inside_a_token_keeps_the_token_and_cuts_its_text() -> None:
    target = TokenStream(lambda ids: "".join(["one ", "two. three"][i] for i in ids), ["."])
    assert target.push(0) == ((0,), "one ")
    assert target.push(1) == ((1,), "two")
    assert target.stopped


@pytest.mark.model
@settings(deadline=None)
@given(data=st.data())
def test_pieces_join_with_the_real_tokenizer(tokenizer: ChatTokenizer, data: st.DataObject) -> None:
    text = st.text(max_size=20).map(tokenizer.encode)
    ids = data.draw(text | st.lists(st.integers(0, 49151), max_size=30))
    pieces = stream(TokenStream(tokenizer.decode), ids)
    assert "".join(part for _, part in pieces) == tokenizer.decode(ids)
    assert [i for part, _ in pieces for i in part] == ids
