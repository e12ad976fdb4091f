"""What a name in a request leads to: models, aliases by weight, and `auto` by likeness."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.names import __main__ as benchmark
from gateway.catalogue import Catalogue, ServedModel, UnknownModelError
from gateway.identifiers import new_id
from gateway.routing.names import Alias, Auto, Names, Router, compared
from gateway.settings import ModelSection, Settings, load
from metering import Price, SplitPolicy
from retrieval import MiniLM
from tests.gateway.kit import CONFIG, Site, body

CHAT = "/v1/chat/completions"
ROUTED = (
    CONFIG.replace('name = "plain"\n', 'name = "plain"\nauto = true\nexamples = ["cast the bell"]\n').replace(
        'name = "guide"\n', 'name = "guide"\nauto = true\ndescription = "harbour tides and ships"\n'
    )
    + """
[[models]]
name = "dear"
base = "fake-base"
price = { prompt = "0.002", completion = "2.000" }

[[aliases]]
name = "stable"
description = "What most should ask for"
targets = [{ model = "plain", weight = 3 }, { model = "dear", weight = 1 }]

[[aliases]]
name = "embedder"
targets = [{ model = "vectors" }]

[routing]
auto_fallback = "dear"
auto_threshold = 0.3
"""
)
MODELS = ("plain", "guide", "dear")
REQUEST_IDS = [f"req_{number:026}" for number in range(10_000)]


def model(name: str, kind: str = "chat") -> ServedModel:
    return ServedModel(
        name=name,
        kind=kind,
        base="fake-base",
        adapter=None,
        corpora=(),
        licences=None,
        top_k=4,
        instruction="",
        description="",
        price=Price(prompt_nano_per_token=1, completion_nano_per_token=1),
        price_index=0,
        policy=SplitPolicy(name="p", version=1, fixed_ppm={}, residual="residual", developer_ppm=600_000),
        policy_index=0,
    )


def alias(weights: list[int], name: str = "stable") -> Alias:
    targets = tuple((model(f"m{position}"), weight) for position, weight in enumerate(weights))
    return Alias(name=name, description="", targets=targets)


weights = st.lists(st.integers(0, 1_000_000), min_size=1, max_size=8).filter(any)


# Aliases.


@given(weights, st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=26, max_size=26))
def test_anyone_can_find_the_target_of_a_request_again(weights: list[int], request_id: str) -> None:
    point = int(hashlib.sha256(f"stable:{request_id}".encode()).hexdigest(), 16) % sum(weights)
    parts = np.cumsum(weights).tolist()
    expected = next(position for position, end in enumerate(parts) if point < end)
    assert alias(weights).target(request_id).name == f"m{expected}"
    assert weights[expected] > 0


@pytest.mark.parametrize("weights", [[1], [1, 1], [95, 5], [3, 0, 1], [1, 2, 3, 4], [999_999, 1]])
def test_targets_get_requests_in_proportion_to_their_weights(weights: list[int]) -> None:
    chosen = Counter(alias(weights).target(request_id).name for request_id in REQUEST_IDS)
    for position, weight in enumerate(weights):
        part = weight / sum(weights)
        deviation = (len(REQUEST_IDS) * part * (1 - part)) ** 0.5
        assert abs(chosen[f"m{position}"] - len(REQUEST_IDS) * part) <= 4 * deviation


def test_two_aliases_split_the_same_requests_independently() -> None:
    first, second = alias([1, 1], "one"), alias([1, 1], "two")
    both = Counter((first.target(r).name, second.target(r).name) for r in REQUEST_IDS)
    deviation = (len(REQUEST_IDS) * 0.25 * 0.75) ** 0.5
    assert all(abs(count - len(REQUEST_IDS) / 4) <= 4 * deviation for count in both.values())
    assert len(both) == 4


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(1, 1000))
def test_a_new_last_target_takes_requests_and_moves_none_between_the_others_when_the_sum_stays(
    weights: list[int], taken: int
) -> None:
    """A canary whose weight is taken from the target before it changes nobody else's model."""
    taken = min(taken, weights[-1])
    before, after = alias(weights), alias([*weights[:-1], weights[-1] - taken, taken])
    for request_id in REQUEST_IDS[:50]:
        was, now = before.target(request_id).name, after.target(request_id).name
        assert now == was or (was == f"m{len(weights) - 1}" and now == f"m{len(weights)}")


# `auto`, by the vectors alone.


def auto(vectors: list[list[float]], threshold: float) -> Auto:
    return Auto(
        candidates=tuple(model(f"m{position}") for position in range(len(vectors))),
        vectors=np.array(vectors, dtype=np.float32).reshape(len(vectors), 2),
        threshold=threshold,
        fallback=model("fallback"),
    )


def asked(x: float, y: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([x, y], dtype=np.float32)


def test_auto_takes_the_most_alike_at_or_above_the_threshold() -> None:
    choices = auto([[1, 0], [0, 1]], 0.6)
    assert choices.choose(asked(0.8, 0.6))[0].name == "m0"
    assert choices.choose(asked(0.6, 0.8))[0].name == "m1"
    taken, reason, similarity = auto([[0.5, 0]], 0.5).choose(asked(1, 0))
    assert (taken.name, reason, similarity) == ("m0", "auto", 0.5)


def test_auto_falls_back_below_the_threshold_and_where_there_is_nothing_to_compare() -> None:
    taken, reason, similarity = auto([[0.4, 0]], 0.5).choose(asked(1, 0))
    assert (taken.name, reason, similarity) == ("fallback", "auto_fallback", pytest.approx(0.4))
    assert auto([[1, 0]], 0.5).choose(None)[1:] == ("auto_fallback", None)
    assert auto([], -1).choose(asked(1, 0))[1:] == ("auto_fallback", None)


def test_of_equals_auto_takes_the_first() -> None:
    assert auto([[1, 0], [1, 0]], 0).choose(asked(1, 0))[0].name == "m0"


# Over HTTP.


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.config.write_text(ROUTED)
    made.settings = load(made.config)
    return made


async def ask(client: httpx.AsyncClient, name: str, **options: Any) -> httpx.Response:
    answer = await client.post(CHAT, json=body(name, **options))
    assert answer.status_code == 200, answer.text
    return answer


async def test_a_model_that_is_named_answers_and_nothing_is_said_of_routing(site: Site) -> None:
    async with site.serve() as (client, gateway):
        answer = await ask(client, "plain")
        decisions = gateway.metrics.render().decode()
    assert answer.headers["x-tributary-model"] == answer.json()["model"] == "plain"
    assert "routing" not in answer.json()["attribution"]
    assert 'tributary_routing_decisions_total{gen_ai_request_model="plain",reason="named"} 1.0' in decisions


async def test_an_alias_answers_as_its_target_at_its_targets_price(site: Site) -> None:
    async with site.serve() as (client, gateway):
        targets = gateway.router.names.aliases["stable"]
        answers = [await ask(client, "stable") for _ in range(8)]
    for answer in answers:
        told = answer.json()["attribution"]
        taken = targets.target(told["id"]).name
        assert told["served_model"] == answer.json()["model"] == answer.headers["x-tributary-model"] == taken
        assert told["routing"] == {"requested": "stable", "served_model": taken, "reason": "alias"}
        nano = {"plain": (1, 1000), "dear": (2, 2000)}[taken]
        usage = answer.json()["usage"]
        assert int(told["charge_nano"]) == usage["prompt_tokens"] * nano[0] + usage["completion_tokens"] * nano[1]
    recorded = [entry["served_model"] for entry in site.entries("usage.recorded")]
    assert recorded == [answer.json()["model"] for answer in answers]
    site.check()


async def test_a_request_that_only_a_cheap_target_would_admit_is_admitted_by_its_target(site: Site) -> None:
    """What is reserved is the target's maximum, not the alias's or another target's."""
    most_plain, most_dear = 4096 + 4096 * 1000, 2 * (4096 + 4096 * 1000)
    secret = site.new_caller(credit_nano=(most_plain + most_dear) // 2)
    async with site.serve() as (client, gateway):
        targets = gateway.router.names.aliases["stable"]
        for _ in range(12):
            answer = await client.post(
                CHAT, json=body("stable", max_tokens=4096), headers={"Authorization": f"Bearer {secret}"}
            )
            taken = targets.target(answer.headers["x-request-id"]).name
            assert answer.status_code == (200 if taken == "plain" else 402)


async def test_auto_answers_with_the_model_that_is_like_the_question(site: Site) -> None:
    site.engine.score_as = lambda _prompt, answer: [-1.0] * len(answer)
    async with site.serve() as (client, gateway):
        answer = await ask(client, "auto", attribution={"mode": "inline"})
        decisions = gateway.metrics.render().decode()
        kept = await client.get(answer.json()["attribution"]["url"])
    routing = answer.json()["attribution"]["routing"]
    assert answer.json()["attribution"]["status"] != "pending"
    assert kept.json()["routing"] == routing
    assert {key: routing[key] for key in ("requested", "served_model", "reason")} == {
        "requested": "auto",
        "served_model": "plain",
        "reason": "auto",
    }
    assert 0.3 <= routing["similarity"] <= 1
    assert 'decisions_total{gen_ai_request_model="plain",reason="auto"} 1.0' in decisions


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user", "content": "zzz qqq"}], [{"role": "user", "content": ""}], [{"role": "system", "content": "x"}]],
)
async def test_auto_falls_back_where_nothing_is_like_the_question(site: Site, messages: list[dict[str, str]]) -> None:
    async with site.serve() as (client, _):
        answer = await ask(client, "auto", messages=messages)
    routing = answer.json()["attribution"]["routing"]
    assert (routing["served_model"], routing["reason"], answer.json()["model"]) == ("dear", "auto_fallback", "dear")
    assert ("similarity" in routing) == bool(messages[-1]["role"] == "user" and messages[-1]["content"])


async def test_auto_reads_the_last_user_message_and_a_raw_prompt(site: Site) -> None:
    turns = ["harbour tides and ships", "cast the bell"]
    messages = [{"role": "user", "content": turn} for turn in turns]
    messages.insert(1, {"role": "assistant", "content": "Ships."})
    async with site.serve() as (client, _):
        last = await ask(client, "auto", messages=messages)
        first = await ask(client, "auto", messages=messages[:2])
        raw = await client.post("/v1/completions", json={"model": "auto", "prompt": turns[0]})
    assert [answer.headers["x-tributary-model"] for answer in (last, first, raw)] == ["plain", "guide", "guide"]


async def test_a_stream_says_which_model_answers(site: Site) -> None:
    async with site.serve() as (client, _):
        answer = await ask(client, "stable", stream=True)
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    taken = answer.headers["x-tributary-model"]
    assert {chunk["model"] for chunk in chunks} == {taken}
    assert chunks[-1]["attribution"]["routing"] == {"requested": "stable", "served_model": taken, "reason": "alias"}


async def test_a_repeat_under_a_key_is_answered_by_the_model_that_answered_first(site: Site) -> None:
    async with site.serve() as (client, _):
        for number in range(6):
            key = {"Idempotency-Key": f"order {number}"}
            first, again = [await client.post(CHAT, json=body("stable"), headers=key) for _ in range(2)]
            assert again.headers["idempotent-replayed"] == "true"
            for header in ("x-tributary-model", "x-request-id"):
                assert first.headers[header] == again.headers[header]
            assert first.json()["attribution"]["routing"] == again.json()["attribution"]["routing"]
        asked = {"model": "embedder", "input": "a bell"}
        first, again = [await client.post("/v1/embeddings", json=asked, headers=key | {"Idempotency-Key": "e"})
                        for _ in range(2)]  # fmt: skip
    assert first.json() == again.json()
    assert first.json()["model"] == again.headers["x-tributary-model"] == "vectors"


async def test_the_names_are_listed_with_what_they_lead_to(site: Site) -> None:
    async with site.serve() as (client, _):
        listed = {each["id"]: each for each in (await client.get("/v1/models")).json()["data"]}
        one = [(await client.get(f"/v1/models/{name}")).json() for name in listed]
    assert list(listed) == ["plain", "guide", "vectors", "dear", "stable", "embedder", "auto"]
    assert one == list(listed.values())
    assert listed["stable"]["targets"] == [{"model": "plain", "weight": 3}, {"model": "dear", "weight": 1}]
    assert (listed["embedder"]["kind"], listed["auto"]["kind"]) == ("embedding", "chat")
    assert [target["model"] for target in listed["auto"]["targets"]] == ["plain", "guide", "dear"]


@pytest.mark.parametrize(
    ("route", "name", "known"),
    [
        (CHAT, "nobody", "'plain', 'guide', 'dear', 'stable', 'auto'"),
        (CHAT, "embedder", "'plain', 'guide', 'dear', 'stable', 'auto'"),
        ("/v1/embeddings", "stable", "'vectors', 'embedder'"),
        ("/v1/embeddings", "auto", "'vectors', 'embedder'"),
    ],
)
async def test_a_name_of_nothing_of_the_kind_is_refused_with_those_that_there_are(
    site: Site, route: str, name: str, known: str
) -> None:
    asked = body(name) if route == CHAT else {"model": name, "input": "x"}
    async with site.serve() as (client, _):
        answer = await client.post(route, json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert answer.json()["error"]["message"].endswith(f"there are: {known}")


async def test_without_a_fallback_there_is_no_auto(tmp_path: Path) -> None:
    async with Site(tmp_path).serve() as (client, _):
        listed = [each["id"] for each in (await client.get("/v1/models")).json()["data"]]
        refused = await client.post(CHAT, json=body("auto"))
    assert listed == ["plain", "guide", "vectors"]
    assert refused.status_code == 404


async def test_the_embedder_works_only_for_auto_and_once_for_a_question(site: Site) -> None:
    site.engine.context_tokens = 32_768
    async with site.serve() as (client, _):
        before = list(site.embedder.texts)
        await ask(client, "plain")
        await ask(client, "stable")
        assert site.embedder.texts == before
        for _ in range(3):
            await ask(
                client, "auto", messages=[{"role": "user", "content": "cast the bell" + " x" * 9000}], max_tokens=9
            )
    (embedded,) = site.embedder.texts[len(before) :]
    assert len(embedded) == 4096


# The real embedder on the demo's models and questions.


MINILM = MiniLM()


@cache
def demo() -> Names:
    settings = load(Path("examples/tributary.toml"))
    catalogue = Catalogue([model(section.name, section.kind) for section in settings.models])
    return Names.of(catalogue, settings, compared(settings, MINILM))


async def taken(question: str) -> tuple[str, str]:
    router = Router(demo(), MINILM)
    resolved = await router.resolve("auto", kind="chat", asked=question, request_id=new_id("req"))
    return resolved.model.name, resolved.reason


@pytest.mark.parametrize(
    ("question", "model", "reason"),
    [
        ("Which gig won the Vellmouth regatta?", "guide", "auto"),
        ("Where are the pilot boats moored?", "guide", "auto"),
        ("Who was the last head keeper of Skerrin Lighthouse?", "guide", "auto"),
        ("Reply by telegram: is the bridge open?", "telegram", "auto"),
        ("Send me the news as a telegram.", "telegram", "auto"),
        ("How do I sort a list in Python?", "smollm2", "auto_fallback"),
        ("What is 17 times 23?", "smollm2", "auto_fallback"),
        ("Give me a recipe for lentil soup.", "smollm2", "auto_fallback"),
    ],
)
@pytest.mark.model
async def test_auto_finds_the_demos_models(question: str, model: str, reason: str) -> None:
    assert await taken(question) == (model, reason)


@pytest.mark.model
def test_the_page_shows_what_the_benchmark_prints(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main()
    *printed, _ = capsys.readouterr().out.splitlines()
    page = Path("docs/routing.md").read_text()
    assert all(f"    {line}\n" in page for line in printed)


def test_what_is_said_of_a_model_is_its_description_then_its_examples() -> None:
    section = ModelSection(name="a", auto=True, examples=("x", "y"))
    assert section.said_of_it == ["x", "y"]
    assert section.model_copy(update={"description": "d"}).said_of_it == ["d", "x", "y"]


def test_a_router_that_never_heard_of_auto_refuses_it() -> None:
    names = Names.of(Catalogue([model("plain")]), Settings(), np.empty((0, 2), dtype=np.float32))
    with pytest.raises(UnknownModelError, match="no chat model 'auto' here; there are: 'plain'"):
        names.resolve("auto", "chat", new_id("req"))
