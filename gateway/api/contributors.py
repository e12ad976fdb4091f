"""What a contributor reads: earnings, entries, statements. Another contributor's are as if they did not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import sqlalchemy as sa
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import HTMLResponse, JSONResponse

from gateway.api.described import NEEDS_A_KEY, replies
from gateway.api.negotiation import best
from gateway.auth import Principal
from gateway.errors import BadRequestError, NotFoundError
from gateway.registry import RegistryError
from gateway.state import Gateway, GatewayState, KeyHolder
from metering import Grouping, MeteringError, earnings, entries, statement

T = TypeVar("T")
_FORMS = ("application/json", "text/csv", "text/html")
# The page has a style of its own and nothing else: no script, no image, nothing from elsewhere.
_PAGE = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
router = APIRouter(
    prefix="/v1/contributors/{contributor}",
    tags=["Contributors"],
    responses=replies(*NEEDS_A_KEY, NotFoundError, statuses=(400,)),
)


async def _query(gateway: Gateway, read: Callable[[sa.Connection], T]) -> T:
    """Run a query whose period, grouping or cursor the client gave; what is wrong with them is the client's to mend."""
    try:
        return await gateway.transactions.read(read)
    except MeteringError as error:
        raise BadRequestError(str(error)) from None


async def readable(gateway: Gateway, contributor: str, principal: Principal) -> str:
    """The contributor's id, `me` resolved, if the key may read it."""
    principal.require("contributor", "operator")
    own = principal.subject if principal.role == "contributor" else None
    if contributor == "me" and own is not None:
        return own
    if own is not None and contributor != own:
        raise NotFoundError(f"there is no contributor {contributor!r} that this key may see")
    try:
        found = await gateway.transactions.read(lambda c: gateway.registry.contributor(c, contributor))
    except RegistryError:
        raise NotFoundError(f"there is no contributor {contributor!r}") from None
    return found.id


@router.get("/earnings")
async def read_earnings(
    contributor: str,
    gateway: GatewayState,
    principal: KeyHolder,
    period: Annotated[str | None, Query(description="a month in UTC, YYYY-MM; absent, ever")] = None,
    group_by: Annotated[Grouping | None, Query()] = None,
) -> dict[str, Any]:
    """What a contributor earned, and by what."""
    who = await readable(gateway, contributor, principal)
    return (await _query(gateway, lambda c: earnings(c, who, period, group_by))).as_json()


@router.get("/entries")
async def read_entries(
    contributor: str,
    gateway: GatewayState,
    principal: KeyHolder,
    after: Annotated[str | None, Query(description="the next_after of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """A contributor's postings, newest last, each with its log index."""
    who = await readable(gateway, contributor, principal)
    return (await _query(gateway, lambda c: entries(c, who, after, limit))).as_json()


@router.get("/statements/{period}", responses=replies(statuses=(406,), forms=_FORMS))
async def read_statement(
    contributor: str,
    period: str,
    gateway: GatewayState,
    principal: KeyHolder,
    accept: Annotated[list[str] | None, Header(description=", ".join(_FORMS))] = None,
) -> Response:
    """A contributor's account statement for a month: JSON, CSV, or a page to print, by `Accept`."""
    who = await readable(gateway, contributor, principal)
    form = best(None if accept is None else ",".join(accept), _FORMS)
    if form is None:
        raise BadRequestError(f"a statement comes as {', '.join(_FORMS)}", "Accept", "not_acceptable", status=406)
    found = await _query(gateway, lambda c: statement(c, who, period))
    headers = {"vary": "accept", "cache-control": "private, no-cache"}
    if form == "text/csv":
        headers["content-disposition"] = f'attachment; filename="{who}-{period}.csv"'
        return Response(found.as_csv(), media_type="text/csv", headers=headers)
    if form == "text/html":
        name = (await gateway.transactions.read(lambda c: gateway.registry.contributor(c, who))).name
        return HTMLResponse(found.as_html(name), headers=headers | _PAGE)
    return JSONResponse(found.as_json(), headers=headers)
