"""The objects that one gateway process is made of, built in `gateway/app.py` and handed to every route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from gateway.attributing import Attributor
from gateway.auth import KeyRing, Principal
from gateway.catalogue import Catalogue
from gateway.embeddings import Embeddings
from gateway.engines import Engine
from gateway.metrics import Metrics
from gateway.pipeline import Pipeline
from gateway.registry import Registry
from gateway.reload import Reloader
from gateway.routing.names import Router
from gateway.settings import Settings
from gateway.transactions import Transactions
from ledger_client import Log, Signer
from metering import Books


@dataclass(frozen=True, kw_only=True, eq=False)
class Gateway:
    """Everything a route may use. settings: as at the start; what a reload changes since is the router's."""

    settings: Settings
    transactions: Transactions
    keys: KeyRing
    signer: Signer
    log: Log
    books: Books
    registry: Registry
    router: Router
    reloader: Reloader
    engine: Engine
    metrics: Metrics
    pipeline: Pipeline
    attributor: Attributor
    embeddings: Embeddings

    @property
    def catalogue(self) -> Catalogue:
        """The models that are served now."""
        return self.router.names.catalogue


async def _gateway(request: Request) -> Gateway:  # a function that is not async would be run in a thread
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayState = Annotated[Gateway, Depends(_gateway)]


async def _principal(
    gateway: GatewayState, authorization: Annotated[str | None, Header(include_in_schema=False)] = None
) -> Principal:
    return await gateway.keys.principal(authorization)


KeyHolder = Annotated[Principal, Depends(_principal)]
