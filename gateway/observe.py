"""Structured logs and request metrics. No header, query or body is ever logged."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import orjson
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
log = structlog.get_logger(__name__)


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Log to `stream` (standard error by default): lines for people on a terminal, JSON elsewhere."""
    stream = stream or sys.stderr
    renderer: structlog.typing.Processor
    factory: Callable[..., structlog.typing.WrappedLogger]
    if stream.isatty():
        renderer, factory = structlog.dev.ConsoleRenderer(), structlog.PrintLoggerFactory(stream)
    else:
        renderer = structlog.processors.JSONRenderer(serializer=_json)
        factory = structlog.WriteLoggerFactory(stream)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


def _json(event: structlog.typing.EventDict, **options: Any) -> str:
    try:
        return orjson.dumps(event, default=options["default"]).decode()
    except TypeError:  # what orjson does not take, such as a whole number of more than 64 bits
        return json.dumps(event, default=options["default"])


class Observed:
    """ASGI middleware: one log line and one duration a request, from its arrival to its last byte."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it ended; 499 when the client left before a status was sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        structlog.contextvars.clear_contextvars()
        started_s = time.monotonic()
        status = 499

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            status = 500  # the reply to it is sent further out
            raise
        finally:
            duration_s = time.monotonic() - started_s
            if operation := OPERATIONS.get(scope["path"]):
                model = scope.get("state", {}).get("served_model", "")
                scope["app"].state.gateway.metrics.request_seconds.labels(operation, model, str(status)).observe(
                    duration_s
                )
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                duration_ms=round(duration_s * 1000, 1),
            )
