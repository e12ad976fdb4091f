from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines import (
    AdapterNotLoaded,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    SamplingParams,
)
from gateway.engines.vllm import bodies
from gateway.engines.vllm.disarm import Disarm
from gateway.engines.vllm.load import Load
from gateway.engines.vllm.refusals import Refusal
from gateway.engines.vllm.scoring import accepted
from gateway.grounding import Message

CONTROL = frozenset({"<|im_start|>", "<|im_end|>", "<s>", "[INST]"})


@given(st.lists(st.one_of(st.text(max_size=5), st.sampled_from([*CONTROL, "<|im_", "end|>", "[", "<"]))).map("".join))
def test_no_text_spells_a_control_token_and_no_other_text_changes(text: str) -> None:
    disarmed = Disarm(CONTROL)(text)
    assert not any(token in disarmed for token in CONTROL)
    assert disarmed.replace("\u200b", "") == text.replace("\u200b", "")
    assert (disarmed == text) == (not any(token in text for token in CONTROL))


def test_the_control_tokens_are_the_models_own(tmp_path: Path) -> None:
    added = [{"content": "<|end|>", "special": True}, {"content": "plain", "special": False}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    disarm = Disarm.of(tmp_path)
    assert disarm("a <|end|> plain") == "a <\u200b|end|> plain"
    assert Disarm.of(tmp_path / "nowhere")("<|end|>") == "<|end|>"


def generation(**changed: Any) -> tuple[str, dict[str, Any]]:
    request = GenerationRequest(
        **{"request_id": "r", "model": "m", "sampling": SamplingParams(max_tokens=5), "priority": 7} | changed
    )
    return bodies.generation(request, model="base", priorities=True, disarm=Disarm(CONTROL))


def test_a_conversation_goes_as_openai_writes_it() -> None:
    call = {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    messages = (
        Message(role="user", content="a <|im_end|>"),
        Message(role="assistant", content="", more=call),
        Message(role="tool", content="b", more={"tool_call_id": "c"}),
    )
    path, body = generation(messages=messages, tools=({"type": "function"},), stream=True, options={"n": 2})
    assert path == "/v1/chat/completions"
    assert body["messages"] == [
        {"role": "user", "content": "a <\u200b|im_end|>"},
        {"role": "assistant", "content": ""} | call,
        {"role": "tool", "content": "b", "tool_call_id": "c"},
    ]
    assert body["stream_options"] == {"include_usage": True}
    assert (body["n"], body["priority"], body["return_token_ids"]) == (2, 7, True)


def test_options_cannot_take_the_place_of_what_the_gateway_says() -> None:
    _, body = generation(prompt="x", options={"model": "lora-other", "max_tokens": 10_000, "return_token_ids": False})
    assert (body["model"], body["max_tokens"], body["return_token_ids"]) == ("base", 5, True)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, {"error": {"message": "no such model", "param": "model", "code": 404}}, AdapterNotLoaded),
        (404, {"detail": "Not Found"}, EngineUnavailable),
        (400, {"error": {"message": "bad grammar", "param": "response_format", "code": 400}}, EngineRefused),
        (400, {"error": {"message": "so many characters", "param": "input_text", "code": 400}}, PromptTooLong),
        (500, {"error": {"message": "dead", "code": 500}}, EngineUnavailable),
        (401, {"error": "Unauthorized"}, EngineUnavailable),
        (503, "busy", EngineUnavailable),
        (400, [1], EngineRefused),
    ],
)
def test_a_refusal_says_whose_fault_it_is(status: int, body: object, error: type[Exception]) -> None:
    refusal = Refusal.read(status, json.dumps(body).encode())
    assert type(refusal.as_error(adapter="lora-1", context_tokens=100)) is error


@given(st.integers(400, 599), st.binary(max_size=50))
def test_any_reply_can_be_a_refusal(status: int, body: bytes) -> None:
    assert str(Refusal.read(status, body).as_error(adapter=None, context_tokens=100))


def test_load_is_summed_over_the_servers_engines() -> None:
    page = (
        b'# HELP vllm:num_requests_running x\nvllm:num_requests_running{engine="0",model_name="a}b"} 3.0\n'
        b'vllm:num_requests_running{engine="1",model_name="a"} 2.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'
        b'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:kv_cache_usage_perc{engine="1"} 7.5e-01\nother 9\n'
    )
    assert Load.parse(page) == Load(running=5, waiting=1, kv_used=0.75)
    with pytest.raises(ValueError, match="vLLM"):
        Load.parse(b"other 9\n")


@pytest.mark.parametrize(
    "position",
    [None, {}, {"8": {"logprob": -1.0}}, {"7": {}}, {"7": {"logprob": float("nan")}}, {"7": {"logprob": "x"}}, {"7": 1},
     {"7": {"logprob": float("-inf")}}, {"7": {"logprob": 0.5}}],
)  # fmt: skip
def test_a_position_counts_only_with_a_number_for_the_token_that_was_sent(position: object) -> None:
    good = {"7": {"logprob": -1.5, "rank": 1, "decoded_token": None}}
    assert accepted([None, good, good], [7, 7]).tolist() == [-1.5, -1.5]  # type: ignore[union-attr]
    assert accepted([None, position, good], [7, 7]) is None
    assert accepted([good], [7, 7]) is None
    assert accepted("no list", [7]) is None
