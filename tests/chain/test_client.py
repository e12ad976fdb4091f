"""The client where chains are hard: replies that are lost, blocks that do not come, endpoints that are down or old."""

from __future__ import annotations

import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ledger_client import KeyFileError, leaf_hash
from ledger_client.addresses import AddressError
from ledger_client.chain import Anchor, ChainError, ChainKey, Distributor
from ledger_client.settlement import PayoutTree

from .kit import HOUR_S, Anvil, Site, running_anvil

SECRET = "endpoint-secret"
HEAD = Anchor(size=7, root=leaf_hash(b"seven"))


class Endpoint(ThreadingHTTPServer):
    """A way to the chain that passes requests on, and then does not pass on the replies to one method.

    losing: that method. lost: how many replies it kept. answer: what to say to everything instead, status and body.
    """

    losing: str | None = None
    lost = 0
    answer: tuple[int, bytes] | None = None

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, reply = self.server.answer or (200, b"")
        if not self.server.answer:
            request = urllib.request.Request(  # noqa: S310
                self.server.behind, data=body, headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                reply = answer.read()
            if json.loads(body).get("method") == self.server.losing:
                self.server.lost += 1
                self.close_connection = True
                return
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is http.server's
        pass


@pytest.fixture
def endpoint(anvil: Anvil) -> Iterator[Endpoint]:
    with Endpoint(anvil.url) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def through(endpoint: Endpoint, site: Site, timeout_s: float = 20) -> Distributor:
    return Distributor.open(endpoint.url, site.distributor.address, key=site.owner, timeout_s=timeout_s)


def test_what_landed_counts_although_its_reply_was_lost(site: Site, endpoint: Endpoint) -> None:
    site.fund(10)
    tree = site.post({site.alice.address: 10})
    distributor = through(endpoint, site)
    endpoint.losing = "eth_sendRawTransaction"
    assert distributor.claim(tree.claim(site.alice.address)) is not None
    assert distributor.claim(tree.claim(site.alice.address)) is None
    assert distributor.anchor(Anchor(size=77, root=leaf_hash(b""))) is not None
    assert endpoint.lost == 2
    assert site.distributor.balance(site.alice.address) == 10


def test_what_landed_is_seen_by_the_next_attempt(site: Site, endpoint: Endpoint) -> None:
    distributor = through(endpoint, site, timeout_s=0.3)
    endpoint.losing = "eth_getTransactionReceipt"
    # The chain is asked again before the failure is told of, so this attempt itself finds that it has succeeded.
    assert distributor.anchor(HEAD) is None
    assert endpoint.lost > 0
    endpoint.losing = None
    assert distributor.anchor(HEAD) is None
    assert distributor.standing().anchor == HEAD


@contextmanager
def no_blocks(anvil: Anvil) -> Iterator[None]:
    anvil.rpc("evm_setAutomine", False)
    yield
    anvil.rpc("evm_setAutomine", True)


def test_a_transaction_that_no_block_takes_in_may_still_come(site: Site) -> None:
    hasty = site.seen_by(site.owner, timeout_s=0.3)
    with no_blocks(site.anvil):
        with pytest.raises(ChainError, match="it may still come"):
            hasty.anchor(HEAD)
        site.anvil.rpc("evm_mine")
        assert hasty.anchor(HEAD) is None


def test_two_who_post_the_same_at_once_both_succeed(site: Site) -> None:
    epoch = site.epoch(PayoutTree(amounts={site.alice.address: 1}))
    outcomes: list[object] = []
    with no_blocks(site.anvil):
        posting = [
            threading.Thread(target=lambda: outcomes.append(site.seen_by(site.owner).post(epoch))) for _ in range(2)
        ]
        for number, thread in enumerate(posting):
            thread.start()
            site.anvil.wait_for_pending(number + 1)
        site.anvil.rpc("evm_mine")
        for thread in posting:
            thread.join()
    assert sorted(outcome is None for outcome in outcomes) == [False, True]
    assert site.distributor.epoch(1) == epoch


def test_two_who_post_differently_at_once_do_not_both_succeed(site: Site) -> None:
    epochs = [site.epoch(PayoutTree(amounts={site.alice.address: amount})) for amount in (1, 2)]
    refusals: list[ChainError] = []

    def post(number: int) -> None:
        try:
            site.seen_by(site.owner).post(epochs[number])
        except ChainError as error:
            refusals.append(error)

    with no_blocks(site.anvil):
        posting = [threading.Thread(target=post, args=(number,)) for number in range(2)]
        for number, thread in enumerate(posting):
            thread.start()
            site.anvil.wait_for_pending(number + 1)
        site.anvil.rpc("evm_mine")
        for thread in posting:
            thread.join()
    (refusal,) = refusals
    assert "another epoch 1" in str(refusal)
    assert site.distributor.epoch(1) == epochs[0]


def test_an_endpoint_that_is_down_is_named_as_such_and_its_secret_is_not() -> None:
    key = ChainKey(secret=b"\x01" * 32)
    with pytest.raises(ChainError, match="does not answer") as caught:
        Distributor.deploy(f"http://127.0.0.1:9/{SECRET}", token=key.address, timelock_s=HOUR_S, key=key)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "answer",
    [
        (503, b""),
        (429, b"slow down"),
        (200, b""),
        (200, b"<html>"),
        (200, b"{}"),
        (200, b"[]"),
        (200, b'{"jsonrpc":"2.0","id":0,"error":{"code":-32000,"message":"no"}}'),
        (200, b'{"jsonrpc":"2.0","id":0,"result":null}'),
        (200, b'{"jsonrpc":"2.0","id":0,"result":"0x"}'),
        (200, b'{"jsonrpc":"2.0","id":0,"result":"0x01"}'),
    ],
)
def test_an_endpoint_that_talks_nonsense_is_a_chain_error(
    site: Site, endpoint: Endpoint, answer: tuple[int, bytes]
) -> None:
    distributor = through(endpoint, site, timeout_s=0.3)
    endpoint.answer = answer
    for call in (distributor.standing, lambda: distributor.anchor(HEAD)):
        with pytest.raises(ChainError) as caught:
            call()
        assert SECRET not in str(caught.value)


def test_the_wrong_chain_or_address_is_found_out_at_once(site: Site) -> None:
    with pytest.raises(ChainError, match="of chain 31337, not of 1"):
        Distributor.open(site.anvil.url, site.distributor.address, chain_id=1)
    with pytest.raises(ChainError, match="no contract"):
        Distributor.open(site.anvil.url, site.alice.address)
    with pytest.raises(ChainError, match="no distributor"):
        Distributor.open(site.anvil.url, site.token.address)
    with pytest.raises(AddressError):
        Distributor.open(site.anvil.url, site.alice.address.lower())


def test_without_a_key_it_reads_and_does_not_send(site: Site) -> None:
    reader = site.seen_by(None)
    assert reader.standing().latest_epoch == 0
    for call in (lambda: reader.anchor(HEAD), lambda: reader.fund(1)):
        with pytest.raises(ChainError, match="no key"):
            call()


def test_a_key_without_gas_money_is_told_so(site: Site) -> None:
    pauper = ChainKey(secret=b"\x05" * 32)
    site.fund(5)
    tree = site.post({site.alice.address: 5})
    with pytest.raises(ChainError, match=r"(?i)fund|gas"):
        site.seen_by(pauper).claim(tree.claim(site.alice.address))


def test_a_chain_without_a_base_fee_will_do() -> None:
    with running_anvil("--hardfork", "berlin") as old:
        site = Site(old)
        site.fund(5)
        tree = site.post({site.alice.address: 5})
        site.distributor.claim(tree.claim(site.alice.address))
        assert site.distributor.balance(site.alice.address) == 5


KEY = "0x" + "1f" * 32


@pytest.mark.parametrize("text", [KEY, KEY + "\n"])
def test_a_key_file_that_only_its_owner_reads(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(text)
    key = ChainKey.load(path)
    assert key == ChainKey(secret=b"\x1f" * 32)
    assert "1f1f" not in repr(key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_file_that_others_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        ChainKey.load(path)


@pytest.mark.parametrize(
    "text", ["", "0x", KEY[2:], KEY.upper(), KEY + "00", KEY + " ", "0x" + "00" * 32, "0x" + "ff" * 32, "\xff"]
)
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(KeyFileError) as caught:
        ChainKey.load(path)
    assert "1f1f" not in str(caught.value)


def test_a_missing_key_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyFileError, match="there is no chain key"):
        ChainKey.load(tmp_path / "key")
    monkeypatch.delenv("CHAIN_KEY", raising=False)
    with pytest.raises(KeyFileError, match="CHAIN_KEY is not set"):
        ChainKey.from_environment("CHAIN_KEY")
    monkeypatch.setenv("CHAIN_KEY", "0x12")
    with pytest.raises(KeyFileError, match="CHAIN_KEY holds no chain key"):
        ChainKey.from_environment("CHAIN_KEY")
    monkeypatch.setenv("CHAIN_KEY", KEY)
    assert ChainKey.from_environment("CHAIN_KEY").address.startswith("0x")
    assert os.environ["CHAIN_KEY"] == KEY
