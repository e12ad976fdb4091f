"""What the official Python client must be able to do on a gateway, over whatever engine: one function for each thing.

A check knows nothing of the gateway but a Target, so that the same ones run over a fake engine, the embedded one and a
real vLLM. It tests what the client makes of the answers, not what a model says.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import openai
import pydantic
import pytest

ASK = [{"role": "user", "content": "Who cast the fog bell on North Mole?"}]
MOST = 24
# What may be said is bounded, so that a small model that must say it comes to an end.
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Mole", "Ostend"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "The weather in a city.", "parameters": PARAMETERS, "strict": True}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
RESPONSE_TOOL = {"type": "function", **FUNCTION}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A gateway that listens. base_url: ends in /v1. takes: the options of its chat model's engine.

    poor_key, limited_key: of a caller without credit, and of one that may ask for nothing this minute.
    """

    base_url: str
    key: str
    chat: str
    embedding: str
    takes: frozenset[str] = frozenset()
    timeout_s: float = 300
    poor_key: str = ""
    limited_key: str = ""

    def as_json(self, *more: str) -> str:
        """For a client in another language. more: what it may count on beside the options."""
        return json.dumps({**vars(self), "takes": sorted({*self.takes, *more})})

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client, with nothing changed but its address and its key."""
        return openai.OpenAI(**{**self._options, **options})

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**{**self._options, **options})

    @property
    def _options(self) -> dict[str, Any]:
        return {"base_url": self.base_url, "api_key": self.key, "max_retries": 0, "timeout": self.timeout_s}


class Answer(pydantic.BaseModel):
    kind: Literal["person", "place"]
    sure: bool


Check = Callable[[openai.OpenAI, Target], None]
CHECKS: dict[str, tuple[Check, frozenset[str]]] = {}


def check(*needs: str) -> Callable[[Check], Check]:
    """Register a check. needs: the options without which the engine cannot pass it."""

    def register(function: Check) -> Check:
        CHECKS[function.__name__] = (function, frozenset(needs))
        return function

    return register


def applicable(target_takes: Iterable[str]) -> list[str]:
    """The names of the checks that an engine with these options must pass."""
    return [name for name, (_, needs) in CHECKS.items() if needs <= set(target_takes)]


def run(name: str, target: Target) -> None:
    with target.client() as client:
        CHECKS[name][0](client, target)


# Models and embeddings.


@check()
def models(client: openai.OpenAI, target: Target) -> None:
    names = [model.id for model in client.models.list()]
    assert {target.chat, target.embedding} <= set(names)
    found = client.models.retrieve(target.chat)
    assert (found.id, found.object) == (target.chat, "model")
    assert isinstance(found.owned_by, str)


@check()
def embeddings(client: openai.OpenAI, target: Target) -> None:
    texts = ["a harbour bell", "income tax"]
    packed = client.embeddings.create(model=target.embedding, input=texts)  # as base64, of the client's own accord
    plain = client.embeddings.create(model=target.embedding, input=texts, encoding_format="float")
    assert [item.index for item in plain.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert len(one.embedding) == len(other.embedding) > 0
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(one.embedding, other.embedding, strict=True))
    assert plain.usage.total_tokens == plain.usage.prompt_tokens > 0
    assert client.embeddings.create(model=target.embedding, input="a bell").data[0].embedding


# Chats.


@check()
def chat(client: openai.OpenAI, target: Target) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=target.chat, messages=ASK, temperature=0, max_tokens=MOST
    )
    answer = raw.parse()
    (choice,) = answer.choices
    assert (answer.object, choice.message.role) == ("chat.completion", "assistant")
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= MOST
    assert answer.model_extra is not None
    attribution = answer.model_extra["attribution"]
    assert attribution["usage"]["completion_tokens"] == answer.usage.completion_tokens
    assert answer._request_id == raw.headers["x-tributary-request-id"] == attribution["id"]
    assert answer.id.endswith(attribution["id"])


@check()
def chat_stream(client: openai.OpenAI, target: Target) -> None:
    options: dict[str, Any] = {"model": target.chat, "messages": ASK, "temperature": 0, "max_tokens": MOST}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].model_extra is not None
    assert chunks[-1].id.endswith(chunks[-1].model_extra["attribution"]["id"])


@check()
def chat_stream_with_usage(client: openai.OpenAI, target: Target) -> None:
    *parts, last = client.chat.completions.create(
        model=target.chat, messages=ASK, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    assert all(chunk.usage is None for chunk in parts)
    assert last.choices == []
    assert last.usage is not None
    assert 0 < last.usage.completion_tokens <= 5


@check()
def chat_stream_helper(client: openai.OpenAI, target: Target) -> None:
    options: dict[str, Any] = {"model": target.chat, "messages": ASK, "temperature": 0, "stop": [" "]}
    with client.chat.completions.stream(**options) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert final.choices[0].message.content == said


@check()
def chat_goes_on_with_the_answer_as_it_came(client: openai.OpenAI, target: Target) -> None:
    first = client.chat.completions.create(model=target.chat, messages=ASK, max_tokens=5, temperature=0)
    messages = [*ASK, first.choices[0].message, {"role": "user", "content": "And who rang it?"}]
    again = client.chat.completions.create(model=target.chat, messages=messages, max_tokens=5, temperature=0)
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


@check()
def chat_with_every_field_that_changes_nothing(client: openai.OpenAI, target: Target) -> None:
    answer = client.chat.completions.create(
        model=target.chat,
        messages=ASK,
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["\u0000never"],
        n=1,
        presence_penalty=0,
        frequency_penalty=0,
        logprobs=False,
        logit_bias={},
        tools=[],
        response_format={"type": "text"},
        user="ada",
        metadata={"order": "7"},
        store=False,
        service_tier="auto",
        extra_body={"attribution": {"mode": "async"}},
        extra_headers={"x-of-nobody": "1"},
    )
    assert answer.choices[0].finish_reason in {"stop", "length"}


@check()
def chat_asynchronously(_client: openai.OpenAI, target: Target) -> None:
    async def ask(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(
            model=target.chat, messages=ASK, max_tokens=MOST, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_thrice() -> list[str]:
        async with target.async_client() as client:
            return await asyncio.gather(*(ask(client) for _ in range(3)))

    assert all(asyncio.run(ask_thrice()))


@check("n")
def chat_with_several_choices(client: openai.OpenAI, target: Target) -> None:
    options: dict[str, Any] = {"model": target.chat, "messages": ASK, "max_tokens": 8, "n": 3}
    whole = client.chat.completions.create(**options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert whole.usage is not None
    assert 3 <= whole.usage.completion_tokens <= 24
    ended: dict[int, str] = {}
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            assert choice.index not in ended
            if choice.finish_reason:
                ended[choice.index] = choice.finish_reason
    assert sorted(ended) == [0, 1, 2]


@check("logprobs", "top_logprobs")
def chat_with_log_probabilities(client: openai.OpenAI, target: Target) -> None:
    options: dict[str, Any] = {"model": target.chat, "messages": ASK, "max_tokens": 8, "temperature": 0}
    options |= {"logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options)
    told = whole.choices[0].logprobs
    assert told is not None
    assert told.content
    assert all(entry.logprob <= 0 for entry in told.content)
    parts: list[str] = []
    for chunk in client.chat.completions.create(**options, stream=True):
        if chunk.choices and (more := chunk.choices[0].logprobs):
            parts += [entry.token for entry in more.content or ()]
    assert parts == [entry.token for entry in told.content]


@check("tools", "tool_choice")
def chat_calls_a_tool_and_reads_what_it_returned(client: openai.OpenAI, target: Target) -> None:
    forced = {"type": "function", "function": {"name": "weather"}}
    first = client.chat.completions.create(
        model=target.chat, messages=ASK, tools=[CHAT_TOOL], tool_choice=forced, temperature=0, max_tokens=64
    )
    message = first.choices[0].message
    assert message.tool_calls
    called = message.tool_calls[0]
    assert called.type == "function"
    assert called.function.name == "weather"
    assert json.loads(called.function.arguments).keys() == {"city"}
    messages = [*ASK, message, {"role": "tool", "tool_call_id": called.id, "content": "fog"}]
    second = client.chat.completions.create(
        model=target.chat, messages=messages, tools=[CHAT_TOOL], tool_choice="none", temperature=0, max_tokens=8
    )
    assert second.choices[0].message.content
    assert not second.choices[0].message.tool_calls


@check("tools", "tool_choice")
def chat_streams_a_call_of_a_tool(client: openai.OpenAI, target: Target) -> None:
    forced = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(
        model=target.chat, messages=ASK, tools=[CHAT_TOOL], tool_choice=forced, temperature=0, max_tokens=64
    ) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "weather"
    assert json.loads(calls[0].function.arguments).keys() == {"city"}


@check("response_format")
def chat_is_parsed_into_a_model(client: openai.OpenAI, target: Target) -> None:
    options: dict[str, Any] = {"model": target.chat, "messages": ASK, "temperature": 0, "max_tokens": 100}
    parsed = client.chat.completions.parse(**options, response_format=Answer).choices[0].message.parsed
    assert isinstance(parsed, Answer)
    with client.chat.completions.stream(**options, response_format=Answer) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed


# Completions.


@check()
def completions(client: openai.OpenAI, target: Target) -> None:
    options: dict[str, Any] = {"model": target.chat, "prompt": "The capital of France is", "max_tokens": 4}
    whole = client.completions.create(**options, temperature=0)
    assert whole.object == "text_completion"
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 4
    chunks = list(client.completions.create(**options, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


# Responses.


@check()
def response(client: openai.OpenAI, target: Target) -> None:
    said = client.responses.create(model=target.chat, input=ASK[0]["content"], temperature=0, max_output_tokens=MOST)
    assert (said.object, said.error) == ("response", None)
    assert said.status in {"completed", "incomplete"}
    assert said.output_text
    assert said.usage is not None
    assert said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens
    assert said.usage.input_tokens_details.cached_tokens == said.usage.output_tokens_details.reasoning_tokens == 0
    assert said.model_extra is not None
    assert said._request_id == said.model_extra["attribution"]["id"]


@check()
def response_stream(client: openai.OpenAI, target: Target) -> None:
    options: dict[str, Any] = {"model": target.chat, "input": ASK, "instructions": "Be brief.", "temperature": 0}
    whole = client.responses.create(**options, max_output_tokens=MOST)
    events = list(client.responses.create(**options, max_output_tokens=MOST, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    assert said == last.response.output_text == whole.output_text
    assert last.response.status == whole.status
    assert last.response.usage == whole.usage
    assert last.response.model_extra is not None
    assert last.response.id.endswith(last.response.model_extra["attribution"]["id"])


@check()
def response_stream_helper(client: openai.OpenAI, target: Target) -> None:
    with client.responses.stream(model=target.chat, input=ASK, temperature=0, max_output_tokens=MOST) as stream:
        events = list(stream)
    last = events[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    snapshots = [event.snapshot for event in events if event.type == "response.output_text.delta"]
    assert last.response.output_text == snapshots[-1]


@check()
def response_that_is_cut_says_so(client: openai.OpenAI, target: Target) -> None:
    said = client.responses.create(model=target.chat, input=ASK, temperature=0, max_output_tokens=1)
    assert said.status == "incomplete"
    assert said.incomplete_details is not None
    assert said.incomplete_details.reason == "max_output_tokens"


@check()
def response_goes_on_with_the_output_as_it_came(client: openai.OpenAI, target: Target) -> None:
    first = client.responses.create(model=target.chat, input=ASK, temperature=0, max_output_tokens=5)
    conversation = [*ASK, *first.output, {"role": "user", "content": "And who rang it?"}]
    again = client.responses.create(model=target.chat, input=conversation, temperature=0, max_output_tokens=5)
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.input_tokens > first.usage.input_tokens


@check()
def response_that_is_not_kept_cannot_be_continued(client: openai.OpenAI, target: Target) -> None:
    for refused in ({"previous_response_id": "resp_1"}, {"background": True}, {"store": True}):
        with pytest.raises(openai.BadRequestError) as error:
            client.responses.create(model=target.chat, input="Why?", **refused)
        assert (error.value.code, error.value.param) == ("unsupported_parameter", next(iter(refused)))


@check("tools", "tool_choice")
def response_calls_a_tool_and_reads_what_it_returned(client: openai.OpenAI, target: Target) -> None:
    forced = {"type": "function", "name": "weather"}
    options: dict[str, Any] = {"model": target.chat, "tools": [RESPONSE_TOOL], "temperature": 0}
    first = client.responses.create(**options, input=ASK, tool_choice=forced, max_output_tokens=64)
    called = first.output[-1]
    assert called.type == "function_call"
    assert called.name == "weather"
    assert json.loads(called.arguments).keys() == {"city"}
    with client.responses.stream(**options, input=ASK, tool_choice=forced, max_output_tokens=64) as stream:
        final = stream.get_final_response().output[-1]
    assert final.type == "function_call"
    assert (final.name, final.arguments) == ("weather", called.arguments)
    result = {"type": "function_call_output", "call_id": called.call_id, "output": "fog"}
    second = client.responses.create(
        **options, input=[*ASK, *first.output, result], tool_choice="none", max_output_tokens=8
    )
    assert second.output_text


@check("response_format")
def response_is_parsed_into_a_model(client: openai.OpenAI, target: Target) -> None:
    options: dict[str, Any] = {"model": target.chat, "temperature": 0, "max_output_tokens": 100}
    first = client.responses.parse(**options, input=ASK, text_format=Answer)
    assert isinstance(first.output_parsed, Answer)
    with client.responses.stream(**options, input=ASK, text_format=Answer) as stream:
        assert stream.get_final_response().output_parsed == first.output_parsed
    conversation = [*ASK, *first.output, {"role": "user", "content": "Are you sure?"}]
    assert client.responses.parse(**options, input=conversation, text_format=Answer).output_parsed is not None


@check("logprobs", "top_logprobs")
def response_with_log_probabilities(client: openai.OpenAI, target: Target) -> None:
    said = client.responses.create(
        model=target.chat,
        input=ASK,
        temperature=0,
        max_output_tokens=8,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    assert said.output[0].type == "message"
    part = said.output[0].content[0]
    assert part.type == "output_text"
    assert part.logprobs
    assert all(entry.logprob <= 0 for entry in part.logprobs)


# Errors.


@check()
def errors_are_the_clients_own(client: openai.OpenAI, target: Target) -> None:
    unknown: dict[str, Any] = {"model": "gpt-9", "messages": ASK}
    calls: list[tuple[Callable[[], Any], type[openai.APIStatusError], str | None, str | None]] = [
        (lambda: client.chat.completions.create(**unknown), openai.NotFoundError, "model_not_found", "model"),
        (lambda: client.responses.create(model="gpt-9", input="x"), openai.NotFoundError, "model_not_found", "model"),
        (lambda: client.models.retrieve("gpt-9"), openai.NotFoundError, "model_not_found", "model"),
        (
            lambda: client.chat.completions.create(model=target.chat, messages=ASK, temperature=9),
            openai.BadRequestError,
            None,
            "temperature",
        ),
        (
            lambda: client.responses.create(model=target.chat, input="word " * 60_000),
            openai.BadRequestError,
            "context_length_exceeded",
            None,
        ),
        (
            client.with_options(api_key="trib-caller-wrong").models.list,
            openai.AuthenticationError,
            "invalid_api_key",
            None,
        ),
    ]
    for call, kind, code, param in calls:
        with pytest.raises(kind) as error:
            call()
        assert (error.value.code, error.value.param) == (code, param), error.value
