"""What a contributor does to be paid on chain: bind an address, fetch a claim."""

from __future__ import annotations

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.contributors import readable
from gateway.api.described import COMMITS, NEEDS_A_KEY, replies
from gateway.errors import BadRequestError, NotFoundError
from gateway.payout_addresses import NoChainError, PayoutAddresses
from gateway.state import Gateway, GatewayState, KeyHolder
from ledger_client import AddressError, SettlementError
from metering import MeteringError, Transaction, payout_addresses

router = APIRouter(
    prefix="/v1/contributors/{contributor}",
    tags=["Contributors"],
    responses=replies(*NEEDS_A_KEY, *COMMITS, NotFoundError, statuses=(400,)),
)


class NewAddress(BaseModel):
    """An address and the signature by which it takes a contributor's payouts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: Annotated[str, Field(max_length=42)]
    nonce: Annotated[int, Field(strict=True, ge=0, le=2**53 - 1)]
    signature: Annotated[str, Field(max_length=132)]


@router.get("/payout-address")
async def read_address(
    contributor: str,
    gateway: GatewayState,
    principal: KeyHolder,
    address: Annotated[str | None, Query(max_length=42, description="one to bind; what it signs is returned")] = None,
) -> dict[str, Any]:
    """The address that a contributor is paid at and, for an address to bind next, the EIP-712 data that it signs."""
    who = await readable(gateway, contributor, principal)
    addresses = PayoutAddresses.of(gateway.settings)

    def read(connection: sa.Connection) -> dict[str, Any]:
        found: dict[str, Any] = {"contributor": who, "address": payout_addresses(connection).get(who)}
        if address is not None:
            binding = addresses.next_binding(connection, who, address)
            found |= {"nonce": binding.nonce, "to_sign": binding.typed_data()}
        return found

    try:
        return await gateway.transactions.read(read)
    except AddressError as error:
        raise BadRequestError(str(error), "address") from None
    except NoChainError as error:
        raise NotFoundError(str(error)) from None


@router.put("/payout-address")
async def bind(contributor: str, new: NewAddress, gateway: GatewayState, principal: KeyHolder) -> dict[str, Any]:
    """Be paid at an address from now on. The contributor's own key alone may ask for it."""
    principal.require("contributor")
    who = await readable(gateway, contributor, principal)
    return await _bind(gateway, who, new)


async def _bind(gateway: Gateway, who: str, new: NewAddress) -> dict[str, Any]:
    addresses = PayoutAddresses.of(gateway.settings)

    def commit(transaction: Transaction) -> int:
        return addresses.bind(gateway.books, transaction, who, new.address, nonce=new.nonce, signature=new.signature)

    try:
        log_index = await gateway.transactions.commit("payout_address", commit)
    except (AddressError, MeteringError) as error:
        raise BadRequestError(str(error)) from None
    except NoChainError as error:
        raise NotFoundError(str(error)) from None
    return {"contributor": who, "address": new.address, "nonce": new.nonce, "log_index": log_index}


@router.get("/claim")
async def read_claim(
    contributor: str,
    gateway: GatewayState,
    principal: KeyHolder,
    epoch: Annotated[int | None, Query(ge=1, le=2**31, description="absent, the newest settled")] = None,
) -> dict[str, Any]:
    """What the contributor's address shows to the distributor: its cumulative amount and the proof of it."""
    who = await readable(gateway, contributor, principal)
    addresses = PayoutAddresses.of(gateway.settings)
    try:
        return await gateway.transactions.read(lambda c: addresses.claim(c, gateway.log, who, epoch))
    except SettlementError as error:
        raise NotFoundError(str(error)) from None
