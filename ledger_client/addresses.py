"""The spelling of an address on an EVM chain (EIP-55): one, whose capitals are a checksum."""

from __future__ import annotations

import re

from eth_hash.auto import keccak as keccak256

ADDRESS_BYTES = 20

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


class AddressError(ValueError):
    """An address in another spelling than EIP-55, or a binding that its address did not sign."""


def to_address(raw: bytes) -> str:
    """Spell an address of 20 bytes as EIP-55 does: 0x and 40 hex digits whose capitals are a checksum."""
    if len(raw) != ADDRESS_BYTES:
        raise AddressError(f"an address has {ADDRESS_BYTES} bytes, not {len(raw)}")
    digits = raw.hex()
    checksum = keccak256(digits.encode()).hex()
    return "0x" + "".join(a.upper() if int(c, 16) >= 8 else a for a, c in zip(digits, checksum, strict=False))


def from_address(text: str) -> bytes:
    """Read what `to_address` writes. Raises AddressError on any other spelling, and on the zero address.

    Addresses without capitals carry no checksum, so that a slip of the hand in one would pay a stranger.
    """
    if not _ADDRESS.fullmatch(text):
        raise AddressError(f"an address is 0x and 40 hex digits, not {text!r:.60}")
    raw = bytes.fromhex(text[2:])
    if to_address(raw) != text:
        raise AddressError(
            f"the capitals of {text} are not its EIP-55 checksum; copy the address as the wallet shows it"
        )
    if not any(raw):
        raise AddressError("nobody holds the zero address")
    return raw
