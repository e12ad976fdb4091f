"""The official Python client against a real gateway, unchanged but for its address."""

from __future__ import annotations

import base64
import json
import struct

import httpx
import openai
import pytest

from tests.integration.conftest import Running

pytestmark = pytest.mark.model

ASK = [{"role": "user", "content": "Who cast the fog bell on North Mole?"}]


def test_chat(gateway: Running) -> None:
    answer = gateway.client().chat.completions.create(model="guide", messages=ASK, temperature=0, max_tokens=40)
    assert "Jonas Pettifer" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    attribution = answer.model_extra["attribution"]
    assert attribution["status"] == "pending"
    assert attribution["usage"]["completion_tokens"] == answer.usage.completion_tokens
    assert answer._request_id == attribution["id"]


def test_a_stream_says_what_the_whole_answer_says(gateway: Running) -> None:
    client = gateway.client()
    options = {"model": "guide", "messages": ASK, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].model_extra["attribution"]["status"] == "pending"


def test_a_stream_with_usage_ends_with_it(gateway: Running) -> None:
    chunks = list(
        gateway.client().chat.completions.create(
            model="smollm2", messages=ASK, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    *parts, last = chunks
    assert all(chunk.usage is None for chunk in parts)
    assert last.choices == []
    assert 0 < last.usage.completion_tokens <= 5


def test_the_streaming_helper(gateway: Running) -> None:
    with gateway.client().chat.completions.stream(model="guide", messages=ASK, max_tokens=40, temperature=0) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert "Jonas Pettifer" in final.choices[0].message.content


def test_a_conversation_goes_on_with_the_answer_that_was_given(gateway: Running) -> None:
    client = gateway.client()
    first = client.chat.completions.create(model="smollm2", messages=ASK, max_tokens=3, temperature=0)
    messages = [*ASK, first.choices[0].message, {"role": "user", "content": "And who rang it?"}]
    again = client.chat.completions.create(
        model="smollm2", messages=messages, max_tokens=3, temperature=0, tools=[], response_format={"type": "text"}
    )
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


def test_completions_streamed_and_whole(gateway: Running) -> None:
    client = gateway.client()
    options = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(**options)
    assert whole.object == "text_completion"
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True))
    assert streamed == whole.choices[0].text
    assert whole.usage.prompt_tokens == 5


def test_sampling_parameters_reach_the_engine(gateway: Running) -> None:
    client = gateway.client()
    options = {"model": "smollm2", "messages": ASK, "max_tokens": 12, "temperature": 1.2, "seed": 7}
    first, again = (client.chat.completions.create(**options).choices[0].message.content for _ in range(2))
    assert first == again
    stopped = client.chat.completions.create(
        model="guide", messages=ASK, max_tokens=40, temperature=0, stop=["Pettifer"]
    )
    assert "Pettifer" not in stopped.choices[0].message.content
    assert stopped.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="guide", messages=ASK, max_completion_tokens=2, temperature=0)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 2


def test_embeddings(gateway: Running) -> None:
    client = gateway.client()
    found = client.embeddings.create(model="minilm", input=["a harbour bell", "the bell of a harbour", "income tax"])
    bell, harbour, tax = (item.embedding for item in found.data)
    assert len(bell) == 384
    assert found.usage.total_tokens > 0
    assert sum(a * b for a, b in zip(bell, harbour, strict=True)) > sum(a * b for a, b in zip(bell, tax, strict=True))
    raw = gateway.http().post("/v1/embeddings", json={"model": "minilm", "input": "x", "encoding_format": "base64"})
    vector = struct.unpack("<384f", base64.b64decode(raw.json()["data"][0]["embedding"]))
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-5)
    receipt = gateway.http().get(f"/v1/receipts/{raw.headers['x-tributary-request-id']}")
    assert receipt.text.startswith("c2sp.org/tlog-proof@v1\n")


def test_models(gateway: Running) -> None:
    client = gateway.client()
    assert [model.id for model in client.models.list()] == ["guide", "telegram", "smollm2", "minilm", "auto"]
    assert client.models.retrieve("guide").model_extra["adapter"] == "grounded-qa"


def test_a_wrong_key(gateway: Running) -> None:
    client = gateway.client(key="trib-caller-wrong")
    with pytest.raises(openai.AuthenticationError, match="not known here") as error:
        client.chat.completions.create(model="guide", messages=ASK)
    assert error.value.code == "invalid_api_key"


def test_an_unknown_model(gateway: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="there are: 'guide'") as error:
        gateway.client().chat.completions.create(model="gpt-9", messages=ASK)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        gateway.client().models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError, match="no embedding model 'guide'"):
        gateway.client().embeddings.create(model="guide", input="x")


def test_a_prompt_that_is_too_long(gateway: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="shorten it") as error:
        gateway.client().chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "word " * 4000}]
        )
    assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize("role", ["operator", "contributor"])
def test_only_callers_ask(gateway: Running, role: str) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="needs a key with role caller"):
        gateway.client(role).chat.completions.create(model="guide", messages=ASK)


IMAGE = {"role": "user", "content": [{"type": "image_url"}]}
GOOD = {"model": "guide", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"{not json", None, "not JSON"),
        (b"[]", None, "dictionary"),
        ({"model": "guide"}, "messages", "required"),
        ({"model": "guide", "messages": []}, "messages", "at least 1"),
        (GOOD | {"model": 3}, "model", "string"),
        (GOOD | {"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "user"),
        (GOOD | {"max_tokens": "9"}, "max_tokens", "int"),
        (GOOD | {"temperature": 9}, "temperature", "2"),
        (GOOD | {"prompt_logprobs": 1}, "prompt_logprobs", "not supported"),
        (GOOD | {"corpora": ["town"]}, "corpora", "harbour"),
        (GOOD | {"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        (GOOD | {"stop": "x" * 201}, "stop", "at most 200"),
        (GOOD | {"messages": [IMAGE]}, "messages.0.content.0.type", "text"),
        (GOOD | {"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ],
)
def test_a_bad_body_names_what_to_change(
    gateway: Running, body: bytes | dict[str, object], param: str | None, message: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = gateway.http().post("/v1/chat/completions", content=content)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]


def test_a_body_over_the_limit_is_not_read(gateway: Running) -> None:
    answer = gateway.http().post("/v1/chat/completions", content=b" " * (1 << 20) + b"{}")
    assert answer.status_code == 413


def test_other_routes_answer_in_the_same_shape(gateway: Running) -> None:
    missing = gateway.http().get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    wrong = httpx.get(f"{gateway.url}/v1/chat/completions")
    assert (wrong.status_code, "error" in wrong.json()) == (405, True)
