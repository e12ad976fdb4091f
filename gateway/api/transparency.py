"""The transparency log, for anyone: checkpoint, tiles and entry bundles as c2sp.org/tlog-tiles has them."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from gateway.api.described import replies
from gateway.errors import NotFoundError
from gateway.published import PublishedLog
from gateway.transactions import DatabaseUnavailableError
from ledger_client import NotInLog, Tile, TileError

router = APIRouter(prefix="/log", tags=["Transparency log"], responses=replies(DatabaseUnavailableError))

_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}


@router.get("/checkpoint", response_class=PlainTextResponse)
async def checkpoint(published: PublishedLog) -> PlainTextResponse:
    """The newest checkpoint that a quorum of witnesses has cosigned; the newest of all where there is none."""
    return PlainTextResponse(await published.reads.read(published.log.published), headers={"cache-control": "no-cache"})


@router.get("/key", response_class=PlainTextResponse)
async def key(published: PublishedLog) -> PlainTextResponse:
    """The verifier key. Whoever checks receipts should have it from elsewhere too."""
    return PlainTextResponse(published.verifier_key + "\n")


@router.get(
    "/tile/{path:path}", response_class=Response, responses=replies(NotFoundError, forms=("application/octet-stream",))
)
async def tile(path: str, published: PublishedLog) -> Response:
    """A tile of hashes or a bundle of entries. What is served once never changes."""

    def read(connection: sa.Connection) -> bytes:
        named = Tile.parse(f"tile/{path}")
        if named.level is None:
            return published.log.entry_bundle(connection, named.number, named.width)
        return published.log.tile(connection, named.level, named.number, named.width)

    try:
        content = await published.reads.read(read)
    except (TileError, NotInLog) as error:
        raise NotFoundError(str(error)) from None
    return Response(content, media_type="application/octet-stream", headers=_FOR_EVER)
