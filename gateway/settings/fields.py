"""What the values of the configuration may be: types that pydantic checks, each with its reason in words."""

from __future__ import annotations

import re
from typing import Annotated

import sqlalchemy as sa
from pydantic import AfterValidator, StringConstraints

from gateway.identifiers import ADAPTER_NAME, ADAPTER_VERSION
from ledger_client import Verifier, WitnessVerifier, from_address
from metering import Price

DATABASES = ("sqlite", "postgresql")


def _whole(pattern: str) -> StringConstraints:
    """Text that a pattern matches from its first character to its last; pydantic alone would search for it."""
    return StringConstraints(pattern=f"^(?:{pattern})$")


def _is_database(value: str) -> str:
    try:
        url = sa.make_url(value)
    except sa.exc.ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in DATABASES:
        raise ValueError("it must be a database's URL: sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME")
    if url.get_backend_name() == "sqlite" and (not url.database or url.database.startswith((":memory:", "file:"))):
        raise ValueError("it must name a file, as sqlite:///tributary.db does; books in memory end with the process")
    return value


def _is_price(value: str) -> str:
    Price.parse(prompt=value, completion=value)
    return value


def _is_verifier_key(value: str) -> str:
    return Verifier.parse(value).verifier_key


def nano_from_usd(value: str) -> int:
    """Read USD as whole nano-USD. Raises ValueError on a sign, an exponent, or more than nine decimals."""
    match = re.fullmatch(r"(0|[1-9][0-9]{0,9})(?:\.([0-9]{1,9}))?", value)
    if match is None:
        raise ValueError('it must be USD as a string with at most 9 decimals, such as "5.00"')
    whole, decimals = match.groups()
    return int(whole) * 10**9 + int((decimals or "").ljust(9, "0"))


def _is_usd(value: str) -> str:
    nano_from_usd(value)
    return value


def _is_address(value: str) -> str:
    from_address(value)
    return value


def _is_witness_key(value: str) -> str:
    WitnessVerifier.parse(value)
    return value


UsdAmount = Annotated[str, AfterValidator(_is_usd)]
EvmAddress = Annotated[str, AfterValidator(_is_address)]
Name = Annotated[str, _whole(r"[a-z0-9][a-z0-9._-]{0,62}")]
AdapterReference = Annotated[str, _whole(f"{ADAPTER_NAME}(?:@{ADAPTER_VERSION})?")]
GatewayId = Annotated[str, _whole(r"[a-z0-9][a-z0-9-]{0,62}")]
Origin = Annotated[str, _whole(r"[^\s+\x00-\x1f\x7f]{1,255}")]
DatabaseUrl = Annotated[str, AfterValidator(_is_database)]
Decimals = Annotated[str, AfterValidator(_is_price)]
VerifierKey = Annotated[str, AfterValidator(_is_verifier_key)]
WitnessKey = Annotated[str, AfterValidator(_is_witness_key)]
Sha256 = Annotated[str, _whole(r"[0-9a-f]{64}")]
HttpUrl = Annotated[str, _whole(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")]
