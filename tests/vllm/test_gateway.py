"""The product over a vLLM server that `tributary serve` starts: answers, attribution, and a death in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.cli.demo import Site, lay_out
from ledger_client import Entry
from tests.integration.conftest import EXAMPLES, Running, serving
from tests.vllm.conftest import ARGUMENTS, ENVIRONMENT, SLOTS

WAIT_S = 300
ASKED = {
    "model": "guide",
    "messages": [{"role": "user", "content": "Who cast the fog bell on North Mole?"}],
    "temperature": 0,
    "max_tokens": 16,
    "top_k": 1,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, dict[str, str]]:
    made = Site(examples=EXAMPLES, folder=tmp_path_factory.mktemp("vllm"))
    return made, lay_out(made)


@pytest.fixture(scope="module")
def gateway(command: str, site: tuple[Site, dict[str, str]]) -> Iterator[Running]:
    environment = ENVIRONMENT | {
        "TRIBUTARY__ENGINE__COMMAND": json.dumps([command]),
        "TRIBUTARY__ENGINE__ARGUMENTS": json.dumps(ARGUMENTS),
        "TRIBUTARY__ENGINE__SLOTS": str(SLOTS),
        "TRIBUTARY__ENGINE__CONTEXT_TOKENS": "1024",
        "TRIBUTARY__ADAPTERS__MAX_RANK": "8",
    }
    with serving(*site, "--engine", "vllm", environment=environment) as running:
        yield running


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line:
            said = line.removeprefix("data: ")
            yield said if said == "[DONE]" else json.loads(said)


def vllm_pid(gateway: Running) -> int:
    return int(re.findall(r'"pid":([0-9]+)[^\n]*"event":"vllm_serves"', gateway.log_file.read_text())[-1])


def usage(gateway: Running, request_id: str) -> dict[str, Any]:
    with gateway.entries() as stored:
        (found,) = [
            entry.data
            for entry in (Entry.decode(raw) for _, raw in stored)
            if entry.type == "usage.recorded" and entry.data["request_id"] == request_id
        ]
    return dict(found)


def test_an_answer_is_attributed_to_the_adapter_and_the_document(gateway: Running) -> None:
    answer = gateway.http().post("/v1/chat/completions", json=ASKED | {"attribution": {"mode": "inline"}})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["choices"][0]["message"]["content"]
    found = said["attribution"]
    assert found["status"] == "attributed"
    assert {player["kind"] for player in found["players"]} == {"document", "adapter"}
    assert sum(player["share_ppm"] for player in found["players"]) == 1_000_000
    assert sum(int(line["amount_nano"]) for line in found["split"]) == int(found["charge_nano"])
    tokens = found["usage"]["completion_tokens"]
    assert all(len(player["token_scores_nats"]) == tokens for player in found["players"])


def test_a_stream_ends_with_usage_and_attribution(gateway: Running) -> None:
    asked = ASKED | {"stream": True, "stream_options": {"include_usage": True}}
    with gateway.http().stream("POST", "/v1/chat/completions", json=asked) as response:
        chunks = list(events(response))
        request_id = response.headers["x-tributary-request-id"]
    assert chunks.pop() == "[DONE]"
    assert {chunk["model"] for chunk in chunks} == {"guide"}
    assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{request_id}"}
    assert chunks[-1]["usage"]["completion_tokens"] == int(usage(gateway, request_id)["completion_tokens"])
    assert [chunk["attribution"]["id"] for chunk in chunks if chunk.get("attribution")] == [request_id]


def test_the_server_dies_in_the_middle_of_an_answer_and_comes_back(
    gateway: Running, site: tuple[Site, dict[str, str]]
) -> None:
    before = vllm_pid(gateway)
    asked = ASKED | {"model": "smollm2", "max_tokens": 700, "stream": True, "logit_bias": {"2": -100}}
    del asked["top_k"]
    with gateway.http().stream("POST", "/v1/chat/completions", json=asked) as response:
        assert response.status_code == 200
        request_id = response.headers["x-tributary-request-id"]
        with closing(events(response)) as chunks:
            said = [next(chunks) for _ in range(4)]
            os.kill(before, signal.SIGKILL)
            said += list(chunks)
    assert said[-1]["error"]["code"] == "engine_unavailable"
    assert not any(chunk["choices"][0]["finish_reason"] for chunk in said[:-1])
    charged = usage(gateway, request_id)
    assert charged["finish_reason"] == "error"
    assert int(charged["completion_tokens"]) >= 3

    # The adapter is asked for, which the new server does not have yet.
    deadline_s = time.monotonic() + WAIT_S
    while (again := gateway.http().post("/v1/chat/completions", json=ASKED)).status_code != 200:
        assert again.status_code == 503, again.text
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
    assert again.json()["choices"][0]["message"]["content"]
    after = vllm_pid(gateway)
    assert after != before
    assert not Path(f"/proc/{before}").exists()
    where, _ = site
    assert where.run("fsck")["ok"]
