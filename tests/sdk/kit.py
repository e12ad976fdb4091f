"""A gateway on a loopback address, to point a client at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.app import MakeEngine, create_app
from gateway.auth import find_key
from gateway.cli.context import office
from metering import Budget
from tests.gateway.kit import Site
from tests.ledger_client.serving import serving
from tests.sdk.checks import Target

TEXT = "The bell was cast by Petra in 1803, of bronze."


@contextmanager
def listening(
    site: Site, engine: MakeEngine | None = None, *, takes: frozenset[str] | None = None, timeout_s: float = 30
) -> Iterator[Target]:
    """The gateway of a site, until the block ends. engine, takes: another than the site's, and the options it takes."""
    limited = site.new_caller("limited")
    with office(site.config) as o, o.write() as transaction:
        o.books.set_budget(
            transaction, Budget(subject=find_key(transaction.connection, "limited").key_id, requests_per_minute=0)
        )
    app = create_app(site.settings, engine=engine or (lambda _: site.engine), embedder=lambda _: site.embedder)
    with serving(app, lifespan="on") as url:
        yield Target(
            base_url=f"{url}/v1",
            key=site.secret,
            chat="plain",
            embedding="vectors",
            takes=site.engine.options if takes is None else takes,
            timeout_s=timeout_s,
            poor_key=site.new_caller("poor", credit_nano=1),
            limited_key=limited,
        )


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what the gateway does in its own thread."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
