"""The tools from npm that a real chain takes: the compiler, OpenZeppelin's contracts and tree, and anvil.

They are installed once, into the user's cache, from the lock in `ledger_client/contracts`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from ledger_client import leaf_hash
from ledger_client.chain import ChainKey, Distributor, Epoch
from ledger_client.ethereum import HTTPProvider, Web3, requests
from ledger_client.settlement import PayoutTree
from tests import npm
from tests.npm import node

CONTRACTS = Path("ledger_client/contracts").resolve()
HERE = Path(__file__).parent
HOUR_S = 3600
REQUIRED = "TRIBUTARY_TEST_CHAIN"  # set where a missing node or npm is a failure and no excuse


@cache
def modules() -> Path:
    """The folder node_modules; without node or npm the test that asks is skipped."""
    return npm.modules(CONTRACTS, cache="contracts", required=REQUIRED)


def compiled(*sources: Path) -> str:
    """What `compile.mjs` prints for these files."""
    return node(CONTRACTS / "compile.mjs", "--modules", str(modules()), *map(str, sources))


@cache
def tokens() -> dict[str, Any]:
    """The test tokens, compiled, by name."""
    return {each["contract"]: each for each in map(json.loads, compiled(HERE / "contracts/Tokens.sol").splitlines())}


class Anvil:
    """A chain of its own that mines each transaction at once, with ten rich accounts that anyone may send from."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.web3 = Web3(HTTPProvider(url))
        self._session = requests.Session()
        self.spend: Any = {"gasPrice": 10**10}  # in the old form, which every chain takes

    def rpc(self, method: str, *arguments: Any) -> Any:
        answer = self.web3.provider.make_request(method, arguments)  # type: ignore[arg-type]
        assert "error" not in answer, answer
        return answer["result"]

    def read(self, *functions: Any) -> list[int]:
        """Call views that return whole numbers or hashes, all in one request; web3 takes a request for each."""
        batch = [
            {
                "jsonrpc": "2.0",
                "id": number,
                "method": "eth_call",
                "params": [{"to": function.address, "data": function._encode_transaction_data()}, "latest"],
            }
            for number, function in enumerate(functions)
        ]
        answers = sorted(self._session.post(self.url, json=batch).json(), key=lambda answer: answer["id"])
        return [int(answer["result"], 16) for answer in answers]

    def now_s(self) -> int:
        return self.web3.eth.get_block("latest")["timestamp"]

    def sleep(self, seconds: int) -> None:
        """Let the chain's clock run ahead."""
        self.rpc("evm_increaseTime", seconds)
        self.rpc("evm_mine")

    def sleep_until(self, time_s: int) -> None:
        """Mine a block of exactly this time, and let the next one have it too: calls and estimates see it."""
        self.rpc("anvil_setBlockTimestampInterval", 0)
        self.rpc("evm_setNextBlockTimestamp", time_s)
        self.rpc("evm_mine")

    def wait_for_pending(self, number: int) -> None:
        """Wait until so many transactions wait for a block."""
        for _ in range(3000):
            if int(self.rpc("txpool_status")["pending"], 16) >= number:
                return
            time.sleep(0.01)
        raise AssertionError("nobody sends")

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        snapshot = self.rpc("evm_snapshot")
        yield
        self.rpc("anvil_removeBlockTimestampInterval")
        assert self.rpc("evm_revert", snapshot)

    def key(self, number: int) -> ChainKey:
        """One of a row of keys, each rich in gas."""
        key = ChainKey(secret=hashlib.sha256(b"tributary test key %d" % number).digest())
        self.rpc("anvil_setBalance", key.address, hex(10**20))
        return key

    def create(self, name: str = "TestToken") -> Any:
        """Deploy a token, and return its contract; transactions to it come from an account of anvil's."""
        self.web3.eth.default_account = self.web3.eth.accounts[0]
        token = tokens()[name]
        made = self.web3.eth.contract(abi=token["abi"], bytecode=token["bytecode"]).constructor().transact(self.spend)
        address = self.web3.eth.wait_for_transaction_receipt(made)["contractAddress"]
        return self.web3.eth.contract(address=address, abi=token["abi"])


class Site:
    """A distributor of a test token on a chain, and the keys of those who deal with it."""

    def __init__(self, anvil: Anvil, currency: str = "TestToken", timelock_s: int = HOUR_S) -> None:
        self.anvil = anvil
        self.token = anvil.create(currency)
        self.owner, self.stranger, self.alice, self.bob, self.carol = (anvil.key(number) for number in range(5))
        self.distributor = Distributor.deploy(
            anvil.url, token=self.token.address, timelock_s=timelock_s, key=self.owner, timeout_s=20
        )

    @cached_property
    def stranger_client(self) -> Distributor:
        """The distributor as someone's client who is nobody to it."""
        return self.seen_by(self.stranger)

    def seen_by(self, key: ChainKey | None, timeout_s: float = 20) -> Distributor:
        """The distributor as someone else's client."""
        return Distributor.open(self.anvil.url, self.distributor.address, key=key, timeout_s=timeout_s)

    def mint(self, account: str, units: int) -> None:
        self.token.functions.mint(account, units).transact(self.anvil.spend)

    def fund(self, total: int) -> None:
        """Give the owner tokens and bring the distributor's funds up to a total."""
        self.mint(self.owner.address, total)
        self.distributor.fund(total)

    def post(self, amounts: Mapping[str, int], *, total: int | None = None, ripe: bool = True) -> PayoutTree:
        """Post the next epoch, settled from a log that grew, and wait out its timelock."""
        tree = PayoutTree(amounts=amounts)
        self.distributor.post(self.epoch(tree, total=total))
        if ripe:
            self.anvil.sleep(HOUR_S)
        return tree

    def epoch(self, tree: PayoutTree | None, *, total: int | None = None, **members: Any) -> Epoch:
        """The next epoch, of this tree."""
        number = self.distributor.standing().latest_epoch + 1
        return Epoch(
            **{
                "number": number,
                "root": tree.root if tree else None,
                "cumulative_total": total if total is not None else tree.cumulative_total if tree else 0,
                "log_size": number * 10,
                "log_root": leaf_hash(b"%d" % number),
            }
            | members
        )


@contextmanager
def running_anvil(*options: str) -> Iterator[Anvil]:
    """Start anvil on a free port of the loopback, and end it."""
    (binary,) = modules().glob("@foundry-rs/anvil-*/bin/anvil*")
    command = [str(binary), "--host", "127.0.0.1", "--port", "0", *options]
    # Into a file and no pipe, which nobody would empty while anvil tells of every request.
    with TemporaryFile() as told, subprocess.Popen(command, stdout=told) as process:
        try:
            yield Anvil(f"http://{_address(process, told)}")
        finally:
            process.terminate()


def _address(process: subprocess.Popen[bytes], told: IO[bytes]) -> str:
    """The host and port that anvil says it listens on."""
    for _ in range(3000):
        if match := re.search(rb"Listening on (\S+)\n", os.pread(told.fileno(), 65536, 0)):
            return match[1].decode()
        assert process.poll() is None, "anvil did not start"
        time.sleep(0.01)
    raise AssertionError("anvil does not say where it listens")
