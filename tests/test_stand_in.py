"""The stand-in against bytes that vLLM 0.32's own models wrote, and each of its faults as a client sees it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stand_in import shapes
from tests.stand_in.kit import Server, stand_in
from tests.stand_in.model import EOS, Choice, Model
from tests.stand_in.shapes import Ask

MESSAGES = [{"role": "user", "content": "Who cast the bell?"}]
CHAT = {"model": "m", "messages": MESSAGES, "return_token_ids": True}

# As vLLM's ChatCompletionStreamResponse, ChatCompletionResponse and their kin serialise the ask of `an_ask`.
CHAT_EVENTS = [
    (
        '{"id":"R","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant",'
        '"content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":[1,2],"prompt_text":null}'
    ),
    (
        '{"id":"R","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"x"},'
        '"logprobs":null,"finish_reason":null,"token_ids":[3]}]}'
    ),
    (
        '{"id":"R","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":""},'
        '"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":[2]}]}'
    ),
    (
        '{"id":"R","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":2,'
        '"total_tokens":4,"completion_tokens":2},"system_fingerprint":"vllm-0.32.0-5ta4d1n0"}'
    ),
]
COMPLETION_EVENTS = [
    (
        '{"id":"R","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"x","logprobs":null,'
        '"finish_reason":null,"stop_reason":null,"prompt_token_ids":[1,2],"token_ids":[3]}]}'
    ),
    (
        '{"id":"R","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"","logprobs":null,'
        '"finish_reason":"stop","stop_reason":null,"prompt_token_ids":null,"token_ids":[2]}]}'
    ),
    (
        '{"id":"R","object":"text_completion","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":2,'
        '"total_tokens":4,"completion_tokens":2},"system_fingerprint":"vllm-0.32.0-5ta4d1n0"}'
    ),
]
CHAT_WHOLE = (
    '{"id":"R","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    '"content":"x","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":'
    'null,"finish_reason":"stop","stop_reason":null,"token_ids":[3,2],"routed_experts":null}],"service_tier":null,'
    '"system_fingerprint":"vllm-0.32.0-5ta4d1n0","usage":{"prompt_tokens":2,"total_tokens":4,"completion_tokens":2,'
    '"prompt_tokens_details":null,"completion_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":[1,2],'
    '"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
)
COMPLETION_WHOLE = (
    '{"id":"R","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"x","logprobs":null,'
    '"finish_reason":"stop","stop_reason":null,"token_ids":[3,2],"prompt_logprobs":[null,{"2":{"logprob":-1.5,"rank":'
    '76,"decoded_token":null}}],"prompt_token_ids":[1,2],"routed_experts":null}],"service_tier":null,'
    '"system_fingerprint":"vllm-0.32.0-5ta4d1n0","usage":{"prompt_tokens":2,"total_tokens":4,"completion_tokens":2,'
    '"prompt_tokens_details":null,"completion_tokens_details":null},"kv_transfer_params":null,"ec_transfer_params":null,'
    '"metrics":null}'
)


def an_ask() -> Ask:
    choice = Choice(ids=(3, EOS), pieces=("x", ""), escaped=(b"x", b""), finish_reason="stop")
    return Ask(
        id="R", created=1, model="m", adapter=None, prompt=(1, 2), choices=(choice,), ids=True, stream=True, usage=True
    )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with stand_in("--model", "m", "--chunks", "8") as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        yield client


def test_events_and_bodies_are_vllms_byte_for_byte() -> None:
    chat, completion = shapes.Chat.steps(an_ask()), shapes.Completion.steps(an_ask())
    assert [event.decode() for event in chain(*chat)] == [f"data: {e}\n\n" for e in CHAT_EVENTS]
    assert [event.decode() for event in chain(*completion)] == [f"data: {e}\n\n" for e in COMPLETION_EVENTS]
    assert shapes.Chat.whole(an_ask()).decode() == CHAT_WHOLE
    rows = shapes.scored((1, 2), (0.0, -1.5), text=False)
    assert shapes.Completion.whole(an_ask(), rows).decode() == COMPLETION_WHOLE


def test_scores_depend_on_every_id_before_and_on_the_adapter() -> None:
    model = Model(seed=1, length_tokens=8)
    values = model.logprobs((1, 2, 3, 4), None)
    assert model.logprobs((1, 9, 3, 4), None)[0] == values[0]
    assert model.logprobs((1, 9, 3, 4), None)[3] != values[3]
    assert model.logprobs((1, 2, 3, 4), "concise")[3] != values[3]
    assert model.logprobs((1, 2, 3, 4), "inert") == values
    assert all(-20 < value < 0 for value in values)
    assert Model(seed=1, length_tokens=8).logprobs((1, 2, 3, 4), None) == values


def test_the_prefix_cache_knows_what_was_read_before_under_the_same_adapter() -> None:
    model = Model(seed=1, length_tokens=8)
    ids = tuple(range(40))
    assert model.cached_tokens(ids, None) == 0
    assert model.cached_tokens((*ids[:35], 99), None) == 32
    assert model.cached_tokens(ids, "concise") == 0
    assert model.cached_tokens(ids, None, "salt") == 0
    assert model.cached_tokens(ids, None, "salt") == 32
    assert model.cached_tokens(ids, None) == 32
    model.answer(tuple(range(50, 90)), None, number=0, max_tokens=1)
    assert model.cached_tokens(tuple(range(50, 90)), None) == 32


def test_a_stop_string_ends_the_text_before_it_and_the_ids_after_it() -> None:
    model = Model(seed=1, length_tokens=8)
    free = model.answer((1, 2, 3), None, number=0, max_tokens=6)
    assert free.finish_reason == "length"
    stopped = model.answer((1, 2, 3), None, number=0, max_tokens=6, stop=(free.pieces[3],))
    assert (stopped.text, stopped.ids) == ("".join(free.pieces[:3]), free.ids[:4])
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", free.pieces[3])


async def test_a_stream_says_what_the_whole_says(client: httpx.AsyncClient) -> None:
    whole = (await client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "req_1"})).json()
    asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    events = await events_of(client, "/v1/chat/completions", asked)
    assert whole["id"] == "chatcmpl-req_1"
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    ids = [i for event in events[1:-1] for i in event["choices"][0]["token_ids"]]
    assert ids == whole["choices"][0]["token_ids"]
    text = "".join(event["choices"][0]["delta"]["content"] for event in events[:-1])
    assert text == whole["choices"][0]["message"]["content"]
    assert events[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    rendered = (await client.post("/tokenize", json={"model": "m", "messages": MESSAGES})).json()
    assert rendered["tokens"] == whole["prompt_token_ids"]


async def test_choices_grow_side_by_side_and_the_first_token_comes_with_the_role(client: httpx.AsyncClient) -> None:
    asked = CHAT | {"stream": True, "n": 2, "max_tokens": 3}
    events = [event["choices"][0] for event in await events_of(client, "/v1/chat/completions", asked)]
    assert [event["index"] for event in events] == [0, 1] * 4
    assert ["role" in event["delta"] for event in events] == [True] * 2 + [False] * 6
    assert [event["finish_reason"] for event in events] == [None] * 6 + ["length"] * 2


async def test_choices_log_probabilities_and_tools(client: httpx.AsyncClient) -> None:
    asked = CHAT | {"n": 2, "logprobs": True, "top_logprobs": 2}
    first, second = (await client.post("/v1/chat/completions", json=asked)).json()["choices"]
    assert first["token_ids"] != second["token_ids"]
    assert len(first["logprobs"]["content"]) == len(first["token_ids"])
    assert [len(row["top_logprobs"]) for row in first["logprobs"]["content"]] == [2] * 8
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    called = (await client.post("/v1/chat/completions", json=CHAT | {"tools": tools})).json()["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    assert json.loads(called["message"]["tool_calls"][0]["function"]["arguments"]) == {"text": "Who cast the bell?"}
    deltas = [
        e["choices"][0]
        for e in await events_of(client, "/v1/chat/completions", CHAT | {"tools": tools, "stream": True})
    ]
    assert deltas[-1]["finish_reason"] == "tool_calls"
    parts = [d["delta"]["tool_calls"][0]["function"] for d in deltas if "tool_calls" in d["delta"]]
    assert [part.get("name") for part in parts] == ["look_up", None]


async def test_both_ways_of_scoring_agree_where_the_cache_does_not_answer(client: httpx.AsyncClient) -> None:
    ids = list(range(100, 140))
    standard = {"model": "m", "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
    sampling = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0, "skip_reading_prefix_cache": False}
    quick = {"model": "m", "token_ids": ids, "sampling_params": sampling | {"detokenize": False}}
    true = (await client.post("/v1/completions", json=standard)).json()["choices"][0]["prompt_logprobs"]
    cached = (await client.post("/inference/v1/generate", json=quick)).json()["prompt_logprobs"]
    assert true[0] is None
    assert [next(iter(row)) for row in true[1:]] == [str(i) for i in ids[1:]]
    assert [str(i) in row for i, row in zip(ids[1:], cached[1:], strict=True)] == [False] * 31 + [True] * 8
    for i, row in zip(ids[32:], cached[32:], strict=True):
        assert row[str(i)]["logprob"] == true[ids.index(i)][str(i)]["logprob"]


async def test_that_request_without_its_guard_kills_the_engine(server: Server, client: httpx.AsyncClient) -> None:
    asked = {"model": "m", "token_ids": [1, 2], "sampling_params": {"max_tokens": 1, "prompt_logprobs": 0}}
    with pytest.raises(httpx.HTTPError):
        await client.post("/inference/v1/generate", json=asked)
    url = server.url
    await server.kill()
    await server.start()
    assert server.url == url
    assert (await client.get("/health")).status_code == 200


async def test_adapters_come_go_and_are_lost(server: Server, client: httpx.AsyncClient, tmp_path: Path) -> None:
    asked = {"lora_name": "concise@1", "lora_path": str(tmp_path)}
    assert (await client.post("/v1/load_lora_adapter", json=asked | {"lora_path": "/none"})).status_code == 404
    assert (await client.post("/v1/load_lora_adapter", json=asked)).status_code == 200
    assert (await client.post("/v1/load_lora_adapter", json=asked)).status_code == 400
    base = (await client.post("/v1/chat/completions", json=CHAT)).json()
    adapted = (await client.post("/v1/chat/completions", json=CHAT | {"model": "concise@1"})).json()
    assert adapted["model"] == "concise@1"
    assert adapted["choices"] != base["choices"]
    assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["m", "concise@1"]
    await server.fail("lost")
    refused = await client.post("/v1/chat/completions", json=CHAT | {"model": "concise@1"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "NotFoundError")
    assert (await client.post("/v1/unload_lora_adapter", json=asked)).status_code == 404
    assert (await server.state())["loads"] == ["concise@1"] * 3


async def test_each_fault_is_what_it_says(server: Server, client: httpx.AsyncClient) -> None:
    stream = CHAT | {"stream": True}
    await server.fail("error")
    assert (await client.post("/v1/chat/completions", json=stream)).status_code == 500
    await server.fail("busy")
    assert (await client.post("/v1/chat/completions", json=stream)).status_code == 503
    await server.fail("event")
    events = await events_of(client, "/v1/chat/completions", stream)
    assert events[-1]["error"]["code"] == 500
    assert 2 < len(events) < 8
    for asked in (CHAT, stream):
        await server.fail("cut")
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/chat/completions", json=asked)
        await server.fail("hang")
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=asked, timeout=0.3)
    await server.fail("stall")
    async with client.stream("POST", "/v1/chat/completions", json=stream, timeout=0.3) as reply:
        assert reply.status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            await reply.aread()
    await server.fail("nan", work="score")
    scoring = {"model": "m", "prompt": [1, 2], "max_tokens": 1, "prompt_logprobs": 0}
    assert (await client.post("/v1/completions", json=scoring)).status_code == 400
    assert (await client.post("/v1/completions", json=scoring)).status_code == 200


async def test_it_takes_the_time_that_it_is_told(server: Server, client: httpx.AsyncClient) -> None:
    await server.pace(delay_ms=100, chunk_ms=10)
    for asked in (CHAT, CHAT | {"stream": True}):
        started_s = time.monotonic()
        await client.post("/v1/chat/completions", json=asked)
        assert 0.17 < time.monotonic() - started_s < 5


async def test_a_rate_of_failures_is_the_same_every_time() -> None:
    outcomes = []
    for _ in range(2):
        async with (
            stand_in("--fail-rate", "0.4", "--seed", "7", "--fail-kinds", "error", "busy") as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            asked = {"messages": MESSAGES, "max_tokens": 2}
            outcomes.append([(await client.post("/v1/chat/completions", json=asked)).status_code for _ in range(30)])
    assert outcomes[0] == outcomes[1]
    assert {200, 500, 503} == set(outcomes[0])


async def events_of(client: httpx.AsyncClient, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, which `[DONE]` must end."""
    lines = (await client.post(path, json=asked)).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
