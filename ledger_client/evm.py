"""One EVM chain behind a JSON-RPC endpoint: reading, and sending transactions whose outcome is known at the end.

Needs the extra `chain`. Endpoints often carry a secret in their address, so no message here repeats one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ledger_client.addresses import to_address
from ledger_client.ethereum import (
    Account,
    ContractConstructor,
    ContractFunction,
    ContractLogicError,
    ExtraDataToPOAMiddleware,
    HTTPProvider,
    PrivateKey,
    TxParams,
    TxReceipt,
    Web3,
    Web3RPCError,
    abi_to_signature,
    function_signature_to_4byte_selector,
    requests,
)
from ledger_client.keys import KeyFileError, load_key
from ledger_client.settlement import ChainError

_T = TypeVar("_T")
_KEY = re.compile(r"0x[0-9a-f]{64}")
_KNOWN = re.compile(r"(?i)already known|already imported|known transaction")  # what nodes say of one they have
_REQUEST_TIMEOUT_S = 20.0
_GAS_MARGIN_PERCENT = 20  # the state may have changed between the estimate and the block


@dataclass(frozen=True, kw_only=True)
class ChainKey:
    """The private key that transactions are signed with."""

    secret: bytes = field(repr=False)

    @property
    def address(self) -> str:
        """The address that the key holds, by EIP-55."""
        return to_address(PrivateKey(self.secret).public_key.to_canonical_address())

    @classmethod
    def parse(cls, text: str) -> ChainKey:
        """Read 0x and 64 lowercase hex digits. Raises KeyFileError."""
        if not _KEY.fullmatch(text):
            raise KeyFileError("a chain key is 0x and 64 lowercase hex digits")
        key = cls(secret=bytes.fromhex(text[2:]))
        try:
            Account.from_key(key.secret)
        except Exception:  # whatever the curve's code raises
            raise KeyFileError("a chain key is between 1 and the order of secp256k1") from None
        return key

    @classmethod
    def load(cls, path: Path) -> ChainKey:
        """Read a key file. Raises KeyFileError when there is none, others may read it, or it holds no key."""
        return load_key(path, cls.parse, "chain key")

    @classmethod
    def from_environment(cls, name: str) -> ChainKey:
        """Read the key from an environment variable. Raises KeyFileError."""
        text = os.environ.get(name)
        if text is None:
            raise KeyFileError(f"the environment variable {name} is not set")
        try:
            return cls.parse(text)
        except KeyFileError as error:
            raise KeyFileError(f"{name} holds no chain key: {error}") from None

    def sign_typed_data(self, typed_data: Mapping[str, Any]) -> str:
        """Return the EIP-712 signature of this key: 0x and 130 hex digits."""
        signed = Account.sign_typed_data(self.secret, full_message=dict(typed_data))
        return f"0x{signed.signature.hex()}"


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A transaction that a block took in and that did what was asked. transaction: its hash, 0x and 64 hex digits."""

    transaction: str
    block: int
    gas_used: int
    contract: str | None = None


class Chain:
    """An endpoint, and what errors of the contracts on it are called.

    key: what signs; None reads only. timeout_s: how long to wait for a block to take a transaction in. abi: items whose
    errors are to be named. hints: what to do about an error, by its name.
    """

    def __init__(
        self,
        url: str,
        *,
        key: ChainKey | None = None,
        timeout_s: float = 120.0,
        abi: Iterable[Any] = (),
        hints: Mapping[str, str] | None = None,
    ) -> None:
        self.web3 = Web3(HTTPProvider(url, request_kwargs={"timeout": _REQUEST_TIMEOUT_S}))
        # Chains of authority put their signatures where others have 32 bytes.
        self.web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
        self.key = key
        self.timeout_s = timeout_s
        self._errors = {
            bytes(function_signature_to_4byte_selector(abi_to_signature(item))): item
            for item in abi
            if item.get("type") == "error"
        }
        self._hints = hints or {}
        self.chain_id = self.ask(lambda: self.web3.eth.chain_id)

    def ask(self, read: Callable[[], _T]) -> _T:
        """Return what a read gives. Raises ChainError for every way in which it can fail."""
        try:
            return read()
        except ContractLogicError as error:
            raise self._refused(error) from error
        except requests.RequestException as error:
            raise ChainError(f"the chain's endpoint does not answer: {type(error).__name__}") from None
        except Web3RPCError as error:
            raise ChainError(f"the chain's endpoint refuses: {_reason(error)}") from error
        except Exception as error:  # web3 takes replies apart as it trusts them to be, and raises what comes of it
            raise ChainError(f"the chain's endpoint gives no sound answer: {_reason(error)}") from error

    def call(self, function: ContractFunction) -> Any:
        """Return what a view gives."""
        return self.ask(function.call)

    def send(self, function: ContractFunction | ContractConstructor) -> Sent:
        """Sign and send a call, and wait until a block has taken it in.

        Raises ChainError when it would fail (then nothing is sent), when it failed, or when no block took it in within
        timeout_s; then it may still come.
        """
        if (key := self.key) is None:
            raise ChainError("no key to sign transactions with: set one")
        signed = self.ask(lambda: self._sign(function, key))
        reply: Exception | None = None
        try:
            self.web3.eth.send_raw_transaction(signed.raw_transaction)
        except Web3RPCError as error:
            if not _KNOWN.search(str(error)):
                raise ChainError(f"the chain's endpoint refuses: {_reason(error)}") from error
        except ContractLogicError as error:
            raise self._refused(error) from error
        except Exception as error:  # the transaction may have landed although its reply was lost or garbled
            reply = error
        receipt = self._await(signed.hash, reply)
        if receipt["status"] != 1:
            # Run it again to hear why: the receipt does not say.
            self.ask(lambda: function.estimate_gas({"from": key.address}))
            raise ChainError(f"transaction 0x{signed.hash.hex()} failed, and would not any more; try again")
        return Sent(
            transaction="0x" + signed.hash.hex(),
            block=receipt["blockNumber"],
            gas_used=receipt["gasUsed"],
            contract=receipt["contractAddress"],
        )

    def _sign(self, function: ContractFunction | ContractConstructor, key: ChainKey) -> Any:
        sender: Any = key.address
        options: TxParams = {
            "from": sender,
            "chainId": self.chain_id,
            "nonce": self.web3.eth.get_transaction_count(sender, "pending"),
        }
        if "baseFeePerGas" not in self.web3.eth.get_block("latest"):
            options["gasPrice"] = self.web3.eth.gas_price
        gas = function.estimate_gas(options)
        options["gas"] = gas + gas * _GAS_MARGIN_PERCENT // 100
        return Account.sign_transaction(dict(function.build_transaction(options)), key.secret)

    def _await(self, transaction: Any, reply: Exception | None) -> TxReceipt:
        try:
            return self.web3.eth.wait_for_transaction_receipt(transaction, timeout=self.timeout_s)
        except Exception:  # whatever it is, the transaction is under way
            lost = f"; its sending ended in {type(reply).__name__}" if reply else ""
            raise ChainError(
                f"no block took in transaction 0x{transaction.hex()} within {self.timeout_s:g} s{lost}; "
                "it may still come, and the same command can be given again"
            ) from None

    def _refused(self, error: ContractLogicError) -> ChainError:
        """Name what a contract reverted with, by its own custom error where it is one."""
        data = error.data if isinstance(error.data, str) else ""
        raw = bytes.fromhex(data[2:]) if re.fullmatch(r"0x([0-9a-f]{2})+", data) else b""
        item = self._errors.get(raw[:4])
        if item is None:
            return ChainError(f"the contract refuses: {_reason(error)}")
        types = [each["type"] for each in item["inputs"]]
        values = self.web3.codec.decode(types, raw[4:])
        said = ", ".join(f"{each['name']} {_show(value)}" for each, value in zip(item["inputs"], values, strict=True))
        name = item["name"]
        hint = f": {self._hints[name]}" if name in self._hints else ""
        return ChainError(f"the contract refuses with {name}{hint}{f' ({said})' if said else ''}", error=name)


def _reason(error: Exception) -> str:
    message = getattr(error, "message", None)
    return str(message or error)[:300]


def _show(value: Any) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, str) and value.startswith("0x"):
        return to_address(bytes.fromhex(value[2:]))
    return str(value)
