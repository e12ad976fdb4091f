"""Whatever fits the OpenAPI document, and much that does not, gets a reply that the document knows, and never a 5xx."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.app import create_app
from gateway.auth import create_key
from gateway.cli.context import office
from gateway.cli.server import bind
from gateway.identifiers import new_id
from gateway.settings import Settings
from tests.gateway.kit import Site, body
from tests.raw_fake import RawFakeEngine

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
GOOD = {
    "/v1/chat/completions": body(),
    "/v1/completions": {"model": "plain", "prompt": "Once"},
    "/v1/responses": {"model": "plain", "input": "Who cast the bell?"},
    "/v1/embeddings": {"model": "vectors", "input": "a bell"},
}
ROLES = ("caller", "caller", "caller", "poor", "contributor", "operator", "wrong", None)


@dataclass(frozen=True, kw_only=True)
class Api:
    """A gateway that answers. keys: secrets by role. request_id: of an answer that was given."""

    url: str
    keys: dict[str, str]
    request_id: str
    session: requests.Session


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    site = Site(tmp_path_factory.mktemp("site"))
    site.engine = RawFakeEngine(text="Petra.", calls=(("find", "{}"),))
    with office(site.config) as o, o.write() as transaction:
        o.books.grant_credit(transaction, site.caller, 10**15, "test", new_id("grant"))
        contributor = create_key(transaction.connection, role="contributor", name="ada", contributor="ada")
    keys = {"caller": site.secret, "operator": site.operator, "contributor": contributor.secret}
    keys |= {"poor": site.new_caller(credit_nano=1), "wrong": "trib-caller-wrong"}
    app = create_app(site.settings, engine=lambda _: site.engine, embedder=lambda _: site.embedder)
    with bind("127.0.0.1", 0) as listener, requests.Session() as session:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
        server.capture_signals = nullcontext  # type: ignore[method-assign]

        listening = threading.Event()

        async def serve() -> None:
            async with app.router.lifespan_context(app):
                listener.listen()
                listening.set()
                await server.serve(sockets=[listener])

        running = threading.Thread(target=asyncio.run, args=(serve(),))
        running.start()
        assert listening.wait(60)
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            headers = {"Authorization": f"Bearer {site.secret}"}
            answered = session.post(f"{url}/v1/chat/completions", json=body(), headers=headers, timeout=30)
            yield Api(url=url, keys=keys, request_id=answered.headers["x-request-id"], session=session)
        finally:
            server.should_exit = True
            running.join()
    site.check()


@SCHEMA.parametrize()
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@SCHEMA.given(data=st.data())
def test_a_reply_is_one_that_the_document_knows(case: Case, api: Api, data: Any) -> None:
    role = data.draw(st.sampled_from(ROLES))
    if data.draw(st.booleans()):
        _name_what_is_there(case, api, data)
    headers = {"Authorization": f"Bearer {api.keys[role]}"} if role else {}
    response = case.call(base_url=api.url, headers=headers, session=api.session, timeout=30)
    case.validate_response(response, checks=CHECKS)


def _name_what_is_there(case: Case, api: Api, data: Any) -> None:
    """Bodies drawn at random break some rule, and names are of nothing; what a route does is behind those that do not.

    A body becomes a good one with some of what was drawn for it.
    """
    for name, value in {"request_id": api.request_id, "contributor": "ada", "name": "plain"}.items():
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = value
    good = GOOD.get(case.path, {})
    if good and isinstance(case.body, dict):
        drawn = data.draw(st.sets(st.sampled_from(sorted(case.body)), max_size=3)) if case.body else ()
        case.body = {name: case.body[name] for name in drawn} | good
    if case.path == "/v1/feedback" and isinstance(case.body, dict):
        case.body["request_id"] = api.request_id
