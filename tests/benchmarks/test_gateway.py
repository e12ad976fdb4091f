"""The benchmark's own arithmetic, its client and its reconciliation; its whole run in small."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gateway import __main__ as benchmark
from benchmarks.gateway import loras, speed
from benchmarks.gateway.client import Asking, Client, Reply
from benchmarks.gateway.faults import as_seen
from benchmarks.gateway.load import Load, generate, quantile
from benchmarks.gateway.memory import Growth
from benchmarks.gateway.peers import Peer, PeerAbsent
from benchmarks.gateway.reconcile import Logged, Seen, reconcile
from benchmarks.gateway.speed import Figures
from gateway.engines.adapters import AdapterFiles
from tests.stand_in.kit import Server, stand_in

FIGURES = Figures(
    cpu_ms_request=0.4,
    requests_s=2000,
    cpu_ms_stream=0.8,
    streams_s=900,
    first_ms_p50=52,
    first_ms_p99=60,
    at_once_ms_request=0.3,
    at_once_ms_stream=0.7,
)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with stand_in("--model", "m", "--chunks", "8") as server:
        yield server


@pytest.fixture
def asking(server: Server) -> Asking:
    return Asking(url=server.url, model="m")


# -- what clients saw against what the log says --


def test_books_that_agree_with_every_client_have_nothing_wrong() -> None:
    seen = [Seen(request_id="a", complete=True, tokens=3), Seen(request_id="b", complete=False)]
    logged = [Logged(request_id="a", tokens=3), Logged(request_id="b", tokens=None)]
    found = reconcile(seen, logged)
    assert (found.sent, found.complete, found.charged, found.voided) == (2, 1, 1, 1)
    assert found.unlogged == found.unasked == found.miscounted == found.doubled == 0


@pytest.mark.parametrize("logged", [[], [Logged(request_id="a", tokens=None)], [Logged(request_id="b", tokens=3)]])
def test_an_answer_without_a_charge_is_unlogged(logged: list[Logged]) -> None:
    assert reconcile([Seen(request_id="a", complete=True, tokens=3)], logged).unlogged == 1


def test_an_answer_that_cannot_be_named_is_unlogged() -> None:
    assert reconcile([Seen(request_id=None, complete=True, tokens=3)], [Logged(request_id="a", tokens=3)]).unlogged == 1


def test_an_entry_of_a_name_that_nobody_saw_needs_a_request_whose_head_never_came() -> None:
    logged = [Logged(request_id="a", tokens=3), Logged(request_id="b", tokens=None)]
    assert reconcile([Seen(request_id=None, complete=False)] * 2, logged).unasked == 0
    assert reconcile([Seen(request_id=None, complete=False)], logged).unasked == 1
    assert reconcile([Seen(request_id="c", complete=False)], logged).unasked == 2


def test_other_tokens_and_second_entries_are_counted() -> None:
    seen = [Seen(request_id="a", complete=True, tokens=3)]
    logged = [Logged(request_id="a", tokens=4), Logged(request_id="a", tokens=4)]
    found = reconcile(seen, logged)
    assert (found.miscounted, found.doubled, found.unlogged) == (1, 1, 0)


@pytest.mark.parametrize("body", [b'{"choices":[],', b'data: {"choices":[{}],'])
def test_an_answer_is_complete_when_it_came_to_its_end_and_names_no_error(body: bytes) -> None:
    stream = body.startswith(b"data")
    end = b"\n\ndata: [DONE]\n\n" if stream else b""
    usage = b'"attribution":{"usage":{"completion_tokens":7}}}'
    whole = Reply(
        status=200,
        head=b"HTTP/1.1 200 OK\r\nx-tributary-request-id: req_1",
        body=body + usage + end,
        whole=True,
        first_s=0,
        total_s=0,
    )
    assert as_seen(whole) == Seen(request_id="req_1", complete=True, tokens=7)
    assert as_seen(replace(whole, whole=False)) == Seen(request_id="req_1", complete=False)
    assert as_seen(replace(whole, status=503)) == Seen(request_id="req_1", complete=False)
    failed = b'data: {"error":{"code":"engine_error"}}' if stream else b'{"error":{"code":"engine_error"}}'
    assert as_seen(replace(whole, body=failed + end)) == Seen(request_id="req_1", complete=False)


# -- the load --


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, part) for part in (0.01, 0.5, 0.99, 1)] == [1, 50, 99, 100]
    assert quantile([7.0], 0.5) == quantile([7.0], 0.99) == 7
    assert math.isnan(quantile([], 0.5))


def test_each_request_is_a_chat_of_its_own_and_of_one_size() -> None:
    asking = Asking(url="http://127.0.0.1:1", model="m", key="k", headers=(("x-more", "1"),))
    first, second = (asking.request(number, stream=False) for number in (1, 2))
    assert first != second
    assert len(first) == len(second)
    head, _, body = first.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert b"authorization: Bearer k" in head
    assert b"x-more: 1" in head
    assert 400 <= len(json.loads(body)["messages"][0]["content"]) < 500
    assert json.loads(asking.request(1, stream=True).partition(b"\r\n\r\n")[2])["stream"] is True


async def test_the_client_knows_a_whole_answer_from_a_part(server: Server, asking: Asking) -> None:
    client = Client(asking.url)
    for stream in (False, True):
        whole = await client.send(asking.request(1, stream=stream))
        assert whole.ok
        assert 0 < whole.first_s <= whole.total_s < 5
        await server.fail("cut")
        cut = await client.send(asking.request(1, stream=stream))
        assert (cut.status, cut.whole, cut.ok) == (200, False, False)
        await server.fail("error")
        refused = await client.send(asking.request(1, stream=stream))
        assert (refused.status, refused.whole, refused.ok) == (500, True, False)
        left = await client.send(asking.request(1, stream=stream), leave_after_bytes=0)
        assert (left.status, left.whole) == (0, False)
    await server.kill()
    with pytest.raises(ConnectionRefusedError):
        await client.send(asking.request(1, stream=False))


async def test_a_load_counts_what_was_answered_and_what_was_not(server: Server, asking: Asking) -> None:
    await server.fail("error", times=3)
    outcome = await generate(Load(asking=asking, connections=4, seconds=60, requests=20, stream_every=2))
    assert (outcome.answered, outcome.failed) == (17, {"500": 3})
    assert outcome.first_ms == sorted(outcome.first_ms)
    assert len(outcome.first_ms) == len(outcome.total_ms) == 17
    assert outcome.requests_s == pytest.approx(17 / outcome.seconds)
    assert (await server.state())["count"]["/v1/chat/completions"] == 20


async def test_a_load_ends_in_its_time(asking: Asking) -> None:
    outcome = await generate(Load(asking=asking, connections=2, seconds=0.2, pause_ms=5))
    assert 0 < outcome.answered < 500
    assert outcome.seconds < 5


# -- the figures --


def test_what_is_added_is_the_difference_to_direct() -> None:
    direct = replace(FIGURES, first_ms_p50=50, first_ms_p99=55)
    assert FIGURES.over(direct) == (2, 5)
    result = speed.as_result(FIGURES, direct)
    assert (result["first_byte_p50_ms"], result["first_byte_p99_ms"]) == (2, 5)
    assert speed.as_result(replace(FIGURES, cpu_ms_stream=math.nan), direct)["cpu_ms_stream"] is None


def test_of_several_rounds_each_figure_is_the_median_and_no_failure_is_lost() -> None:
    rounds = [replace(FIGURES, requests_s=rate, failed=failed) for rate, failed in ((900, 1), (2000, 0), (1000, 2))]
    assert speed.middle(rounds) == replace(FIGURES, requests_s=1000, failed=3)


def test_growth_is_the_part_by_which_memory_grew() -> None:
    growth = Growth(early_requests=10, early_bytes=200, late_requests=100, late_bytes=209)
    assert growth.part == pytest.approx(0.045)


def test_a_peer_that_cannot_be_installed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    peer = Peer(
        name="none",
        version="1",
        install=lambda _folder, version: [["python3", "-c", f"import sys; sys.exit('no version {version}')"]],
        front=lambda *_: pytest.fail("it was not installed"),
    )
    with pytest.raises(PeerAbsent, match="no version 1"):
        peer.folder()


# -- the whole --


def test_random_loras_are_ones_that_an_engine_takes(tmp_path: Path) -> None:
    config = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 2}
    for seed in (1, 2):
        loras.write(tmp_path / str(seed), config, base="tiny", seed=seed)
    first, second = (AdapterFiles.read(tmp_path / name) for name in ("1", "2"))
    assert first.digest != second.digest
    modules = {"q_proj": (24, 24), "k_proj": (24, 8), "v_proj": (24, 8), "o_proj": (24, 24)}
    shapes = {f"model.layers.{layer}.self_attn.{name}": shape for layer in range(2) for name, shape in modules.items()}
    first.check_fits(base_model="tiny", base_shapes=shapes)


def test_the_last_line_has_every_figure_and_nothing_is_lost_under_fire(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.gateway", "--quick", "--only", "memory", "faults"])
    benchmark.main()
    *table, last = capsys.readouterr().out.splitlines()
    assert any("engine kills" in line for line in table)
    marker, _, figures = last.partition(" ")
    result = json.loads(figures)
    assert marker == "RESULT"
    assert set(benchmark.KEYS) <= result.keys()
    assert result["unlogged_answers"] == result["unasked_entries"] == result["miscounted_answers"] == 0
    assert result["open_intents"] == result["fsck_findings"] == 0
    assert -0.5 < result["memory_growth"] < 0.5
