"""The routes that answer and charge, without what FastAPI does for every request of the others.

They are declared like any route, which documents them, and are called here with the same three arguments. They read
their own bodies and write their own replies, so that matching, dependencies and serialising would be work for nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from gateway import errors
from gateway.auth import Principal
from gateway.observe import Observed
from gateway.state import Gateway

Endpoint: TypeAlias = Callable[[Request, Gateway, Principal], Awaitable[Response]]


class Application(FastAPI):
    """FastAPI, but for POSTs to the paths that are hot. Both are observed alike."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._hot: Mapping[str, Endpoint] = {}
        self._answered = Observed(self._answer)
        self.add_middleware(Observed)

    def heat(self, *routers: APIRouter) -> None:
        """Make what routers declare with POST hot. Each such route takes a request, the gateway and a principal."""
        routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        self._hot = {route.path: route.endpoint for route in routes if route.methods == {"POST"}}

    @property
    def hot(self) -> frozenset[str]:
        """The paths that are hot."""
        return frozenset(self._hot)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve ASGI."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._hot:
            scope["app"] = self
            await self._answered(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a hot route. What is our fault is raised again once the client was told, for the server to see."""
        request = Request(scope, receive, send)
        gateway: Gateway = self.state.gateway
        try:
            caller = await gateway.keys.principal(request.headers.get("authorization"))
            response = await self._hot[scope["path"]](request, gateway, caller)
        except errors.EXPECTED as error:
            response = await errors.answer(request, error)
        except Exception as error:
            response = await errors.answer(request, error)
            await response(scope, receive, send)
            raise
        await response(scope, receive, send)
