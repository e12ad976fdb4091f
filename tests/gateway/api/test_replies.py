"""What a client reads is what the engine wrote, once, with the attribution and the usage added and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.api.replies import CHAT, COMPLETION, DONE, Shape, StreamWriter, Told, event, extended, replayed, whole
from gateway.engines import Delta, EngineUnavailable, GenerationRequest, SamplingParams
from gateway.exchange import Said
from gateway.grounding import Message
from tests.fakes import FakeEngine
from tests.raw_fake import RawFakeEngine

ATTRIBUTION = {"id": "req_x", "status": "pending", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['"}', "}\n\n", 'data: {"created":1}\n\ndata: [DONE]', '"attribution":{', "\\", "né", "\u2028"]
)
REASONS = ("stop", "length", "tool_calls", "content_filter")


def parse(stream: bytes) -> list[dict[str, Any]]:
    """The chunks of a complete stream, read as a client reads them."""
    assert stream.endswith(DONE)
    events = stream.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(found.removeprefix("data: ")) for found in events[:-2]]


def texts(chunks: list[dict[str, Any]], shape: Shape) -> dict[int, str]:
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text = choice["delta"].get("content") or "" if shape is CHAT else choice["text"]
            found[choice["index"]] = found.get(choice["index"], "") + text
    return found


async def generated(
    engine: FakeEngine, shape: Shape, *, stream: bool, max_tokens: int = 999, **options: Any
) -> list[Delta]:
    request = GenerationRequest(
        request_id="req_x",
        model="m",
        messages=(Message(role="user", content="?"),) if shape is CHAT else None,
        prompt=None if shape is CHAT else "?",
        sampling=SamplingParams(max_tokens=max_tokens),
        tools=options.pop("tools", ()),
        options=options,
        stream=stream,
    )
    return [delta async for delta in engine.generate(request)]


def writer(shape: Shape, *, n_choices: int = 1, include_usage: bool = False) -> StreamWriter:
    return StreamWriter(
        shape, request_id="req_x", model="m", created_s=7, n_choices=n_choices, include_usage=include_usage
    )


def told(deltas: list[Delta], *, unfinished: tuple[int, ...] = (), reason: str = "stop") -> Told:
    raws = [delta.raw for delta in deltas if delta.raw is not None]
    text = "".join(delta.text for delta in deltas if delta.index == 0)
    raw = b"".join(raws) if raws else None
    said = Said(model="m", created_s=7, text=text, finish_reason=reason, raw=raw, unfinished=unfinished)
    return Told(request_id="req_x", said=said, attribution=ATTRIBUTION)


@given(text=TEXTS, n=st.integers(1, 4), usage=st.booleans(), shape=st.sampled_from([CHAT, COMPLETION]))
async def test_a_raw_stream_is_the_engines_own_with_one_attribution(
    text: str, n: int, usage: bool, shape: Shape
) -> None:
    deltas = await generated(RawFakeEngine(text=text), shape, stream=True, n=n)
    written = writer(shape, n_choices=n, include_usage=usage)
    before = b"".join(map(written.write, deltas))
    chunks = parse(before + written.end(told(deltas)))

    raw = b"".join(delta.raw or b"" for delta in deltas)
    events = raw.split(b"\n\n")
    assert before == b"".join(event + b"\n\n" for event in events[:-2])  # all but the last event, as it was
    own = parse(raw + DONE)
    *bare, last = chunks[: len(own)]
    assert bare == own[:-1]
    assert last == own[-1] | {"attribution": ATTRIBUTION}
    assert texts(own, shape) == {i: text if i == 0 else f"{text} {i}" for i in range(n)}
    added = chunks[len(own) :]
    assert [chunk["usage"] for chunk in added] == [USAGE] * usage
    assert all((chunk["choices"], chunk["created"]) == ([], RawFakeEngine.CREATED_S) for chunk in added)


@given(text=TEXTS, usage=st.booleans(), shape=st.sampled_from([CHAT, COMPLETION]))
async def test_what_the_shapes_write_has_the_same_form(text: str, usage: bool, shape: Shape) -> None:
    deltas = await generated(FakeEngine(text=text), shape, stream=True)
    written = writer(shape, include_usage=usage)
    before = b"".join(map(written.write, deltas))
    chunks = parse(before + written.end(told(deltas)))
    assert texts(chunks, shape) == {0: text}
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "stop"
    assert [chunk["attribution"] for chunk in chunks if "attribution" in chunk] == [ATTRIBUTION]
    assert b'"finish_reason":"stop"' not in before
    assert [chunk["usage"] for chunk in chunks if chunk.get("usage")] == [USAGE] * usage
    if shape is CHAT:
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


@given(text=TEXTS, n=st.integers(1, 3), shape=st.sampled_from([CHAT, COMPLETION]))
async def test_a_whole_raw_answer_is_the_engines_own_with_usage_and_attribution(
    text: str, n: int, shape: Shape
) -> None:
    deltas = await generated(RawFakeEngine(text=text), shape, stream=False, n=n)
    (raw,) = [delta.raw for delta in deltas if delta.raw is not None]
    found = json.loads(whole(told(deltas), shape))
    assert found == json.loads(raw) | {"usage": USAGE, "attribution": ATTRIBUTION}
    assert len(found["choices"]) == n


@given(text=TEXTS, n=st.integers(1, 3), usage=st.booleans(), cut_at=st.integers(0, 60), raw=st.booleans())
async def test_a_replay_says_what_was_said_however_it_ended(
    text: str, n: int, usage: bool, cut_at: int, raw: bool
) -> None:
    engine = RawFakeEngine(text=text) if raw else FakeEngine(text=text)
    n = n if raw else 1
    deltas = (await generated(engine, CHAT, stream=True, n=n))[: cut_at or None]
    ended = {delta.index for delta in deltas if delta.finish_reason}
    unfinished = tuple(index for index in range(n) if index not in ended)
    answer = told(deltas, unfinished=unfinished, reason="cancelled" if unfinished else "stop")
    live = writer(CHAT, n_choices=n, include_usage=usage)
    first = b"".join(map(live.write, deltas)) + live.end(answer)
    kept = replace(answer, said=Said.decode(answer.said.encode()))
    again = replayed(kept, CHAT, include_usage=usage)
    if raw:
        assert set(again.split(b"\n\n")) <= set(first.split(b"\n\n"))  # a choice that was never begun is not opened
    one, other = parse(first), parse(again)
    assert texts(one, CHAT) == texts(other, CHAT)
    assert one[-1] == other[-1]
    for chunks in (one, other):
        reasons = [(c["index"], c["finish_reason"]) for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
        assert sorted(reasons) == [(i, "stop" if i in ended else "cancelled") for i in range(n)]
        assert sum("attribution" in chunk for chunk in chunks) == 1


async def test_tools_and_logprobs_reach_the_client_as_they_were_written() -> None:
    engine = RawFakeEngine(text="hm", calls=(("find", '{"a": "}"}'), ("find", "{}")))
    tools = ({"type": "function", "function": {"name": "find"}},)
    deltas = await generated(engine, CHAT, stream=True, tools=tools, logprobs=True)
    live = writer(CHAT)
    chunks = parse(b"".join(map(live.write, deltas)) + live.end(told(deltas, reason="tool_calls")))
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["function"]["arguments"] for call in calls] == ['{"a": "}"}', "{}"]
    tokens = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert "".join(content["token"] for token in tokens for content in token["content"]) == "hm"
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_stream_that_fails_says_so_and_is_not_called_done() -> None:
    deltas = await generated(RawFakeEngine(text="ab"), CHAT, stream=True, n=2)
    live = writer(CHAT, n_choices=2)
    last = max(i for i, delta in enumerate(deltas) if delta.finish_reason)
    written = b"".join(map(live.write, deltas[:last])) + live.fail(EngineUnavailable("gone"))
    *chunks, error = (json.loads(found.removeprefix("data: ")) for found in written.decode().split("\n\n")[:-1])
    assert error["error"]["code"] == "engine_unavailable"
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]].count("stop") == 1
    assert DONE not in written
    assert b"attribution" not in written


def test_an_end_that_its_engine_did_not_write_is_written() -> None:
    for raw in (None, b""):
        live = writer(CHAT)
        ended = Delta(token_ids=(), text="", raw=raw, finish_reason="length")
        assert live.write(replace(ended, raw=event({"choices": []}), finish_reason=None))
        live.write(ended)
        (*_, chunk) = parse(live.end(told([ended])))
        assert (chunk["choices"][0]["finish_reason"], "attribution" in chunk) == ("length", True)


@given(st.dictionaries(st.text("abc", max_size=3), TEXTS, min_size=1), st.sampled_from(["", "\n", "\n\n"]))
def test_an_object_is_extended_in_place(members: dict[str, str], after: str) -> None:
    written = b"data: " + json.dumps(members).encode() + after.encode()
    found = extended(written, {"attribution": ATTRIBUTION})
    assert json.loads(found.removeprefix(b"data: ")) == members | {"attribution": ATTRIBUTION}
    assert found.endswith(after.encode())


def test_what_an_earlier_version_kept_is_still_read() -> None:
    kept = b'{"model":"m","created_s":7,"text":"hm","finish_reason":"cancelled"}'
    said = Said.decode(kept)
    assert said == Said(model="m", created_s=7, text="hm", finish_reason="cancelled")
    answer = Told(request_id="req_x", said=said, attribution=ATTRIBUTION)
    chunks = parse(replayed(answer, CHAT, include_usage=False))
    assert texts(chunks, CHAT) == {0: "hm"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "cancelled"
    assert json.loads(whole(answer, CHAT))["choices"][0]["message"]["content"] == "hm"
