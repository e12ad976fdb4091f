"""The distributor contract on an EVM chain: epochs, claims, and anchors of the log.

Needs the extra `chain`. The contract and what it was compiled with are in `contracts/`. Everything that sends looks
first whether the chain already holds what it would bring about, and again when sending failed: the same call can be
made any number of times, after a crash or a lost reply among them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from ledger_client.addresses import from_address
from ledger_client.evm import Chain, ChainKey, Sent
from ledger_client.forms import MAX_COUNT
from ledger_client.keys import KeyFileError
from ledger_client.merkle import HASH_BYTES
from ledger_client.settlement import MAX_UNITS, ChainError, Claim, SettlementError

__all__ = ["Anchor", "ChainError", "ChainKey", "Distributor", "Epoch", "KeyFileError", "Sent", "Standing", "artefact"]

_NO_HASH = bytes(HASH_BYTES)
_TOKEN_ABI: list[Any] = [
    {
        "type": "function",
        "name": name,
        "stateMutability": mutability,
        "inputs": [{"name": f"a{n}", "type": each} for n, each in enumerate(inputs)],
        "outputs": [{"name": "", "type": output}] if output else [],
    }
    for name, mutability, inputs, output in (
        ("decimals", "view", (), "uint8"),
        ("balanceOf", "view", ("address",), "uint256"),
        ("allowance", "view", ("address", "address"), "uint256"),
        # Some tokens return nothing here, and nobody reads it.
        ("approve", "nonpayable", ("address", "uint256"), None),
    )
] + [
    {
        "type": "error",
        "name": name,
        "inputs": [
            {"name": name, "type": "address" if name in {"sender", "spender"} else "uint256"} for name in inputs
        ],
    }
    for name, inputs in (
        ("ERC20InsufficientBalance", ("sender", "balance", "needed")),
        ("ERC20InsufficientAllowance", ("spender", "allowance", "needed")),
    )
]
_HINTS = {
    "AboveEpochTotal": "the root's amounts sum to more than the total that was posted with it",
    "AboveFunded": "the distributor has not been funded for this claim; payouts wait until it is",
    "EpochNotNext": "epochs are posted in order, without a gap",
    "ERC20InsufficientBalance": "the account does not hold that many tokens",
    "InvalidProof": "the proof does not lead from this account and amount to the root",
    "InvalidToken": "there is no contract at the token's address on this chain",
    "LogForked": "the chain holds another root of the log at this size",
    "LogNotGrowing": "the chain holds the log at this size or a larger one",
    "NothingToClaim": "the account has had all of this amount",
    "NotRevocable": "only the latest epoch can be revoked, and only while its timelock runs",
    "OwnableUnauthorizedAccount": "only the owner of the distributor may do this",
    "RootNotCurrent": "the claim is against another root than the current one",
    "TooManyPending": "wait until a timelock is over",
    "TotalFell": "cumulative totals never fall",
    "TotalWithoutRoot": "an epoch has a root and a total, or neither",
}


@cache
def artefact() -> dict[str, Any]:
    """Return the compiled contract: `contract`, `compiler`, `abi` and `bytecode`."""
    compiled: dict[str, Any] = json.loads((files("ledger_client") / "contracts/TributaryDistributor.json").read_text())
    return compiled


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A closed period on chain.

    root: of the payout tree, None where nobody was ever due anything. cumulative_total: token units. log_size and
    log_root: the log that it was settled from. claimable_at_s: Unix time, None before it is posted; not compared.
    """

    number: int
    root: bytes | None
    cumulative_total: int
    log_size: int
    log_root: bytes
    claimable_at_s: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_log(self.log_size, self.log_root)
        if self.number < 1 or not 0 <= self.cumulative_total <= MAX_UNITS:
            raise SettlementError("epochs count from 1, and their totals are between 0 and 2^128 − 1 token units")
        if self.root is not None and len(self.root) != HASH_BYTES:
            raise SettlementError(f"the root of an epoch has {HASH_BYTES} bytes, not {len(self.root)}")


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The log as the chain knows it: its size and its RFC 6962 root."""

    size: int
    root: bytes

    def __post_init__(self) -> None:
        _check_log(self.size, self.root)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where the distributor stands. Amounts in token units; epochs 0 and anchor None before the first."""

    owner: str
    pending_owner: str | None
    token: str
    token_decimals: int
    timelock_s: int
    funded: int
    claimed: int
    latest_epoch: int
    current_epoch: int
    anchor: Anchor | None


class Distributor:
    """The contract at an address, on the chain behind an endpoint; `open` and `deploy` make one."""

    def __init__(self, chain: Chain, address: str) -> None:
        self.chain = chain
        self.address = address
        self._contract = chain.web3.eth.contract(address=address, abi=artefact()["abi"])  # type: ignore[call-overload]
        self.functions: Any = self._contract.functions

    @classmethod
    def open(
        cls,
        url: str,
        address: str,
        *,
        key: ChainKey | None = None,
        chain_id: int | None = None,
        timeout_s: float = 120.0,
    ) -> Distributor:
        """Find the contract that was deployed at an address. chain_id: which chain it has to be.

        Raises ChainError when the endpoint is of another chain, or no contract is there. Without a key it only reads.
        """
        chain = _chain(url, key, timeout_s)
        raw = from_address(address)
        if chain_id is not None and chain.chain_id != chain_id:
            raise ChainError(f"the endpoint is of chain {chain.chain_id}, not of {chain_id}")
        if not chain.ask(lambda: chain.web3.eth.get_code(raw)):  # type: ignore[arg-type]
            raise ChainError(f"there is no contract at {address} on chain {chain.chain_id}")
        distributor = cls(chain, address)
        try:
            chain.call(distributor.functions.latestEpoch())
        except ChainError as error:
            raise ChainError(f"the contract at {address} is no distributor: {error}") from error
        return distributor

    @classmethod
    def deploy(
        cls, url: str, *, token: str, timelock_s: int, key: ChainKey, owner: str | None = None, timeout_s: float = 120.0
    ) -> Distributor:
        """Create a distributor of a token. owner: who may post, by default the key's own address.

        timelock_s: between an hour and 30 days. Raises ChainError.
        """
        chain = _chain(url, key, timeout_s)
        for each in (token, owner or key.address):
            from_address(each)
        compiled = artefact()
        factory: Any = chain.web3.eth.contract(abi=compiled["abi"], bytecode=compiled["bytecode"])
        sent = chain.send(factory.constructor(token, owner or key.address, timelock_s))
        if sent.contract is None:
            raise ChainError(f"transaction {sent.transaction} created no contract")
        return cls(chain, sent.contract)

    @cached_property
    def token(self) -> str:
        """The address of the token that claims are paid in."""
        return str(self.chain.call(self.functions.token()))

    def standing(self) -> Standing:
        """Read where the contract stands."""
        of, call = self.functions, self.chain.call
        size, root = call(of.latestAnchor())
        pending = call(of.pendingOwner())
        return Standing(
            owner=call(of.owner()),
            pending_owner=pending if int(pending, 16) else None,
            token=self.token,
            token_decimals=call(self._token().decimals()),
            timelock_s=call(of.timelock()),
            funded=call(of.totalFunded()),
            claimed=call(of.totalClaimed()),
            latest_epoch=call(of.latestEpoch()),
            current_epoch=call(of.currentEpoch()),
            anchor=Anchor(size=size, root=root) if size else None,
        )

    def epoch(self, number: int) -> Epoch | None:
        """Read an epoch, waiting or not; None for one that was not posted, or was revoked."""
        root, total, log_size, claimable_at_s = self.chain.call(self.functions.epochs(number))
        if not claimable_at_s:
            return None
        log_root = self.chain.call(self.functions.logRootAt(log_size))
        return Epoch(
            number=number,
            root=root if root != _NO_HASH else None,
            cumulative_total=total,
            log_size=log_size,
            log_root=log_root,
            claimable_at_s=claimable_at_s,
        )

    def claimed(self, account: str) -> int:
        """Read what an address has been paid so far, in token units."""
        from_address(account)
        return int(self.chain.call(self.functions.claimed(account)))

    def log_root_at(self, size: int) -> bytes | None:
        """Read the log's root at a size that was posted or anchored; None for other sizes."""
        root: bytes = self.chain.call(self.functions.logRootAt(size))
        return root if root != _NO_HASH else None

    def balance(self, account: str) -> int:
        """Read how many units of the token an address holds."""
        return int(self.chain.call(self._token().balanceOf(account)))

    def post(self, epoch: Epoch) -> Sent | None:
        """Post an epoch; None when the chain already holds it. Raises ChainError, also when it holds another one."""

        def posted() -> bool:
            held = self.epoch(epoch.number)
            if held is not None and held != epoch:
                raise ChainError(f"the chain holds another epoch {epoch.number}: {_show(held)}, not {_show(epoch)}")
            return held is not None

        return self._once(
            posted,
            self.functions.post(
                epoch.number, epoch.root or _NO_HASH, epoch.cumulative_total, epoch.log_size, epoch.log_root
            ),
        )

    def revoke(self, number: int) -> Sent | None:
        """Take back the latest epoch while its timelock runs; None when the chain holds none of that number."""
        return self._once(lambda: self.epoch(number) is None, self.functions.revoke(number))

    def claim(self, claim: Claim) -> Sent | None:
        """Have an address paid; None when it has had all of this amount. Whoever signs pays the gas, not the account.

        Raises ProofError for a claim that contradicts itself, ChainError when the contract refuses it: the root waits
        out its timelock or was followed by another, or the funds do not reach.
        """
        claim.verify()
        try:
            return self._once(
                lambda: self.claimed(claim.account) >= claim.cumulative,
                self.functions.claim(claim.account, claim.cumulative, claim.root, list(claim.proof)),
            )
        except ChainError as error:
            waiting = self._waiting(claim.root) if error.error == "RootNotCurrent" else None
            if waiting is None:
                raise
            time = datetime.fromtimestamp(waiting.claimable_at_s or 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise ChainError(
                f"epoch {waiting.number} waits out its timelock: claims open at {time}", error=error.error
            ) from error

    def fund(self, total: int) -> Sent | None:
        """Bring the tokens ever funded up to a total, from the key's own address; None when they are there.

        Lets the contract take exactly what is missing, and sends it.
        """
        missing = total - int(self.chain.call(self.functions.totalFunded()))
        if missing <= 0:
            return None
        if self.chain.key is None:
            raise ChainError("no key to fund from: set one")
        token = self._token()
        if self.chain.call(token.allowance(self.chain.key.address, self.address)) < missing:
            self.chain.send(token.approve(self.address, missing))
        return self._once(
            lambda: int(self.chain.call(self.functions.totalFunded())) >= total, self.functions.fund(missing)
        )

    def anchor(self, anchor: Anchor) -> Sent | None:
        """Record the log's size and root; None when the chain already holds them.

        Raises ChainError when it holds another root at this size, which is a fork of the log, or a larger log.
        """
        return self._once(
            lambda: self.log_root_at(anchor.size) == anchor.root, self.functions.anchor(anchor.size, anchor.root)
        )

    def _token(self) -> Any:
        return self.chain.web3.eth.contract(address=self.token, abi=_TOKEN_ABI).functions  # type: ignore[call-overload]

    def _waiting(self, root: bytes) -> Epoch | None:
        """Return the epoch of this root that no one can claim against yet, None when there is none."""
        current, latest = (int(self.chain.call(self.functions[name]())) for name in ("currentEpoch", "latestEpoch"))
        epochs = (self.epoch(number) for number in range(latest, current, -1))
        return next((epoch for epoch in epochs if epoch is not None and epoch.root == root), None)

    def _once(self, done: Callable[[], bool], function: Any) -> Sent | None:
        """Send unless it is done; when sending fails, look whether another, or a lost attempt, has done it."""
        if done():
            return None
        try:
            return self.chain.send(function)
        except ChainError:
            if done():
                return None
            raise


def _chain(url: str, key: ChainKey | None, timeout_s: float) -> Chain:
    return Chain(url, key=key, timeout_s=timeout_s, abi=[*artefact()["abi"], *_TOKEN_ABI], hints=_HINTS)


def _check_log(size: int, root: bytes) -> None:
    if not 0 <= size <= MAX_COUNT or len(root) != HASH_BYTES:
        raise SettlementError(f"the log has a size between 0 and 2^63 − 1, and a root of {HASH_BYTES} bytes")


def _show(epoch: Epoch) -> str:
    root = epoch.root.hex() if epoch.root else "none"
    return f"root {root}, total {epoch.cumulative_total}, log {epoch.log_size} {epoch.log_root.hex()}"
