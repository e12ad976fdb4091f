"""What a closed period pays on chain: amounts in token units, and the tree whose root lets each address claim its own.

The tree is OpenZeppelin's StandardMerkleTree over (address, uint256): the leaf is keccak256(keccak256(abi.encode(…))),
leaves are sorted by hash, and a node is the hash of its two children in ascending order. The address's amount is
cumulative, all that it was ever due, so that whoever skips a period loses nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from eth_hash.auto import keccak as keccak256

from ledger_client.addresses import from_address
from ledger_client.entries import JSON
from ledger_client.merkle import HASH_BYTES, ProofError

NANO_DECIMALS = 9
MAX_UNITS = 2**128 - 1  # what the distributor counts in

_PERIOD = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")
_UNITS = re.compile(r"[1-9][0-9]{0,38}")
_FORMAT = "tributary-payouts-v1"
_TREE_FORMAT = {"format": "standard-v1", "leafEncoding": ["address", "uint256"]}


class SettlementError(ValueError):
    """Amounts that cannot be paid, or a payout file that is malformed or contradicts itself."""


class ChainError(RuntimeError):
    """The chain did not do what was asked, or cannot be asked. error: the contract's name for it, if it has one."""

    def __init__(self, message: str, *, error: str | None = None) -> None:
        super().__init__(message)
        self.error = error


def token_units(amount_nano: int, token_decimals: int) -> int:
    """Convert nano-USD (≥ 0) to units of a token worth a dollar, rounding down; a dollar has 10^token_decimals units.

    What is rounded away stays on the contributor's account. token_decimals: 0 to 18.
    """
    _check_decimals(token_decimals)
    if amount_nano < 0:
        raise SettlementError(f"a payout is not negative: {amount_nano} nano")
    if token_decimals >= NANO_DECIMALS:
        return amount_nano * int(10 ** (token_decimals - NANO_DECIMALS))
    return amount_nano // int(10 ** (NANO_DECIMALS - token_decimals))


def units_nano(units: int, token_decimals: int) -> int:
    """Convert token units back to nano-USD. Raises SettlementError when they are no whole number of nano-USD."""
    _check_decimals(token_decimals)
    if token_decimals <= NANO_DECIMALS:
        return units * int(10 ** (NANO_DECIMALS - token_decimals))
    amount_nano, rest = divmod(units, int(10 ** (token_decimals - NANO_DECIMALS)))
    if rest:
        raise SettlementError(f"{units} units are no whole number of nano-USD")
    return amount_nano


def payable_nano(amount_nano: int, token_decimals: int) -> int:
    """Return the most nano-USD of an amount that token units can express; the rest is dust."""
    return units_nano(token_units(amount_nano, token_decimals), token_decimals)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an account shows to the distributor: its cumulative token units, and the path from them to the root."""

    account: str
    cumulative: int
    root: bytes
    proof: tuple[bytes, ...]

    def __post_init__(self) -> None:
        from_address(self.account)
        _check_units(self.cumulative)
        if any(len(node) != HASH_BYTES for node in (self.root, *self.proof)):
            raise ProofError(f"the root and every hash of a proof have {HASH_BYTES} bytes")

    def verify(self) -> None:
        """Raise ProofError unless the proof leads from the account and its amount to the root."""
        node = _leaf_hash(self.account, self.cumulative)
        for other in self.proof:
            node = _node_hash(node, other)
        if node != self.root:
            raise ProofError(f"the proof does not lead from {self.account} and {self.cumulative} units to the root")


@dataclass(frozen=True, kw_only=True)
class PayoutTree:
    """The tree over what each address was ever due. amounts: token units (≥ 1) by EIP-55 address, at least one.

    Raises SettlementError, or AddressError for an address in another spelling.
    """

    amounts: Mapping[str, int]
    _nodes: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _places: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.amounts:
            raise SettlementError("a payout tree has at least one leaf")
        # One order for everyone, so that the same amounts make the same file.
        amounts = dict(sorted(self.amounts.items(), key=lambda item: from_address(item[0])))
        for units in amounts.values():
            _check_units(units)
        leaves = sorted((_leaf_hash(account, units), account) for account, units in amounts.items())
        # A heap, root first: the children of node i are 2i + 1 and 2i + 2, and the leaves come last, in reverse.
        last = 2 * len(leaves) - 2
        nodes = [b""] * (last + 1 - len(leaves)) + [leaf for leaf, _ in reversed(leaves)]
        for index in range(last - len(leaves), -1, -1):
            nodes[index] = _node_hash(nodes[2 * index + 1], nodes[2 * index + 2])
        object.__setattr__(self, "amounts", amounts)
        object.__setattr__(self, "_nodes", tuple(nodes))
        object.__setattr__(self, "_places", {account: last - place for place, (_, account) in enumerate(leaves)})
        _check_units(self.cumulative_total)

    @property
    def root(self) -> bytes:
        """The 32 bytes that the distributor is told."""
        return self._nodes[0]

    @cached_property
    def cumulative_total(self) -> int:
        """The sum of all amounts, in token units."""
        return sum(self.amounts.values())

    def claim(self, account: str) -> Claim:
        """Return what an address can claim with. Raises SettlementError for one that is not in the tree."""
        if account not in self.amounts:
            raise SettlementError(f"nothing was ever settled for {account}")
        proof, index = [], self._places[account]
        while index:
            proof.append(self._nodes[index + 1 if index % 2 else index - 1])
            index = (index - 1) // 2
        return Claim(account=account, cumulative=self.amounts[account], root=self.root, proof=tuple(proof))

    def claims(self) -> Iterator[Claim]:
        """Yield every address's claim, ordered by address."""
        return map(self.claim, self.amounts)

    def dump(self) -> dict[str, JSON]:
        """Return the tree in the format that `StandardMerkleTree.load` of OpenZeppelin reads."""
        return {
            **_TREE_FORMAT,
            "tree": [_hex(node) for node in self._nodes],
            "values": [
                {"value": [account, str(units)], "treeIndex": self._places[account]}
                for account, units in self.amounts.items()
            ],
        }

    @classmethod
    def load(cls, dump: JSON) -> PayoutTree:
        """Read what `dump` returns, computing the tree anew. Raises SettlementError on anything else."""
        try:
            amounts = dict(_value(each) for each in dump["values"])  # type: ignore[arg-type, call-overload, index, union-attr]
            tree = cls(amounts=amounts)
        except SettlementError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise SettlementError(
                f"a payout tree is an object in OpenZeppelin's format standard-v1: {error}"
            ) from error
        if tree.dump() != dump:
            raise SettlementError(
                "the hashes of the payout tree are not those of its amounts, or stand in another order"
            )
        return tree


@dataclass(frozen=True, kw_only=True)
class Payouts:
    """What a closed period lets be claimed; the file that contributors get their proofs from.

    period: "YYYY-MM". epoch: counts closed periods from 1. tree: None where no address was ever due anything.
    """

    period: str
    epoch: int
    token_decimals: int
    tree: PayoutTree | None

    def __post_init__(self) -> None:
        _check_decimals(self.token_decimals)
        if not _PERIOD.fullmatch(self.period) or self.epoch < 1:
            raise SettlementError("a period is a month such as 2026-10, and epochs count from 1")

    @property
    def root(self) -> bytes | None:
        """The root of the tree, None where there is none."""
        return self.tree.root if self.tree else None

    @property
    def cumulative_total(self) -> int:
        """All that was ever settled on chain, in token units."""
        return self.tree.cumulative_total if self.tree else 0

    def encode(self) -> bytes:
        """Return the file: one line of JSON. Its member `tree` is OpenZeppelin's own dump."""
        members: dict[str, Any] = {
            "format": _FORMAT,
            "period": self.period,
            "epoch": self.epoch,
            "token_decimals": self.token_decimals,
            "root": _hex(self.root) if self.root else None,
            "cumulative_total": str(self.cumulative_total),
            "tree": self.tree.dump() if self.tree else None,
        }
        return json.dumps(members, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> Payouts:
        """Read what `encode` writes, computing every hash anew. Raises SettlementError on any other bytes."""
        try:
            members = json.loads(raw)
            tree = members["tree"]
            payouts = cls(
                period=members["period"],
                epoch=_whole(members["epoch"]),
                token_decimals=_whole(members["token_decimals"]),
                tree=None if tree is None else PayoutTree.load(tree),
            )
        except SettlementError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SettlementError(f"this is no payout file: {error}") from error
        if payouts.encode() != raw:
            raise SettlementError("the payout file contradicts itself, or is spelled in another way")
        return payouts


def _value(item: Mapping[str, Any]) -> tuple[str, int]:
    account, units = item["value"]
    if not isinstance(units, str) or not _UNITS.fullmatch(units):
        raise SettlementError("amounts are decimal strings of token units, without leading zeros")
    return account, int(units)


def _whole(value: object) -> int:
    if type(value) is not int:  # true and false are numbers to Python, and not to anyone else
        raise SettlementError("the epoch and the token's decimals are whole numbers")
    return value


def _leaf_hash(account: str, units: int) -> bytes:
    encoded = from_address(account).rjust(32, b"\0") + units.to_bytes(32)
    return bytes(keccak256(keccak256(encoded)))


def _node_hash(one: bytes, other: bytes) -> bytes:
    return bytes(keccak256(min(one, other) + max(one, other)))


def _hex(raw: bytes) -> str:
    return "0x" + raw.hex()


def _check_units(units: int) -> None:
    if not 1 <= units <= MAX_UNITS:
        raise SettlementError(f"an amount in the tree is between 1 and 2^128 − 1 token units, not {units}")


def _check_decimals(token_decimals: int) -> None:
    if not 0 <= token_decimals <= 18:
        raise SettlementError(f"a token has between 0 and 18 decimals, not {token_decimals}")
