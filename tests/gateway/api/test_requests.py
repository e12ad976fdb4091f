"""Which bodies are taken, what of them reaches the engine, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.messages import offered
from gateway.api.requests import ChatRequest, CompletionRequest, check_taken, decode, parse
from gateway.errors import BadRequestError
from tests.raw_fake import OPTIONS

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "x"}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": None}}
USED = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": [{"type": "text", "text": "4"}], "tool_call_id": "call-1"},
]
NAMED = {"type": "function", "function": {"name": "find"}}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def chat(**fields: Any) -> ChatRequest:
    return parse(CHAT | fields, ChatRequest)


# What a client sends, and the options of it that the engine is asked with.
EFFECTIVE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"n": 8}, {"n": 8}),
    ({"presence_penalty": -2, "frequency_penalty": 0.5}, {"presence_penalty": -2, "frequency_penalty": 0.5}),
    ({"logit_bias": {"0": -100, "50256": 1.5}}, {"logit_bias": {"0": -100, "50256": 1.5}}),
    ({"logprobs": True, "top_logprobs": 20}, {"logprobs": True, "top_logprobs": 20}),
    ({"logprobs": True, "top_logprobs": 0}, {"logprobs": True}),
    ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
    ({"response_format": SCHEMA}, {"response_format": SCHEMA}),
    ({"tools": [TOOL], "tool_choice": "required"}, {"tool_choice": "required"}),
    ({"tools": [TOOL], "tool_choice": "none"}, {"tool_choice": "none"}),
    ({"tools": [TOOL], "tool_choice": NAMED}, {"tool_choice": NAMED}),
    ({"tools": [TOOL], "parallel_tool_calls": False}, {"parallel_tool_calls": False}),
]
NEUTRAL: list[dict[str, Any]] = [
    {},
    {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False, "top_logprobs": 0},
    {"n": None, "logit_bias": None, "logprobs": None, "top_logprobs": None, "response_format": None, "tools": None},
    {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "parallel_tool_calls": False},
    {"tool_choice": "auto", "parallel_tool_calls": True},
    {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "prompt_cache_key": "k"},
]


@pytest.mark.parametrize(("fields", "options"), EFFECTIVE)
def test_an_option_with_an_effect_reaches_the_engine_as_it_was_written(
    fields: dict[str, Any], options: dict[str, Any]
) -> None:
    body = chat(**fields)
    assert body.options() == options
    assert list(offered(body.tools)) == fields.get("tools", [])
    check_taken(body, body.options(), OPTIONS)
    refused = "tools" if "tools" in fields else next(iter(options))
    with pytest.raises(BadRequestError, match="does not take it") as error:
        check_taken(body, body.options(), OPTIONS - {refused})
    assert (error.value.param, error.value.code) == (refused, "unsupported_parameter")
    with pytest.raises(BadRequestError):
        check_taken(body, body.options(), frozenset())


@pytest.mark.parametrize("fields", NEUTRAL)
def test_an_option_without_an_effect_is_taken_everywhere(fields: dict[str, Any]) -> None:
    body = chat(**fields)
    assert body.options() == {}
    check_taken(body, body.options(), frozenset())


def test_a_history_with_calls_reaches_an_engine_that_knows_tools_and_no_other() -> None:
    body = chat(messages=[{"role": "developer", "content": "s", "name": "n"}, *USED])
    assert [(m.role, m.content, dict(m.more)) for m in (message.turn() for message in body.messages)] == [
        ("system", "s", {"name": "n"}),
        ("assistant", "", {"tool_calls": [CALL]}),
        ("tool", "4", {"tool_call_id": "call-1"}),
    ]
    check_taken(body, {}, OPTIONS)
    with pytest.raises(BadRequestError) as error:
        check_taken(body, {}, frozenset({"n"}))
    assert error.value.param == "messages.1"


def test_a_prompt_is_text_or_token_ids() -> None:
    assert parse(TEXT | {"prompt": [1, 0, 2**31 - 1]}, CompletionRequest).prompt == [1, 0, 2**31 - 1]
    assert parse(TEXT | {"logprobs": 0}, CompletionRequest).options() == {"logprobs": 0}
    assert parse(TEXT | {"logprobs": None, "n": 2}, CompletionRequest).options() == {"n": 2}


# Fields of engines and of OpenAI that could harm another tenant or the engine, or that nothing here could honour.
HARMFUL = {
    "prompt_logprobs": 0,
    "vllm_xargs": {},
    "kv_transfer_params": {},
    "ec_transfer_params": {},
    "cache_salt": "x",
    "priority": -1,
    "request_id": "x",
    "session_id": "x",
    "use_beam_search": True,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "ignore_eos": True,
    "min_tokens": 1,
    "stop_token_ids": [1],
    "allowed_token_ids": [1],
    "bad_words": ["x"],
    "logits_processors": [],
    "structured_outputs": {"regex": "a"},
    "guided_json": {},
    "chat_template": "{{ 1 }}",
    "chat_template_kwargs": {},
    "mm_processor_kwargs": {},
    "media_io_kwargs": {},
    "add_generation_prompt": False,
    "continue_final_message": True,
    "truncate_prompt_tokens": 1,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "stream_interval": 9,
    "thinking_token_budget": 1,
    "repetition_detection": {},
    "lora_request": {},
    "lora_name": "x",
    "functions": [],
    "modalities": ["audio"],
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_field_that_could_harm_is_refused_by_name(name: str) -> None:
    for body, kind in ((CHAT, ChatRequest), (TEXT, CompletionRequest)):
        with pytest.raises(BadRequestError, match="not supported") as error:
            parse(body | {name: HARMFUL[name]}, kind)
        assert (error.value.param, error.value.code, error.value.status) == (name, "unsupported_parameter", 400)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"n": 0}, "n", "1"),
        ({"n": 9}, "n", "8"),
        ({"n": True}, "n", "integer"),
        ({"max_tokens": 2**31}, "max_tokens", "less"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "not both"),
        ({"seed": 2**63}, "seed", "less"),
        ({"presence_penalty": 2.1}, "presence_penalty", "2"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "match"),
        ({"logit_bias": {"01": 1}}, "logit_bias.01", "match"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "100"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "300"),
        ({"logprobs": 5}, "logprobs", "boolean"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"tools": [TOOL] * 129}, "tools", "128"),
        ({"tools": [TOOL, TOOL]}, "tools", "one name"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "match"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": deep(33)}}]},
            "tools.0.function.parameters",
            "32 deep",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "none"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "go"}}},
            "tool_choice",
            "not among",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "goes with"),
        ({"response_format": SCHEMA | {"type": "json_object"}}, "response_format.json_schema", "goes with"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", "json_object"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "s", "schema": {"enum": [0] * 10_000}},
                }
            },
            "response_format.json_schema.schema",
            "10000 values",
        ),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages.0.tool_call_id", "names the call"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages.0.tool_calls", "assistant"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages.0.tool_call_id", "tool's"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL] * 129}]}, "messages.0.tool_calls", "128"),
        ({"messages": [CHAT["messages"][0]] * 1025}, "messages", "1024"),
        ({"metadata": {"a": {"b": 1}}}, "metadata.a", "string"),
        ({"user": "x" * 513}, "user", "512"),
        ({"store": True}, "store", "False"),
        ({"x" * 9999: 1}, "x" * 200, "not supported"),
    ],
)
def test_a_bad_field_is_named_with_what_it_may_be(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(BadRequestError, match=message) as error:
        chat(**fields)
    assert (error.value.param, error.value.status) == (param, 400)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [2**31]}, "prompt.0"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_bad_completion_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as error:
        parse(TEXT | fields, CompletionRequest)
    assert error.value.param == param


@given(st.binary(max_size=40) | st.sampled_from([b"[" * 5000, b'{"model":"m"}' + b" " * 9, b"1e999", b'"\\ud800"']))
def test_any_bytes_are_a_body_or_a_bad_request(body: bytes) -> None:
    for kind in (ChatRequest, CompletionRequest):
        with pytest.raises(BadRequestError):
            parse(decode(body), kind)
