"""The official Python client, unchanged, on a gateway that listens."""

from __future__ import annotations

import openai
import pytest

from tests.gateway.kit import Site
from tests.raw_fake import OPTIONS
from tests.sdk import checks
from tests.sdk.checks import Target
from tests.sdk.kit import eventually


@pytest.mark.parametrize("name", checks.CHECKS)
def test_over_an_engine_that_writes_itself(writing: Target, name: str) -> None:
    checks.run(name, writing)


@pytest.mark.parametrize("name", checks.applicable(()))
def test_over_an_engine_that_gives_text(plain: Target, name: str) -> None:
    checks.run(name, plain)


def test_every_check_runs() -> None:
    assert checks.applicable(OPTIONS) == list(checks.CHECKS)


def ask(target: Target, content: str, **options: object) -> str | None:
    messages = [{"role": "user", "content": content}]
    with target.client(**options) as client:
        return client.chat.completions.create(model=target.chat, messages=messages).choices[0].message.content


def test_a_caller_without_credit(trouble: Target) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        ask(trouble, "x", api_key=trouble.poor_key)
    assert (error.value.status_code, error.value.code) == (402, "insufficient_quota")


def test_a_caller_over_its_limit(trouble: Target) -> None:
    with pytest.raises(openai.RateLimitError) as error:
        ask(trouble, "x", api_key=trouble.limited_key)
    assert 1 <= int(error.value.response.headers["retry-after"]) <= 60


def test_an_engine_that_fails_once_is_asked_again(trouble: Target) -> None:
    with pytest.raises(openai.InternalServerError) as error:
        ask(trouble, "fail once: python 1")
    assert (error.value.status_code, error.value.code) == (503, "engine_unavailable")
    assert ask(trouble, "fail once: python 2", max_retries=2)


def test_a_client_that_gives_up_in_time_and_asks_again_is_charged_once(trouble: Target, troubled_site: Site) -> None:
    """The first try times out, later ones find it still being answered, and the last gets its answer."""
    with trouble.client(max_retries=8, timeout=2) as client:
        answer = client.chat.completions.with_raw_response.create(
            model=trouble.chat,
            messages=[{"role": "user", "content": "slowly"}],
            max_tokens=16,
            extra_headers={"Idempotency-Key": "order 7"},
        )
    assert answer.headers["idempotent-replayed"] == "true"
    assert answer.parse().usage.completion_tokens == 16
    (claimed,) = troubled_site.sql("select request_id from idempotency")
    assert claimed == (answer.headers["x-tributary-request-id"],)
    assert [entry["request_id"] for entry in troubled_site.entries("usage.recorded")].count(claimed[0]) == 1


def test_an_engine_that_is_too_slow(trouble: Target) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask(trouble, "slowly", timeout=0.3)


def test_an_engine_that_breaks_off(trouble: Target) -> None:
    options = {"model": trouble.chat, "stream": True}
    with trouble.client() as client:
        with pytest.raises(openai.APIError, match="does not answer now"):
            list(client.chat.completions.create(**options, messages=[{"role": "user", "content": "break off"}]))
        *_, last = client.responses.create(**options, input="break off")
    assert last.type == "response.failed"
    assert last.response.error.code == "server_error"


def test_a_stream_that_is_let_go_stops_the_engine_and_is_charged(trouble: Target, troubled_site: Site) -> None:
    gone, charged = troubled_site.engine.abandoned, len(troubled_site.entries("usage.recorded"))
    asked = {"role": "user", "content": "slowly"}
    with trouble.client() as client:
        with client.chat.completions.create(model=trouble.chat, messages=[asked], stream=True) as stream:
            assert next(chunk for chunk in stream if chunk.choices[0].delta.content)
        with client.responses.create(model=trouble.chat, input=[asked], stream=True) as stream:
            assert next(event for event in stream if event.type == "response.output_text.delta")
    eventually(lambda: len(troubled_site.entries("usage.recorded")) == charged + 2)
    assert troubled_site.engine.abandoned >= gone + 2
