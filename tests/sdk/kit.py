"""A gateway on a loopback address, to point a client at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.app import create_app
from tests.gateway.kit import Site
from tests.ledger_client.serving import serving
from tests.sdk.checks import Target


@contextmanager
def listening(site: Site) -> Iterator[Target]:
    """The gateway of a site, until the block ends."""
    site.engine.down = False
    app = create_app(site.settings, engine=lambda _: site.engine, embedder=lambda _: site.embedder)
    with serving(app, lifespan="on") as url:
        yield Target(
            base_url=f"{url}/v1",
            key=site.secret,
            chat="plain",
            embedding="vectors",
            takes=site.engine.options,
            timeout_s=30,
        )
