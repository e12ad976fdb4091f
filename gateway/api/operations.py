"""What the operator's own network asks: liveness, readiness, metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.api.described import replies
from gateway.state import GatewayState

router = APIRouter(tags=["Operations"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "not yet, or no longer; `problems` says why"}})
async def readyz(gateway: GatewayState) -> JSONResponse:
    """Whether requests can be served: the database answers and the engine is well; 503 names what is not."""
    problems = {}
    try:
        await gateway.transactions.read(gateway.log.size)
    except Exception as error:
        problems["database"] = str(error)
    if not (await gateway.engine.health()).ready:
        problems["engine"] = "it takes no work"
    if problems:
        return JSONResponse({"status": "not ready", "problems": problems}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=Response, responses=replies(forms=(CONTENT_TYPE_LATEST,)))
async def metrics(gateway: GatewayState) -> Response:
    """Prometheus exposition."""
    return Response(await asyncio.to_thread(gateway.metrics.render), media_type=CONTENT_TYPE_LATEST)
