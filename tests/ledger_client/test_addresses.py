"""Addresses in the vectors of EIP-55, and signatures of them in those of EIP-712."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from eth_hash.auto import keccak as keccak256
from hypothesis import given
from hypothesis import strategies as st

from ledger_client.addresses import AddressError, from_address, to_address
from ledger_client.binding import Binding, recover, typed_data_digest
from ledger_client.evm import ChainKey

# ERC-55: all capitals, all small, and mixed
VECTORS = [
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
    "0xde709f2102306220921060314715629080e2fb77",
    "0x27b1fdb04752bbc536007a920d24acb045561c26",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]

# The example of EIP-712, whose key is the hash of a word.
COW = ChainKey(secret=keccak256(b"cow"))
MAIL: dict[str, Any] = {
    "types": {
        "EIP712Domain": [
            {"name": "name", "type": "string"},
            {"name": "version", "type": "string"},
            {"name": "chainId", "type": "uint256"},
            {"name": "verifyingContract", "type": "address"},
        ],
        "Person": [{"name": "name", "type": "string"}, {"name": "wallet", "type": "address"}],
        "Mail": [
            {"name": "from", "type": "Person"},
            {"name": "to", "type": "Person"},
            {"name": "contents", "type": "string"},
        ],
    },
    "primaryType": "Mail",
    "domain": {
        "name": "Ether Mail",
        "version": "1",
        "chainId": 1,
        "verifyingContract": "0xCcCCccccCCCCcCCCCCCcCcCccCcCCCcCcccccccC",
    },
    "message": {
        "from": {"name": "Cow", "wallet": "0xCD2a3d9F938E13CD947Ec05AbC7FE734Df8DD826"},
        "to": {"name": "Bob", "wallet": "0xbBbBBBBbbBBBbbbBbbBbbbbBBbBbbbbBbBbbBBbB"},
        "contents": "Hello, Bob!",
    },
}
MAIL_DIGEST = "be609aee343fb3c4b28e1df9e632fca64fcfaede20f02e86244efddf30957bd2"
MAIL_SIGNATURE = (
    "0x4355c47d63924e8a72e509b65029052eb6c299d53a04e167c5775fd466751c9d"
    "07299936d304c153f6443dfa05f40ff007d72911b6f72307f996231605b915621c"
)

KEY = ChainKey(secret=b"\x07" * 32)
BINDING = Binding(
    contributor="alice",
    log="example.com/log",
    account=KEY.address,
    nonce=1,
    chain_id=31337,
    contract="0xCcCCccccCCCCcCCCCCCcCcCccCcCCCcCcccccccC",
)
SIGNATURE = KEY.sign_typed_data(BINDING.typed_data())
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.mark.parametrize("address", VECTORS)
def test_vector_checksums(address: str) -> None:
    assert to_address(bytes.fromhex(address[2:])) == address
    assert from_address(address) == bytes.fromhex(address[2:])


@given(st.binary(min_size=20, max_size=20).filter(any), st.integers(2, 41))
def test_an_address_has_one_spelling(raw: bytes, place: int) -> None:
    address = to_address(raw)
    assert from_address(address) == raw
    other = address[:place] + address[place].swapcase() + address[place + 1 :]
    if other != address:
        with pytest.raises(AddressError):
            from_address(other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        VECTORS[4][2:],
        VECTORS[4].lower(),
        VECTORS[4].upper(),
        VECTORS[4] + "\n",
        VECTORS[4] + "0",
        "0x" + "٠" * 40,
        "0x" + "0" * 40,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        from_address(text)


def test_twenty_bytes_and_no_other_number() -> None:
    with pytest.raises(AddressError, match="20 bytes"):
        to_address(bytes(19))


def test_the_mail_of_eip_712() -> None:
    assert typed_data_digest(MAIL).hex() == MAIL_DIGEST
    assert recover(bytes.fromhex(MAIL_DIGEST), MAIL_SIGNATURE) == COW.address == MAIL["message"]["from"]["wallet"]
    assert COW.sign_typed_data(MAIL) == MAIL_SIGNATURE


def test_a_binding_is_hashed_word_for_word_as_the_standard_says() -> None:
    def text(value: str) -> bytes:
        return keccak256(value.encode())

    def word(value: int) -> bytes:
        return value.to_bytes(32)

    domain = keccak256(
        text("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
        + text("Tributary")
        + text("1")
        + word(31337)
        + word(int(BINDING.contract, 16))
    )
    message = keccak256(
        text("PayoutAddress(string contributor,string log,address account,uint256 nonce)")
        + text("alice")
        + text("example.com/log")
        + word(int(BINDING.account, 16))
        + word(1)
    )
    assert BINDING.digest() == keccak256(b"\x19\x01" + domain + message)


def test_a_binding_that_its_address_signed_verifies() -> None:
    BINDING.verify(SIGNATURE)


@pytest.mark.parametrize(
    "change",
    [
        {"contributor": "mallory"},
        {"log": "example.com/other"},
        {"account": ChainKey(secret=b"\x08" * 32).address},
        {"nonce": 2},
        {"chain_id": 1},
        {"contract": VECTORS[4]},
    ],
)
def test_a_signature_binds_nothing_else(change: dict[str, Any]) -> None:
    with pytest.raises(AddressError, match="was signed by"):
        dataclasses.replace(BINDING, **change).verify(SIGNATURE)


@given(st.integers(0, 65 * 8 - 1))
def test_any_flipped_bit_of_a_signature_is_caught(bit: int) -> None:
    raw = bytearray.fromhex(SIGNATURE[2:])
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AddressError):
        BINDING.verify("0x" + raw.hex())


def _other_half(signature: str) -> str:
    """The second signature that every signature comes with: the curve is symmetric."""
    r, s, v = signature[2:66], int(signature[66:130], 16), int(signature[130:], 16)
    return f"0x{r}{ORDER - s:064x}{55 - v:02x}"


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "0x",
        SIGNATURE[2:],
        SIGNATURE.upper(),
        SIGNATURE + "00",
        SIGNATURE[:130] + "00",
        SIGNATURE[:130] + "25",
        _other_half(SIGNATURE),
        "0x" + "00" * 64 + "1b",
        "0x" + "ff" * 64 + "1b",
        f"0x{ORDER:064x}{1:064x}1b",
        f"0x{5:064x}{1:064x}1b",  # no point of the curve has this x
    ],
)
def test_a_signature_has_one_spelling(signature: str) -> None:
    with pytest.raises(AddressError):
        BINDING.verify(signature)


@pytest.mark.parametrize(
    "change",
    [
        {"contributor": ""},
        {"log": ""},
        {"account": KEY.address.lower()},
        {"contract": "0x" + "0" * 40},
        {"nonce": -1},
        {"nonce": 2**53},
        {"chain_id": 0},
    ],
)
def test_a_binding_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(AddressError):
        dataclasses.replace(BINDING, **change)


def test_typed_data_that_does_not_fit_its_types_is_refused() -> None:
    with pytest.raises(AddressError, match="cannot be hashed"):
        typed_data_digest({**MAIL, "message": {"from": 1}})


LIMIT = """
import sys
limit = sys.getrecursionlimit()
import ledger_client.chain
assert sys.getrecursionlimit() == limit
"""
WITHOUT = """
import sys
for name in ("web3", "eth_account", "eth_keys", "requests"):
    sys.modules[name] = None  # an import of it now fails
import ledger_client.settlement
try:
    import ledger_client.chain
except ImportError as error:
    assert "tributary-gateway[chain]" in str(error)
else:
    raise AssertionError
"""


@pytest.mark.parametrize("program", [LIMIT, WITHOUT], ids=["stack stays guarded", "trees need no chain library"])
def test_what_importing_does(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
