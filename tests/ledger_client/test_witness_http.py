"""The witness over HTTP and the log that asks it, both real; and witnesses that answer nonsense, or not at all."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ledger_client import Note, Signer, Submission, Witness, WitnessSigner, WitnessState
from ledger_client.backoff import Backoff
from ledger_client.witness import MAX_SUBMISSION_BYTES
from ledger_client.witness_app import create_witness_app
from ledger_client.witness_client import MAX_REPLY_BYTES, Prove, WitnessAhead, WitnessClient, WitnessError
from ledger_client.witness_state import origin_hash

from .conftest import ORIGIN
from .serving import serving
from .trees import Tree, hashed

LOG = Signer.generate(ORIGIN)
SIGNER = WitnessSigner.generate("witness.example/w1")
TREE = Tree(LOG, hashed(*map(str, range(20))))
FORK = Tree(LOG, hashed(*(f"other {number}" for number in range(20))))


@dataclass(frozen=True)
class Running:
    url: str
    witness: Witness


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    state = WitnessState.create(tmp_path / "witness.db")
    witness = Witness(signer=SIGNER, logs=[LOG.verifier], state=state)
    with serving(create_witness_app(witness)) as url:
        yield Running(url, witness)
    state.close()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


def prover(tree: Tree, asked: list[tuple[int, int]] | None = None) -> Prove:
    async def prove(old_size: int, size: int) -> Sequence[bytes]:
        if asked is not None:
            asked.append((old_size, size))
        return tree.proof(old_size, size)

    return prove


def post(url: str, submission: Submission | str | bytes) -> httpx.Response:
    body = submission.format() if isinstance(submission, Submission) else submission
    return httpx.post(f"{url}/add-checkpoint", content=body.encode() if isinstance(body, str) else body)


# The witness, as the specification has it


def test_a_cosignature_comes_as_a_line_of_its_own(running: Running) -> None:
    reply = post(running.url, TREE.submission(0, 3))
    assert reply.status_code == 200
    assert reply.text.startswith("— witness.example/w1 ")
    assert reply.text.count("\n") == 1
    assert reply.text.endswith("\n")
    found = SIGNER.verifier.find(Note.parse(TREE.note(3) + reply.text))
    assert found
    assert abs(found.time_s - time.time()) < 300


def test_each_refusal_has_its_status(running: Running) -> None:
    assert post(running.url, TREE.submission(0, 3)).status_code == 200
    stranger = Tree(Signer.generate("example.com/other"), TREE.leaves)
    namesake = Tree(Signer.generate(ORIGIN), TREE.leaves)
    for body, status in (
        ("", 400),
        (b"\xff", 400),
        (TREE.submission(3, 5).format().replace("old 3", "old 03"), 400),
        (TREE.submission(5, 5).format().replace("old 5", "old 6"), 400),
        (namesake.submission(3, 5), 403),
        (stranger.submission(3, 5), 404),
        (TREE.submission(2, 5), 409),
        (TREE.submission(4, 5), 409),
        (FORK.submission(3, 3), 422),
        (FORK.submission(3, 5), 422),
        (Submission(old_size=3, proof=(), note=TREE.note(5)), 422),
        ("o" * (MAX_SUBMISSION_BYTES + 1), 413),
    ):
        assert post(running.url, body).status_code == status, body
    remembered = running.witness.last(ORIGIN)
    assert remembered
    assert remembered.head == TREE.checkpoint(3)
    assert post(running.url, TREE.submission(3, 5)).status_code == 200


def test_a_conflict_tells_the_size_that_was_cosigned_last(running: Running) -> None:
    conflict = post(running.url, TREE.submission(1, 3))
    assert (conflict.status_code, conflict.text) == (409, "0\n")
    post(running.url, TREE.submission(0, 3))
    conflict = post(running.url, TREE.submission(0, 5))
    assert (conflict.status_code, conflict.text) == (409, "3\n")
    assert conflict.headers["content-type"] == "text/x.tlog.size"


def test_the_last_checkpoint_is_there_to_read(running: Running) -> None:
    address = f"{running.url}/{origin_hash(ORIGIN)}/checkpoint"
    assert httpx.get(address).status_code == 404
    line = post(running.url, TREE.submission(0, 3)).text
    assert httpx.get(address).text == TREE.note(3) + line
    assert httpx.get(f"{running.url}/{ORIGIN}/checkpoint").status_code == 404


def test_only_a_post_submits(running: Running) -> None:
    assert httpx.get(f"{running.url}/add-checkpoint").status_code == 405
    assert httpx.post(f"{running.url}/{origin_hash(ORIGIN)}/checkpoint").status_code == 405


def test_a_body_without_an_end_is_cut_off(running: Running) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"A" * 4096

    with suppress(httpx.TransportError):  # the server may close before the client has read its answer
        assert httpx.post(f"{running.url}/add-checkpoint", content=endless()).status_code == 413
    assert post(running.url, TREE.submission(0, 3)).status_code == 200


def test_a_witness_whose_state_is_gone_does_not_cosign(running: Running, tmp_path: Path) -> None:
    assert post(running.url, TREE.submission(0, 3)).status_code == 200
    running.witness._state.close()
    for file in tmp_path.glob("witness.db*"):
        file.unlink()
    reply = post(running.url, FORK.submission(0, 3))
    assert reply.status_code == 503
    assert "—" not in reply.text
    assert not (tmp_path / "witness.db").exists()


# The log that asks


async def test_a_client_learns_where_the_witness_stands(running: Running, http: httpx.AsyncClient) -> None:
    post(running.url, TREE.submission(0, 3))
    asked: list[tuple[int, int]] = []
    client = WitnessClient(f"{running.url}/", SIGNER.verifier, http)
    for size in (8, 8, 13):
        cosignature = await client.cosign(TREE.note(size), size, prover(TREE, asked))
        assert SIGNER.verifier.find(Note.parse(TREE.note(size) + cosignature.line)) == cosignature
        assert client.size == size
    assert asked == [(0, 8), (3, 8), (8, 8), (8, 13)]


async def test_a_client_with_a_reply_lost_goes_on(running: Running, http: httpx.AsyncClient) -> None:
    client = WitnessClient(running.url, SIGNER.verifier, http, size=0)
    await client.cosign(TREE.note(3), 3, prover(TREE))
    post(running.url, TREE.submission(3, 7))  # the client never hears of it
    await client.cosign(TREE.note(9), 9, prover(TREE))
    assert client.size == 9


async def test_a_witness_that_has_seen_more_is_told_of(running: Running, http: httpx.AsyncClient) -> None:
    post(running.url, TREE.submission(0, 9))
    client = WitnessClient(running.url, SIGNER.verifier, http)
    with pytest.raises(WitnessAhead, match="of 9 entries, and was asked about one of 5") as caught:
        await client.cosign(TREE.note(5), 5, prover(TREE))
    assert (caught.value.size, client.size) == (9, 0)
    await client.cosign(TREE.note(9), 9, prover(TREE))


async def test_a_forked_log_gets_no_cosignature(running: Running, http: httpx.AsyncClient) -> None:
    client = WitnessClient(running.url, SIGNER.verifier, http)
    await client.cosign(TREE.note(3), 3, prover(TREE))
    for size in (3, 5):
        with pytest.raises(WitnessError, match="answered 422: 'the checkpoint is not shown to extend"):
            await client.cosign(FORK.note(size), size, prover(FORK))


async def test_two_clients_of_one_log_do_not_hinder_each_other(running: Running, http: httpx.AsyncClient) -> None:
    clients = [WitnessClient(running.url, SIGNER.verifier, http) for _ in range(4)]
    for size in (4, 9):
        await asyncio.gather(*(client.cosign(TREE.note(size), size, prover(TREE)) for client in clients))
    assert [client.size for client in clients] == [9] * 4


OTHER = WitnessSigner.generate(SIGNER.name)


def line(signer: WitnessSigner = SIGNER, size: int = 3, time_s: int = 1000) -> str:
    return signer.cosign(TREE.checkpoint(size).format(), time_s).line


TEXT = {"content-type": "text/plain"}
SIZE = {"content-type": "text/x.tlog.size"}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda: Response(line(OTHER), 200, TEXT), "without a cosignature by its key"),
        (lambda: Response(line(size=4), 200, TEXT), "does not hold"),
        (lambda: Response(line() + line(size=4), 200, TEXT), "does not hold"),
        (lambda: Response(line()[:-1], 200, TEXT), "does not hold"),
        (lambda: Response("", 200, TEXT), "does not hold"),
        (lambda: Response(b"\xff\xfe", 200, TEXT), "no text"),
        (lambda: Response("x" * (MAX_REPLY_BYTES + 1), 200, TEXT), "more than"),
        (lambda: Response("7\n", 409, TEXT), "answered 409"),
        (lambda: Response("03\n", 409, SIZE), "without its size"),
        (lambda: Response("2\n", 409, SIZE), "another size each of 5 times"),
        (lambda: Response("9223372036854775807\n", 409, SIZE), "has cosigned a tree of 9223372036854775807"),
        (lambda: Response("", 302, {"location": "/elsewhere"}), "answered 302"),
        (lambda: Response("go away\nplease " + "x" * 1000, 500, TEXT), "answered 500: 'go away please x{185}'$"),
    ],
)
async def test_a_reply_that_is_none_is_an_error_of_one_kind(
    reply: Callable[[], Response], message: str, http: httpx.AsyncClient
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()
        await reply()(scope, receive, send)

    with serving(app) as url:
        client = WitnessClient(url, SIGNER.verifier, http)
        with pytest.raises(WitnessError, match=message):
            await client.cosign(TREE.note(3), 3, prover(TREE))
        assert client.size in {0, 2}


async def test_cosignatures_of_others_beside_the_right_one_are_left_out(http: httpx.AsyncClient) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = line(OTHER) + line(time_s=7) + line(time_s=9) + line(WitnessSigner.generate("another"))
        await Response(body, 200, TEXT)(scope, receive, send)

    with serving(app) as url:
        cosignature = await WitnessClient(url, SIGNER.verifier, http).cosign(TREE.note(3), 3, prover(TREE))
    assert (cosignature.time_s, cosignature.line) == (9, line(time_s=9))


async def test_a_witness_that_is_not_there_is_told_of(http: httpx.AsyncClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(WitnessError, match="cannot be reached"):
            await WitnessClient(url, SIGNER.verifier, http).cosign(TREE.note(3), 3, prover(TREE))


async def test_a_witness_that_trickles_is_left(http: httpx.AsyncClient) -> None:
    async def trickle(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.05)

    with serving(trickle) as url:
        client = WitnessClient(url, SIGNER.verifier, http, timeout_s=0.4)
        with pytest.raises(WitnessError, match=r"within 0\.4 s"):
            await client.cosign(TREE.note(3), 3, prover(TREE))


def test_back_off_doubles_to_a_limit_and_begins_anew() -> None:
    backoff = Backoff(first_s=1, limit_s=60)
    for step_s in (1, 2, 4, 8, 16, 32, 60, 60):
        assert step_s / 2 <= backoff.failed() <= step_s
    for _ in range(2000):
        assert backoff.failed() <= 60
    backoff.succeeded()
    assert backoff.failed() <= 1
