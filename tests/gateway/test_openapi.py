from __future__ import annotations

import json
import re

from gateway.api.described import ErrorReply
from gateway.app import create_app
from gateway.errors import RATE_LIMITS, TABLE, BadRequestError, body_of
from gateway.settings import Settings


def test_every_schema_that_the_document_refers_to_is_in_it() -> None:
    document = create_app(Settings()).openapi()
    wanted = set(re.findall(r'"#/components/schemas/([A-Za-z0-9_]+)"', json.dumps(document)))
    assert {"ChatRequest", "CompletionRequest", "EmbeddingRequest", "ChatMessage", "ResponsesRequest"} <= wanted
    assert wanted <= document["components"]["schemas"].keys()


def test_every_error_of_the_table_is_told_of() -> None:
    document = create_app(Settings()).openapi()
    routes = {
        path: operation["responses"].keys()
        for path, operations in document["paths"].items()
        for operation in operations.values()
    }
    told = {status for statuses in routes.values() for status in statuses}
    assert {str(reply.status) for reply in (*TABLE.values(), *RATE_LIMITS.values())} <= told
    assert "422" not in told  # FastAPI's own; a bad parameter is 400 here
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"):
        assert {"400", "401", "402", "403", "404", "408", "409", "410", "413", "429", "503", "504"} <= routes[path]
    _, body = body_of(BadRequestError("no", "messages", "c"))
    ErrorReply.model_validate(body, strict=True)


def test_every_promised_route_is_served() -> None:
    paths = set(create_app(Settings()).openapi()["paths"])
    assert paths == {
        "/healthz",
        "/log/checkpoint",
        "/log/key",
        "/log/tile/{path}",
        "/metrics",
        "/readyz",
        "/v1/attributions/{request_id}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/contributors/{contributor}/claim",
        "/v1/contributors/{contributor}/earnings",
        "/v1/contributors/{contributor}/entries",
        "/v1/contributors/{contributor}/payout-address",
        "/v1/contributors/{contributor}/statements/{period}",
        "/v1/embeddings",
        "/v1/feedback",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/receipts/{request_id}",
        "/v1/responses",
    }
