"""Gateways that listen, over engines of three kinds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import FakeEngine
from tests.gateway.kit import Site
from tests.sdk.checks import Target
from tests.sdk.kit import TEXT, listening
from tests.sdk.obedient import ObedientEngine, TroubledEngine


@pytest.fixture(scope="session")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Over an engine that takes every option and writes in OpenAI's form itself."""
    site = Site(tmp_path_factory.mktemp("writing"))
    site.engine = ObedientEngine(text=TEXT)
    with listening(site) as target:
        yield target


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Over an engine that takes no option and gives text."""
    site = Site(tmp_path_factory.mktemp("plain"))
    site.engine = FakeEngine(text=TEXT)
    with listening(site) as target:
        yield target


@pytest.fixture(scope="session")
def troubled_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("trouble"))
    site.engine = TroubledEngine(text=TEXT)
    return site


@pytest.fixture(scope="session")
def trouble(troubled_site: Site) -> Iterator[Target]:
    """Over an engine that fails as the prompt says."""
    with listening(troubled_site) as target:
        yield target
