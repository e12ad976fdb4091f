"""The signature by which an address says whose payouts it takes (EIP-712). Needs the extra `chain`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eth_hash.auto import keccak as keccak256

from ledger_client.addresses import AddressError, from_address, to_address
from ledger_client.ethereum import BadSignature, Signature, ValidationError, encode_typed_data

_SIGNATURE = re.compile(r"0x[0-9a-f]{130}")
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0  # of secp256k1
_MAX_SAFE_INTEGER = 2**53 - 1  # wallets read the typed data as JSON

_TYPES = {
    "EIP712Domain": [
        {"name": "name", "type": "string"},
        {"name": "version", "type": "string"},
        {"name": "chainId", "type": "uint256"},
        {"name": "verifyingContract", "type": "address"},
    ],
    "PayoutAddress": [
        {"name": "contributor", "type": "string"},
        {"name": "log", "type": "string"},
        {"name": "account", "type": "address"},
        {"name": "nonce", "type": "uint256"},
    ],
}


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What a contributor signs with the key of an address: pay me there.

    log: the origin of the log that keeps the accounts. account: the address, by EIP-55. nonce: rises with each binding
    of this contributor, so that an old one cannot be played again. chain_id and contract: the distributor that pays.
    """

    contributor: str
    log: str
    account: str
    nonce: int
    chain_id: int
    contract: str

    def __post_init__(self) -> None:
        from_address(self.account)
        from_address(self.contract)
        if not self.contributor or not self.log:
            raise AddressError("a binding names a contributor and a log")
        if not 0 <= self.nonce <= _MAX_SAFE_INTEGER or not 1 <= self.chain_id <= _MAX_SAFE_INTEGER:
            raise AddressError("the nonce is between 0 and 2^53 − 1, and the chain id between 1 and that")

    def typed_data(self) -> dict[str, Any]:
        """Return the JSON object that a wallet takes in `eth_signTypedData_v4`."""
        return {
            "types": _TYPES,
            "primaryType": "PayoutAddress",
            "domain": {
                "name": "Tributary",
                "version": "1",
                "chainId": self.chain_id,
                "verifyingContract": self.contract,
            },
            "message": {
                "contributor": self.contributor,
                "log": self.log,
                "account": self.account,
                "nonce": self.nonce,
            },
        }

    def digest(self) -> bytes:
        """Return the 32 bytes that the signature is over."""
        return typed_data_digest(self.typed_data())

    def verify(self, signature: str) -> None:
        """Raise AddressError unless the key of `account` made this signature: 0x and 130 hex digits (r, s, v)."""
        signer = recover(self.digest(), signature)
        if signer != self.account:
            raise AddressError(f"the binding of {self.account} was signed by {signer}, or for another contributor")


def typed_data_digest(typed_data: Mapping[str, Any]) -> bytes:
    """Hash structured data as EIP-712 has it signed. Raises AddressError when it does not fit its own types."""
    try:
        signable = encode_typed_data(full_message=dict(typed_data))
    except Exception as error:  # the encoder raises whatever its parts do
        raise AddressError(f"the typed data cannot be hashed: {error}") from error
    return bytes(keccak256(b"\x19" + signable.version + signable.header + signable.body))


def recover(digest: bytes, signature: str) -> str:
    """Return the address whose key signed 32 bytes, by EIP-55.

    signature: 0x and 130 lowercase hex digits: r, s in the lower half of the order, and v, which is 27 or 28; thus a
    signature has one spelling. Raises AddressError.
    """
    if not _SIGNATURE.fullmatch(signature):
        raise AddressError("a signature is 0x and 130 lowercase hex digits: r, s and v")
    raw = bytes.fromhex(signature[2:])
    r, s, v = int.from_bytes(raw[:32]), int.from_bytes(raw[32:64]), raw[64]
    if v not in {27, 28} or not 0 < s <= _HALF_ORDER:
        raise AddressError(
            "a signature ends in 27 or 28 (1b or 1c), and its s is in the lower half of the curve's order"
        )
    try:
        key = Signature(vrs=(v - 27, r, s)).recover_public_key_from_msg_hash(digest)
    except (BadSignature, ValidationError) as error:
        raise AddressError(f"no key can have made this signature: {error}") from error
    return to_address(key.to_canonical_address())
