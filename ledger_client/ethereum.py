"""What is taken from the libraries of the extra `chain`, in one place because of what importing them does."""

from __future__ import annotations

import sys

_limit = sys.getrecursionlimit()
try:
    import requests
    from eth_account import Account
    from eth_account.messages import encode_typed_data
    from eth_keys.datatypes import PrivateKey, Signature
    from eth_keys.exceptions import BadSignature
    from eth_utils.abi import abi_to_signature, function_signature_to_4byte_selector
    from eth_utils.exceptions import ValidationError
    from web3 import HTTPProvider, Web3
    from web3.contract.contract import ContractConstructor, ContractFunction
    from web3.exceptions import ContractLogicError, Web3RPCError
    from web3.middleware import ExtraDataToPOAMiddleware
    from web3.types import TxParams, TxReceipt
except ImportError as error:
    raise ImportError("chains and their addresses need the extra: pip install 'tributary-gateway[chain]'") from error
finally:
    # One of them (py_ecc) raises the limit to 100,000, with which JSON of many brackets overflows the stack and kills
    # the process instead of raising RecursionError.
    sys.setrecursionlimit(_limit)

__all__ = [
    "Account",
    "BadSignature",
    "ContractConstructor",
    "ContractFunction",
    "ContractLogicError",
    "ExtraDataToPOAMiddleware",
    "HTTPProvider",
    "PrivateKey",
    "Signature",
    "TxParams",
    "TxReceipt",
    "ValidationError",
    "Web3",
    "Web3RPCError",
    "abi_to_signature",
    "encode_typed_data",
    "function_signature_to_4byte_selector",
    "requests",
]
