"""The routes that answer and charge, without what FastAPI does for every request of the others.

They are declared like any route, which documents them, and are called here with the same three arguments. They read
their own bodies and write their own replies, so that matching, dependencies and serialising would be work for nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import errors
from gateway.auth import Principal
from gateway.state import Gateway

Endpoint: TypeAlias = Callable[[Request, Gateway, Principal], Awaitable[Response]]


def endpoints(*routers: APIRouter) -> dict[str, Endpoint]:
    """What routers declare with POST, by path."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {route.path: route.endpoint for route in routes if route.methods == {"POST"}}


class HotRoutes:
    """ASGI middleware that answers some paths itself and leaves every other request to the application."""

    def __init__(self, app: ASGIApp, hot: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._hot = hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on. An exception that is not in the table of errors goes further out, as from any route."""
        endpoint = self._hot.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        gateway: Gateway = scope["app"].state.gateway
        try:
            caller = await gateway.keys.principal(request.headers.get("authorization"))
            response = await endpoint(request, gateway, caller)
        except errors.EXPECTED as error:
            response = await errors.answer(request, error)
        await response(scope, receive, send)
