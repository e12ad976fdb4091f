"""What a client may name in `model`, listed, and how a request's name becomes the model that answers it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from gateway.api.described import NEEDS_A_KEY, replies
from gateway.catalogue import ServedModel, UnknownModelError
from gateway.identifiers import new_request_id
from gateway.routing.names import Alias, Names, Resolved
from gateway.settings import AUTO
from gateway.state import Gateway, GatewayState, KeyHolder

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.get("/models", responses=replies(*NEEDS_A_KEY))
async def list_models(gateway: GatewayState, caller: KeyHolder) -> dict[str, Any]:
    """The served models, then the aliases, then `auto` where there is one."""
    caller.require("caller", "operator")
    names = gateway.router.names
    return {"object": "list", "data": [_object(names, name) for name in names]}


@router.get("/models/{name}", responses=replies(*NEEDS_A_KEY, UnknownModelError))
async def retrieve_model(name: str, gateway: GatewayState, caller: KeyHolder) -> dict[str, Any]:
    """One served model, alias, or `auto`."""
    caller.require("caller", "operator")
    return _object(gateway.router.names, name)


async def resolve(request: Request, gateway: Gateway, name: str, *, kind: str, asked: str | None = None) -> Resolved:
    """The served model for a request, which gets its id here; asked: what `auto` compares with.

    What a name resolved to becomes a label; the name itself never does. Raises UnknownModelError.
    """
    resolved = await gateway.router.resolve(name, kind=kind, asked=asked, request_id=new_request_id())
    request.state.served_model = resolved.model.name
    gateway.metrics.routing.labels(resolved.model.name, resolved.reason).inc()
    return resolved


def answer_headers(request_id: str, served_model: str) -> dict[str, str]:
    """What every answer's headers say of it."""
    return {"x-tributary-request-id": request_id, "x-request-id": request_id, "x-tributary-model": served_model}


def _object(names: Names, name: str) -> dict[str, Any]:
    if alias := names.aliases.get(name):
        return _alias(alias)
    if name == AUTO and names.auto is not None:
        choices = dict.fromkeys(model.name for model in (*names.auto.candidates, names.auto.fallback))
        told = "The model whose description and examples are most like the question"
        return _several(AUTO, "chat", told, [{"model": choice} for choice in choices])
    return _model(names.catalogue.find(name))


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": model.adapter.developer if model.adapter else "platform",
        "kind": model.kind,
        "description": model.description,
        "base_model": model.base,
        "adapter": model.adapter_name,
        "corpora": list(model.corpora),
    }


def _alias(alias: Alias) -> dict[str, Any]:
    targets = [{"model": model.name, "weight": weight} for model, weight in alias.targets]
    return _several(alias.name, alias.kind, alias.description, targets)


def _several(name: str, kind: str, description: str, targets: list[dict[str, Any]]) -> dict[str, Any]:
    """A name that stands for models. What it answers with is each one's own."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "platform",
        "kind": kind,
        "description": description,
        "targets": targets,
    }
