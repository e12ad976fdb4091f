"""/v1/responses: one answer, whatever form it is asked for in, and whoever writes it."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.api.responses_requests import REFUSED
from tests.gateway.kit import Site, until
from tests.raw_fake import RawFakeEngine
from tests.sdk.obedient import ObedientEngine

ROUTE = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def writing(site: Site) -> Site:
    """A site whose engine writes in OpenAI's form itself."""
    site.engine = ObedientEngine(text=site.engine.text)
    return site


def asked(**options: Any) -> dict[str, Any]:
    return {"model": "plain", "input": "Who cast the bell?", "temperature": 0} | options


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose names and numbers are right."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def rebuilt(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output that the deltas amount to, checked against every event that tells of the whole."""
    items: list[dict[str, Any]] = []
    for event in found:
        if event["type"] == "response.output_item.added":
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items.append(dict(event["item"], text="", done=False))
        elif event["type"] == "response.output_text.delta":
            items[event["output_index"]]["text"] += event["delta"]
        elif event["type"] == "response.function_call_arguments.delta":
            items[event["output_index"]]["arguments"] += event["delta"]
        elif event["type"] == "response.output_text.done":
            assert event["text"] == items[event["output_index"]]["text"]
        elif event["type"] == "response.function_call_arguments.done":
            assert event["arguments"] == items[event["output_index"]]["arguments"]
        elif event["type"] == "response.output_item.done":
            item = items[event["output_index"]]
            assert not item["done"]
            item |= {"done": True, "whole": event["item"]}
        if "item_id" in event:
            assert event["item_id"] == items[event["output_index"]]["id"]
    assert all(item["done"] for item in items)
    return [item["whole"] for item in items]


def lasting(response: dict[str, Any]) -> dict[str, Any]:
    """What of a response is the same whenever and however it is asked for."""
    own = ("id", "created_at", "attribution")
    output = [{k: v for k, v in item.items() if k != "id"} for item in response["output"]]
    return {k: v for k, v in response.items() if k not in own} | {"output": output}


async def test_a_response(site: Site) -> None:
    async with site.serve() as (client, _):
        response = await client.post(ROUTE, json=asked(metadata={"order": "7"}, instructions="Be brief."))
        said = response.json()
    assert response.status_code == 200, said
    request_id = response.headers["x-tributary-request-id"]
    assert (said["object"], said["status"], said["id"]) == ("response", "completed", f"resp_{request_id}")
    (message,) = said["output"]
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert [part["text"] for part in message["content"]] == [site.engine.text]
    usage = said["usage"]
    assert usage["input_tokens"] == len(site.engine.prompts[0])
    assert usage["output_tokens"] == len(site.engine.text)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert said["attribution"]["id"] == request_id
    assert (said["metadata"], said["store"], said["error"]) == ({"order": "7"}, False, None)
    assert site.engine.prompts == ["system: Be brief.\nuser: Who cast the bell?\nassistant: "]
    assert [entry["request_id"] for entry in site.entries("usage.recorded")] == [request_id]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("text", {}),
        ("text", {"max_output_tokens": 7}),
        ("raw", {}),
        ("raw", {"max_output_tokens": 7}),
        ("raw", {"tools": [WEATHER]}),
        ("raw", {"tools": [WEATHER, CLOCK], "tool_choice": "required"}),
    ],
)
async def test_a_stream_amounts_to_what_the_whole_says(site: Site, kind: str, options: dict[str, Any]) -> None:
    if kind == "raw":
        site.engine = ObedientEngine(text=site.engine.text)
    async with site.serve() as (client, _):
        whole = (await client.post(ROUTE, json=asked(**options))).json()
        found = events(await client.post(ROUTE, json=asked(stream=True, **options)))
    first, second, *_, last = found
    assert [event["type"] for event in (first, second)] == ["response.created", "response.in_progress"]
    assert (first["response"]["status"], first["response"]["output"]) == ("in_progress", [])
    assert last["type"] == f"response.{whole['status']}"
    assert lasting(last["response"]) == lasting(whole)
    assert rebuilt(found) == last["response"]["output"]
    assert len({event["response"]["id"] for event in (first, second, last)}) == 1
    assert last["response"]["attribution"]["status"] in {"pending", "not_applicable"}
    assert len(site.entries("usage.recorded")) == 2


async def test_the_last_events_are_told_only_once_the_usage_is_committed(site: Site) -> None:
    async with (
        site.serve() as (client, _),
        client.stream("POST", ROUTE, json=asked(stream=True)) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("event: ") and (line.endswith(".done") or line == "event: response.completed"):
                assert len(site.entries("usage.recorded")) == 1, line


async def test_a_cut_answer_is_incomplete_and_says_why(site: Site) -> None:
    async with site.serve() as (client, _):
        said = (await client.post(ROUTE, json=asked(max_output_tokens=3))).json()
    assert (said["status"], said["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert said["output"][0]["status"] == "incomplete"
    assert said["usage"]["output_tokens"] == 3
    assert said["max_output_tokens"] == 3


async def test_an_answer_of_nothing_is_an_empty_message(site: Site) -> None:
    site.engine.text = ""
    async with site.serve() as (client, _):
        whole = (await client.post(ROUTE, json=asked())).json()
        found = events(await client.post(ROUTE, json=asked(stream=True)))
    assert whole["output"][0]["content"][0]["text"] == ""
    assert lasting(found[-1]["response"]) == lasting(whole)
    assert rebuilt(found) == found[-1]["response"]["output"]


async def test_every_form_of_the_conversation_reaches_the_engine(site: Site) -> None:
    answer = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Petra.", "annotations": [], "logprobs": []}],
    }
    parts = [{"type": "input_text", "text": "And "}, {"type": "input_text", "text": "when?"}]
    conversation = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        answer,
        {"type": "message", "role": "user", "content": parts},
    ]
    async with site.serve() as (client, _):
        assert (await client.post(ROUTE, json=asked(input=conversation))).status_code == 200
    assert site.engine.prompts == ["system: Be brief.\nuser: Who?\nassistant: Petra.\nuser: And when?\nassistant: "]


async def test_grounding_attribution_and_corpora_work_as_for_a_chat(site: Site) -> None:
    async with site.serve() as (client, _):
        inline = asked(model="guide", attribution={"mode": "inline"})
        grounded = (await client.post(ROUTE, json=inline)).json()
        alone = (await client.post(ROUTE, json=asked(model="guide", corpora=[]))).json()
        unknown = await client.post(ROUTE, json=asked(model="guide", corpora=["sea"]))
    assert grounded["attribution"]["status"] == "attributed"
    assert "1803" in site.engine.prompts[0]
    assert "1803" not in site.engine.prompts[1]
    assert alone["status"] == "completed"
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "corpora")


async def test_tools_there_and_back(writing: Site) -> None:
    async with writing.serve() as (client, _):
        first = (await client.post(ROUTE, json=asked(tools=[WEATHER, CLOCK]))).json()
        (call,) = first["output"]
        conversation = [
            {"role": "user", "content": "How is the weather?"},
            call,
            {"type": "function_call_output", "call_id": call["call_id"], "output": "fog"},
        ]
        second = (await client.post(ROUTE, json=asked(input=conversation, tools=[WEATHER]))).json()
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "weather", {"city": "Mole"})
    assert first["status"] == "completed"
    assert second["output"][0]["content"][0]["text"] == writing.engine.text
    request = writing.engine.requests[-1]
    assert request.tools[0]["function"] == {k: v for k, v in WEATHER.items() if k != "type"}
    _, calling, result = request.messages
    assert (calling.role, calling.content) == ("assistant", "")
    assert calling.more["tool_calls"][0]["function"] == {"name": "weather", "arguments": call["arguments"]}
    assert (result.role, result.content, result.more) == ("tool", "fog", {"tool_call_id": call["call_id"]})


async def test_calls_that_were_made_at_once_are_one_turn(writing: Site) -> None:
    calls = [
        {"type": "function_call", "call_id": name, "name": name, "arguments": "{}"} for name in ("weather", "clock")
    ]
    outputs = [{"type": "function_call_output", "call_id": name, "output": name} for name in ("weather", "clock")]
    spoken = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "I look."}]
    async with writing.serve() as (client, _):
        body = asked(input=[*spoken, *calls, *outputs], tools=[WEATHER, CLOCK])
        assert (await client.post(ROUTE, json=body)).status_code == 200
    roles = [(message.role, message.content) for message in writing.engine.requests[-1].messages]
    assert roles == [("user", "Well?"), ("assistant", "I look."), ("tool", "weather"), ("tool", "clock")]
    assert [call["id"] for call in writing.engine.requests[-1].messages[1].more["tool_calls"]] == ["weather", "clock"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tools": [WEATHER], "tool_choice": "none"}, {"tool_choice": "none"}),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}, "parallel_tool_calls": False},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": False},
        ),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        (
            {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
            {"logprobs": True, "top_logprobs": 2},
        ),
        ({"text": {"format": {"type": "text"}}, "tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, {}),
    ],
)
async def test_options_reach_the_engine_by_a_chats_names(
    writing: Site, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    async with writing.serve() as (client, _):
        response = await client.post(ROUTE, json=asked(**options))
    assert response.status_code == 200, response.text
    assert dict(writing.engine.requests[-1].options) == expected
    said = response.json()
    if "text" in options:
        assert said["text"] == options["text"]
    if isinstance(options.get("tool_choice"), dict):
        assert said["tool_choice"] == options["tool_choice"]


async def test_log_probabilities_come_with_the_text(writing: Site) -> None:
    options = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    async with writing.serve() as (client, _):
        said = (await client.post(ROUTE, json=asked(**options))).json()
        found = events(await client.post(ROUTE, json=asked(stream=True, **options)))
    (part,) = said["output"][0]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert all(entry["logprob"] == -1.0 for entry in part["logprobs"])
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert ["".join(entry["token"] for entry in event["logprobs"]) for event in deltas] == [
        event["delta"] for event in deltas
    ]


@pytest.mark.parametrize("kind", ["text", "raw"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_gets_the_first_response(site: Site, kind: str, stream: bool) -> None:
    options: dict[str, Any] = {"stream": stream}
    if kind == "raw":
        site.engine = ObedientEngine(text=site.engine.text)
        options["tools"] = [WEATHER]
    headers = {"Idempotency-Key": "order 7"}
    async with site.serve() as (client, _):
        first, again = [await client.post(ROUTE, json=asked(**options), headers=headers) for _ in range(2)]
        other = await client.post(ROUTE, json=asked(input="Why?"), headers=headers)
    assert (again.headers["idempotent-replayed"], site.engine.begun) == ("true", 1)
    assert first.headers["x-request-id"] == again.headers["x-request-id"]
    one, two = ((events(r)[-1]["response"] if stream else r.json()) for r in (first, again))
    assert one == two | {"attribution": one["attribution"]}
    assert other.status_code == 409


@pytest.mark.parametrize("kind", ["text", "raw"])
async def test_an_engine_that_fails_in_the_middle(site: Site, kind: str) -> None:
    if kind == "raw":
        site.engine = ObedientEngine(text=site.engine.text)
    site.engine.fail_after = 4
    headers = {"Idempotency-Key": "order 7"}
    async with site.serve() as (client, _):
        found = events(await client.post(ROUTE, json=asked(stream=True), headers=headers))
        whole = await client.post(ROUTE, json=asked())
        again = events(await client.post(ROUTE, json=asked(stream=True), headers=headers))
    for last in (found[-1], again[-1]):
        failed = last["response"]
        assert (last["type"], failed["status"]) == ("response.failed", "failed")
        assert failed["error"]["code"] == "server_error"
        text = failed["output"][0]["content"][0]["text"]
        assert site.engine.text.startswith(text)
        assert 0 < failed["usage"]["output_tokens"] == len(text)
    assert "does not answer now" in found[-1]["response"]["error"]["message"]
    assert whole.status_code == 503
    assert len(site.entries("usage.recorded")) == 2


async def test_an_engine_that_fails_at_once_charges_nothing(site: Site) -> None:
    site.engine.fail_after = 0
    async with site.serve() as (client, _):
        answers = [await client.post(ROUTE, json=asked(stream=stream)) for stream in (False, True)]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert site.entries("usage.recorded") == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"{",
        b"[]",
        b'{"choices": [{"delta": {"content": 7}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]}',
    ],
)
async def test_what_cannot_be_read_is_the_engines_failure(site: Site, garbage: bytes) -> None:
    site.engine = Garbling(text="x" * 12, garbage=garbage)
    async with site.serve() as (client, _):
        found = events(await client.post(ROUTE, json=asked(stream=True)))
        whole = await client.post(ROUTE, json=asked())
        await until(lambda: len(site.entries("usage.recorded")) == 2)
    assert found[-1]["type"] == "response.failed"
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "engine_unavailable")
    site.check()


class Garbling(RawFakeEngine):
    """Writes something else instead of its third delta."""

    def __init__(self, *, text: str, garbage: bytes) -> None:
        super().__init__(text=text)
        self.garbage = garbage

    async def generate(self, request: Any) -> Any:
        async with aclosing(super().generate(request)) as deltas:
            number = 0
            async for delta in deltas:
                number += 1
                yield replace(delta, raw=b"data: " + self.garbage + b"\n\n") if number == 3 else delta


async def test_a_client_that_leaves_pays_for_what_was_generated(site: Site) -> None:
    site.engine.delay_s = 0.02
    async with site.serve() as (client, _):
        async with client.stream("POST", ROUTE, json=asked(stream=True)) as response:
            async for line in response.aiter_lines():
                if "output_text.delta" in line:
                    break
        await until(lambda: len(site.entries("usage.recorded")) == 1)
    site.check()


IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}
OUTPUT = {"type": "function_call_output", "call_id": "call_9", "output": "x"}
UNSUPPORTED = "unsupported_parameter"


@pytest.mark.parametrize(
    ("options", "param", "code", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", UNSUPPORTED, "send the whole conversation"),
        ({"conversation": "conv_1"}, "conversation", UNSUPPORTED, "send the whole conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation", UNSUPPORTED, "send the whole conversation"),
        ({"background": True}, "background", UNSUPPORTED, "leave the request open"),
        ({"store": True}, "store", UNSUPPORTED, "no response is kept"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", UNSUPPORTED, "no prompt is kept"),
        ({"reasoning": {"effort": "high"}}, "reasoning", UNSUPPORTED, "reason"),
        ({"moderation": {"model": "x"}}, "moderation", UNSUPPORTED, "moderated"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", UNSUPPORTED, "not supported here"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", None, "function"),
        ({"tools": [WEATHER]}, "tools", UNSUPPORTED, "engine of model 'plain'"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", UNSUPPORTED, "engine of model 'plain'"),
        ({"include": ["message.output_text.logprobs"]}, "include", UNSUPPORTED, "engine of model 'plain'"),
        ({"include": ["thoughts"]}, "include.0", None, "message.output_text.logprobs"),
        ({"top_logprobs": 3}, "top_logprobs", None, "needs include"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", None, "json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", None, "required"),
        ({"input": [IMAGE]}, "input.0.content.0.type", None, "input_text"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", None, "function_call_output"),
        ({"input": [OUTPUT]}, "input.0.call_id", None, "no function_call"),
        ({"input": [{"role": "user"}]}, "input.0.content", None, "required"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input.0.role", None, "developer"),
        ({"input": []}, "input", None, "at least 1"),
        ({"input": None}, "input", None, "string"),
        ({"tool_choice": "required"}, "tool_choice", None, "tools to choose"),
        ({"tool_choice": {"type": "function", "name": "x"}, "tools": [WEATHER]}, "tool_choice", None, "not among"),
        ({"tools": [WEATHER, WEATHER]}, "tools", None, "one name"),
        ({"max_output_tokens": 0}, "max_output_tokens", None, "greater"),
        ({"temperature": 3}, "temperature", None, "2"),
        ({"truncation": "auto"}, "truncation", None, "disabled"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", None, "needs stream"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", None, "at most 16"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    site: Site, options: dict[str, Any], param: str | None, code: str | None, message: str
) -> None:
    async with site.serve() as (client, _):
        refused = await client.post(ROUTE, json=asked(**options))
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, param, code), error
    assert message in error["message"]
    assert site.engine.begun == 0


@pytest.mark.parametrize(
    "options",
    [
        {"store": False, "background": False, "previous_response_id": None, "conversation": None, "prompt": None},
        {"reasoning": {}, "include": ["reasoning.encrypted_content"], "truncation": "disabled"},
        {"reasoning": {"effort": None, "summary": None}, "context_management": [], "moderation": None},
        {"user": "ada", "service_tier": "auto", "prompt_cache_key": "x", "safety_identifier": "y"},
        {"stream_options": None, "metadata": None, "tools": None, "tool_choice": "auto", "text": {}},
        {"top_logprobs": 0, "parallel_tool_calls": True, "max_tool_calls": 3, "include": []},
    ],
)
async def test_what_asks_for_nothing_is_taken(site: Site, options: dict[str, Any]) -> None:
    async with site.serve() as (client, _):
        response = await client.post(ROUTE, json=asked(**options))
    assert response.status_code == 200, response.text


def test_the_page_about_it_says_what_is_refused() -> None:
    page = Path("docs/responses.md").read_text()
    fields = {"store": "store: true", "background": "background: true"}
    for name in REFUSED:
        assert f"`{fields.get(name, name)}`" in page, name
