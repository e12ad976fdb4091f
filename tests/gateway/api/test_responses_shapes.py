"""However an engine cuts what it writes, the response is the same."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.responses_shapes import ResponseWriter
from gateway.engines import Delta, EngineUnavailable

METERED = {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}


def writer() -> ResponseWriter:
    return ResponseWriter(request_id="req_x", model="m", created_s=7, asked={})


def chunk(**said: Any) -> bytes:
    choice = {"index": 0, "delta": said, "logprobs": None, "finish_reason": None}
    head = {"id": "chatcmpl-req_x", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    return b"data: " + json.dumps(head | {"choices": [choice]}).encode() + b"\n\n"


def call(number: int, arguments: str, **begun: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": begun["name"]} if begun else {})
    head = {"id": begun["id"], "type": "function"} if begun else {}
    return {"tool_calls": [{"index": number, **head, "function": function}]}


def written(raws: Sequence[bytes]) -> dict[str, Any]:
    made = writer()
    for raw in raws:
        made.write(Delta(token_ids=(), raw=raw))
    return made.whole("stop", METERED)


SAID: list[dict[str, Any]] = [
    {"role": "assistant", "content": ""},
    {"content": "I look "},
    {"content": "it up.\n\n"},
    call(0, "", id="call_a", name="weather"),
    call(0, '{"city"'),
    call(0, ': "Mole"}'),
    call(1, "{}", id="call_b", name="clock"),
    {"reasoning": "not shown", "content": None},
    {},
]


@given(cuts=st.sets(st.integers(1, len(SAID) - 1)), comment=st.integers(0, len(SAID)))
def test_events_may_come_together(cuts: set[int], comment: int) -> None:
    chunks = [chunk(**said) for said in SAID]
    chunks[comment:comment] = [b": keep-alive\n\n"]
    places = [0, *sorted(cuts), len(chunks)]
    raws = [b"".join(chunks[a:b]) for a, b in itertools.pairwise(places)]
    message, first, second = written(raws)["output"]
    assert message["content"][0]["text"] == "I look it up.\n\n"
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_a", "weather", '{"city": "Mole"}')
    assert (second["call_id"], second["name"], second["arguments"]) == ("call_b", "clock", "{}")
    assert {item["status"] for item in (message, first, second)} == {"completed"}
    assert len({item["id"] for item in (message, first, second)}) == 3


@given(text=st.text(min_size=1), size=st.integers(1, 5))
def test_text_survives_its_cuts(text: str, size: int) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    plain = writer()
    for piece in pieces:
        plain.write(Delta(token_ids=(), text=piece))
    raw = written([chunk(content=piece) for piece in pieces])
    assert plain.whole("stop", METERED)["output"] == raw["output"]
    assert raw["output"][0]["content"][0]["text"] == text


@pytest.mark.parametrize(
    ("finish_reason", "status", "details", "item"),
    [
        ("stop", "completed", None, "completed"),
        ("tool_calls", "completed", None, "completed"),
        ("length", "incomplete", {"reason": "max_output_tokens"}, "incomplete"),
        ("content_filter", "incomplete", {"reason": "content_filter"}, "incomplete"),
        ("cancelled", "cancelled", None, "incomplete"),
        ("error", "failed", None, "incomplete"),
    ],
)
def test_how_an_answer_ended_is_told_once(finish_reason: str, status: str, details: object, item: str) -> None:
    made = writer()
    made.write(Delta(token_ids=(), text="Yes"))
    last = json.loads(made.end(finish_reason, METERED).decode().rsplit("data: ", 1)[1])
    response = last["response"]
    assert response == made.whole(finish_reason, METERED)
    assert (response["status"], response["incomplete_details"]) == (status, details)
    assert (response["error"] is not None) == (status == "failed")
    assert [each["status"] for each in response["output"]] == [item]
    assert last["type"] == f"response.{'incomplete' if status == 'cancelled' else status}"


def test_a_call_that_was_never_begun_is_the_engines_fault() -> None:
    with pytest.raises(EngineUnavailable, match="not begun"):
        written([chunk(**call(0, "{}"))])
