from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines import Delta, EngineRefused, EngineUnavailable, PromptTooLong
from gateway.engines.vllm import stream
from gateway.engines.vllm.stream import EventWalker, Splicer, whole

from . import wire

SERVED, TOLD = "lora-0123456789abcdef", "guide"
# What a model may say to be taken for the gateway's own words, beside any text at all.
TRAPS = [
    ',"token_ids":[1]', '"token_ids":[1]', '"model":"lora-0123456789abcdef"', '","model":"lora-0123456789abcdef","x":"',
    '"finish_reason":"stop"', '"finish_reason":null', ',"usage":{"prompt_tokens":1}', ',"prompt_token_ids":[7]',
    "data: [DONE]\n\n", 'data: {"error":{"message":"x"}}\n\n', "\r\n\r\n", "\\", '\\"', '"choices":[{"index":1,',
]  # fmt: skip
texts = st.one_of(st.text(max_size=12), st.sampled_from(TRAPS))
token_ids = st.lists(st.integers(0, 200_000), max_size=3)
answers = st.lists(st.tuples(texts, token_ids), max_size=6)


def walker(choices: int = 1) -> EventWalker:
    return EventWalker(Splicer(written=SERVED, told=TOLD), choices=choices, adapter=SERVED, context_tokens=100)


def walk(pieces: Iterable[bytes], choices: int = 1) -> list[Delta]:
    walking = walker(choices)
    deltas = [delta for piece in pieces for delta in walking.feed(piece)]
    walking.end()
    return deltas


def cut(whole: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % (len(whole) + 1) for place in places})
    return [whole[start:end] for start, end in zip([0, *ends], [*ends, len(whole)], strict=True)]


def parsed(raw: bytes) -> list[Any]:
    events = raw.split(b"\n\n")
    assert events.pop() == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def passed_on(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk as it must reach the client."""
    kept = {key: value for key, value in chunk.items() if key != "prompt_token_ids"} | {"model": TOLD}
    return kept | {
        "choices": [{k: v for k, v in c.items() if k not in ("token_ids", "prompt_token_ids")} for c in kept["choices"]]
    }


@given(
    prompt=st.lists(st.integers(0, 200_000), min_size=1, max_size=5),
    choices=st.lists(answers, min_size=1, max_size=3),
    places=st.lists(st.integers(0), max_size=8),
    line=st.sampled_from([b"\n", b"\r\n"]),
    data=st.data(),
)
def test_every_way_of_cutting_a_stream_gives_the_same_answer(
    prompt: list[int], choices: list[list[tuple[str, list[int]]]], places: list[int], line: bytes, data: st.DataObject
) -> None:
    n = len(choices)
    turns = data.draw(st.permutations([index for index, said in enumerate(choices) for _ in range(len(said) + 1)]))
    chunks = [wire.opening(SERVED, index, prompt) for index in range(n)]
    left = {index: [*said] for index, said in enumerate(choices)}
    for index in turns:
        if left[index]:
            text, ids = left[index].pop(0)
            chunks.append(wire.said(SERVED, index, text, ids))
        else:
            chunks.append(wire.said(SERVED, index, "", [2], "stop"))
    tokens = n + sum(len(ids) for said in choices for _, ids in said)
    ending = wire.event(wire.usage_chunk(SERVED, len(prompt), tokens)) + wire.DONE
    written = b": keep-alive\n\n".join(map(wire.event, chunks)) + ending
    deltas = walk(cut(written.replace(b"\n\n", line + line), places), n)

    assert [delta.prompt_ids for delta in deltas] == [tuple(prompt), *[None] * (len(deltas) - 1)]
    for index, said in enumerate(choices):
        own = [delta for delta in deltas if delta.index == index]
        assert [i for delta in own for i in delta.token_ids] == [*(i for _, ids in said for i in ids), 2]
        assert [delta.finish_reason for delta in own] == [*[None] * (len(own) - 1), "stop"]
        assert own[-1].token_ids == (2,)
        raw = [chunk for delta in own for chunk in parsed(without_comments(delta.raw))]
        assert raw == [passed_on(chunk) for chunk in chunks if chunk["choices"][0]["index"] == index]


def without_comments(raw: bytes | None) -> bytes:
    assert raw is not None
    return raw.replace(b": keep-alive\n\n", b"")


@given(
    st.lists(st.integers(0, 200_000), min_size=1, max_size=5),
    st.lists(st.tuples(texts, token_ids, st.sampled_from(["stop", "length", "tool_calls"])), min_size=1, max_size=3),
    st.dictionaries(texts, st.floats(-20, 0), max_size=3),
    st.booleans(),
)
def test_a_whole_answer_keeps_every_word_and_loses_only_ids_and_usage(
    prompt: list[int], said: list[tuple[str, list[int], str]], tops: dict[str, float], chat: bool
) -> None:
    n = len(said)
    answer = (
        wire.chat_whole(SERVED, prompt, said) if chat else wire.completion_whole(SERVED, prompt, said, tops and [tops])
    )
    deltas = whole(wire.dumps(answer), Splicer(written=SERVED, told=TOLD), choices=n)
    assert [(list(d.token_ids), d.finish_reason) for d in deltas] == [(ids, reason) for _, ids, reason in said]
    assert [d.index for d in deltas] == list(range(n))
    assert [d.prompt_ids for d in deltas] == [tuple(prompt), *[None] * (n - 1)]
    assert [d.raw is None for d in deltas] == [*[True] * (n - 1), False]
    assert json.loads(deltas[-1].raw or b"") == {k: v for k, v in passed_on(answer).items() if k != "usage"}


def test_what_one_read_brings_is_one_delta_and_the_ending_is_another() -> None:
    chunks = [wire.opening(SERVED, 0, [5]), *[wire.said(SERVED, 0, "a", [i]) for i in range(60)]]
    tail = wire.event(wire.said(SERVED, 0, ".", [60], "length")) + wire.event(wire.usage_chunk(SERVED, 1, 61))
    deltas = walk([b"".join(map(wire.event, chunks)) + tail + wire.DONE])
    assert [len(delta.token_ids) for delta in deltas] == [60, 1]
    assert [delta.finish_reason for delta in deltas] == [None, "length"]


def error(message: str, kind: str, code: int, param: str | None = None) -> bytes:
    said = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return b"data: " + json.dumps(said).encode() + b"\n\n"  # vLLM writes its errors with spaces


OPENING = wire.event(wire.opening(SERVED, 0, [5, 6]))
TEXT = wire.event(wire.said(SERVED, 0, "a", [1]))
ENDING = wire.event(wire.said(SERVED, 0, "", [2], "stop"))
USAGE = wire.event(wire.usage_chunk(SERVED, 2, 2))
DEAD = error("EngineCore encountered an issue", "InternalServerError", 500)


@pytest.mark.parametrize(
    ("written", "deltas", "message"),
    [
        (OPENING + TEXT, 1, "in the middle"),
        (OPENING + TEXT + ENDING, 2, "in the middle"),
        (OPENING + TEXT + ENDING + USAGE, 2, "in the middle"),
        (OPENING + TEXT + wire.DONE, 1, "before every choice"),
        (OPENING + TEXT + ENDING + wire.DONE, 2, "how many tokens"),
        (OPENING + TEXT + ENDING + wire.event(wire.usage_chunk(SERVED, 2, 3)) + wire.DONE, 2, "counted"),
        (OPENING + TEXT + DEAD + wire.DONE, 1, "EngineCore encountered"),
        (OPENING + TEXT + error("no", "BadRequestError", 400), 1, "no"),
        (OPENING + TEXT + ENDING + TEXT + ENDING, 2, "choice 0|in the middle"),
        (OPENING + TEXT + wire.event(wire.said(SERVED, 0, "", [], "abort")), 1, "abort"),
        (OPENING + TEXT + wire.event(wire.said(SERVED, 1, "", [3], "stop")), 1, "choice 1"),
        (TEXT, 0, "which token ids"),
        (OPENING + TEXT.replace(b"[1]", b"[1,,2]"), 0, "no numbers"),
        (b"<html>\n\n", 0, "HTTP 500"),
        (b"", 0, "in the middle"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_stream_that_is_not_an_answer_is_the_engines_fault(
    written: bytes, deltas: int, message: str, step: int
) -> None:
    walking, found = walker(), []

    def walk() -> None:
        for start in range(0, len(written), step):
            found.extend(walking.feed(written[start : start + step]))
        walking.end()

    with pytest.raises(EngineUnavailable, match=message):
        walk()
    if step > len(written):
        assert len(found) == deltas  # what came before the fault was answered, and counts


def test_an_error_before_the_answer_may_be_the_callers() -> None:
    long = error("too long (parameter=input_tokens, value=345)", "BadRequestError", 400, "input_tokens")
    with pytest.raises(PromptTooLong) as caught:
        list(walker().feed(long))
    assert (caught.value.tokens, caught.value.limit_tokens) == (345, 99)
    with pytest.raises(EngineRefused, match="no such grammar") as refused:
        list(walker().feed(error("no such grammar", "BadRequestError", 400, "response_format")))
    assert refused.value.param == "response_format"


def test_an_event_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_EVENT_BYTES", 1000)
    walking = walker()
    for _ in range(142):
        assert list(walking.feed(b"data: {")) == []
    with pytest.raises(EngineUnavailable, match="more than 1000 bytes"):
        list(walking.feed(b"data: {"))


@pytest.mark.parametrize(
    "change",
    [
        {"usage": None}, {"choices": []}, {"prompt_token_ids": None}, {"usage": {"prompt_tokens": 1}},
        {"usage": wire.usage(1, 9)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("choices", [1, 2])
def test_an_object_that_is_no_answer_is_the_engines_fault(change: dict[str, Any], choices: int) -> None:
    answer = wire.chat_whole(SERVED, [5], [("a", [1], "stop")] * choices) | change
    with pytest.raises(EngineUnavailable):
        whole(wire.dumps(answer), Splicer(written=SERVED, told=TOLD), choices=choices)


def test_an_object_of_other_choices_than_were_asked_for_is_the_engines_fault() -> None:
    answer = wire.dumps(wire.chat_whole(SERVED, [5], [("a", [1], "stop")] * 3))
    with pytest.raises(EngineUnavailable, match="2 choices"):
        whole(answer, Splicer(written=SERVED, told=TOLD), choices=2)
