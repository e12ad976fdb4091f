"""Answers that the engine writes itself, and several of them at once: passed on, metered, cut, failed and replayed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.context import office
from gateway.engines import Delta, EngineUnavailable, GenerationRequest
from metering import Budget, Usage
from tests.gateway.kit import Site, body, until
from tests.raw_fake import RawFakeEngine

CHAT = "/v1/chat/completions"
KEY = {"Idempotency-Key": "order 7"}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.engine = RawFakeEngine(text="Né de Petra.", calls=(("find", '{"who": "Petra"}'),))
    return site


@pytest.mark.parametrize("stream", [False, True])
async def test_every_choice_is_charged_for_and_the_prompt_once(site: Site, stream: bool) -> None:
    async with site.serve() as (client, _):
        response = await client.post(CHAT, json=body(n=3, stream=stream))
    assert response.status_code == 200, response.text
    (usage,) = site.entries("usage.recorded")
    prompt, (one, two, three) = site.engine.prompts[0], ("Né de Petra.", "Né de Petra. 1", "Né de Petra. 2")
    assert usage["prompt_tokens"] == len(prompt.encode())
    assert usage["completion_tokens"] == len((one + two + three).encode())
    assert usage["finish_reason"] == "stop"
    site.check()


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_asked_reaches_the_engine_untouched(site: Site, stream: bool) -> None:
    asked = {
        "tools": TOOLS,
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
        "logit_bias": {"5": -1},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
    }
    async with site.serve() as (client, _):
        response = await client.post(CHAT, json=body(**asked, stream=stream))
    assert response.status_code == 200, response.text
    (request,) = site.engine.requests
    assert list(request.tools) == asked.pop("tools")
    assert dict(request.options) == asked
    assert (request.stream, request.model) == (stream, "plain")
    (usage,) = site.entries("usage.recorded")
    assert usage["finish_reason"] == "tool_calls"
    assert response.text.count("find") == 2
    assert response.text.count('"attribution"') == 1


async def test_a_prompt_of_token_ids_is_read_as_it_is(site: Site) -> None:
    async with site.serve() as (client, _):
        response = await client.post("/v1/completions", json={"model": "plain", "prompt": [65, 66]})
    found = response.json()
    assert found["choices"][0]["text"] == site.engine.text
    assert found["usage"]["prompt_tokens"] == 2
    assert found["attribution"]["status"] == "not_applicable"
    assert site.engine.prompts == ["AB"]


@pytest.mark.parametrize("field", [{"n": 2}, {"tools": TOOLS}, {"logprobs": True}, {"presence_penalty": 1}])
async def test_an_engine_without_the_option_is_not_asked(site: Site, field: dict[str, Any]) -> None:
    site.engine.options = frozenset()
    async with site.serve() as (client, _):
        response = await client.post(CHAT, json=body(**field))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", next(iter(field)))
    assert site.engine.requests == site.entries("request.voided") == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_gets_the_same_bytes_but_for_the_attribution(site: Site, stream: bool) -> None:
    asked = body(model="guide", n=2, tools=TOOLS, logprobs=True, stream=stream)
    if stream:
        asked["stream_options"] = {"include_usage": True}
    async with site.serve() as (client, gateway):
        first = await client.post(CHAT, json=asked, headers=KEY)
        again = await client.post(CHAT, json=asked, headers=KEY)
        await gateway.attributor.attribute(first.headers["x-request-id"])
        later = await client.post(CHAT, json=asked, headers=KEY)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == first.content
    assert later.content != first.content
    ours = b'"attribution":'
    assert later.content.partition(ours)[0] == first.content.partition(ours)[0]
    assert b'"status":"attributed"' in later.content
    assert len(site.entries("usage.recorded")) == 1


async def test_a_response_that_is_too_long_to_keep_is_not_given_again(tmp_path: Path) -> None:
    site = Site(tmp_path, "replay_bytes = 300")
    site.engine = RawFakeEngine(text="x" * 300)
    async with site.serve() as (client, _):
        codes = [(await client.post(CHAT, json=body(), headers=KEY)).status_code for _ in range(2)]
    assert codes == [200, 410]
    assert len(site.entries("usage.recorded")) == 1


class Scripted(RawFakeEngine):
    """Gives `deltas` for the second choice's failure to be staged."""

    async def generate(self, request: GenerationRequest) -> Any:
        self.requests.append(request)
        yield Delta(token_ids=(), text="", prompt_ids=(1, 2))
        yield Delta(token_ids=(65,), text="A", index=0)
        yield Delta(token_ids=(), text="", index=0, finish_reason="stop")
        yield Delta(token_ids=(66,), text="B", index=1)
        if self.down:
            raise EngineUnavailable("lost")
        if self.fail_after is not None:
            yield Delta(token_ids=(67,), text="C", index=self.fail_after)


@pytest.mark.parametrize("fault", ["raises", "ends", "another choice"])
async def test_a_failure_after_the_first_choice_is_no_clean_stop(site: Site, fault: str) -> None:
    site.engine = Scripted(fail_after=2 if fault == "another choice" else None)
    async with site.serve() as (client, _):
        site.engine.down = fault == "raises"
        streamed = await client.post(CHAT, json=body(n=2, stream=True))
        whole = await client.post(CHAT, json=body(n=2))
    for usage in site.entries("usage.recorded"):
        assert (usage["finish_reason"], usage["completion_tokens"]) == ("error", 2)
    assert "[DONE]" not in streamed.text
    assert '"code":"engine_unavailable"' in streamed.text
    assert whole.status_code == 503
    site.check()


async def test_a_failure_after_every_choice_has_ended_fails_nothing(site: Site) -> None:
    class Ending(RawFakeEngine):
        async def generate(self, request: GenerationRequest) -> Any:
            async for delta in super().generate(request):
                yield delta
            raise EngineUnavailable("lost")

    site.engine = Ending(text="Yes.")
    async with site.serve() as (client, _):
        response = await client.post(CHAT, json=body(n=2, stream=True))
    assert response.text.endswith("data: [DONE]\n\n")
    (usage,) = site.entries("usage.recorded")
    assert usage["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("reasons", "recorded"),
    [
        (("stop", "length"), "length"),
        (("tool_calls", "stop"), "tool_calls"),
        (("length", "content_filter"), "content_filter"),
    ],
)
async def test_the_gravest_reason_is_recorded(site: Site, reasons: tuple[Any, ...], recorded: str) -> None:
    class Ending(RawFakeEngine):
        async def generate(self, request: GenerationRequest) -> Any:
            self.requests.append(request)
            yield Delta(token_ids=(), text="", prompt_ids=(1,))
            for index, reason in enumerate(reasons):
                yield Delta(token_ids=(65,), text="A", index=index, finish_reason=reason)

    site.engine = Ending()
    async with site.serve() as (client, _):
        await client.post(CHAT, json=body(n=2, stream=True))
    assert [usage["finish_reason"] for usage in site.entries("usage.recorded")] == [recorded]


async def test_a_client_that_leaves_pays_for_all_choices_until_then(site: Site) -> None:
    site.engine.delay_s = 0.02
    async with site.open() as gateway:
        asked = replace(site.question(gateway), options={"n": 3}, stream=True)
        answer = await gateway.pipeline.open(site.caller, asked)
        deltas = answer.deltas()
        while not answer.answer_ids:
            await anext(deltas)
        answer.abandon()
        await until(lambda: bool(site.entries("usage.recorded")))
    (usage,) = site.entries("usage.recorded")
    assert usage["finish_reason"] == "cancelled"
    assert usage["completion_tokens"] == len(answer.answer_ids)
    assert Usage(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"]) == answer.usage
    site.check()


async def test_a_stream_that_is_cut_by_time_ends_every_choice(tmp_path: Path) -> None:
    site = Site(tmp_path, "answer_s = 0.3")
    site.engine = RawFakeEngine(text="x" * 100, delay_s=0.02)
    async with site.serve() as (client, _):
        response = await client.post(CHAT, json=body(n=2, stream=True))
    assert response.text.count('"finish_reason":"length"') == 2
    assert response.text.count('"attribution"') == 1
    assert response.text.endswith("data: [DONE]\n\n")
    (usage,) = site.entries("usage.recorded")
    assert usage["finish_reason"] == "length"


async def test_the_reservation_covers_every_choice(site: Site) -> None:
    with_credit_for = 4096 * 999 + 4096  # one choice that fills the context, and what it was told of
    poor = {"Authorization": f"Bearer {site.new_caller(credit_nano=2 * with_credit_for)}"}
    async with site.serve() as (client, _):
        one = await client.post(CHAT, json=body(max_tokens=9999), headers=poor)
        eight = await client.post(CHAT, json=body(max_tokens=9999, n=8), headers=poor)
    assert (one.status_code, eight.status_code) == (200, 402)


async def test_a_budget_of_tokens_counts_every_choice(site: Site) -> None:
    with office(site.config) as o, o.write() as transaction:
        o.books.set_budget(transaction, Budget(subject=site.key_id, tokens_per_minute=4096 + 10))
    async with site.serve() as (client, _):
        codes = [(await client.post(CHAT, json=body(max_tokens=10, n=n))).status_code for n in (3, 2)]
    assert codes == [429, 200]


async def test_many_streams_at_once_each_get_their_own(site: Site) -> None:
    site.engine.delay_s = 0.001
    async with site.serve() as (client, _):
        found = await asyncio.gather(*(client.post(CHAT, json=body(n=2, stream=True)) for _ in range(8)))
    for response in found:
        request_id = response.headers["x-request-id"]
        chunks = response.text.count("data: {")
        assert response.text.count(f'"id":"chatcmpl-{request_id}"') == chunks
        assert response.text.count(f'"id":"{request_id}"') == 1  # of the attribution
