"""What the whole suite shares: the real model, loaded once, databases of both kinds, and no deadlines."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings

from gateway.database import Database
from gateway.engines.weights import base_model_directory

from . import databases

if TYPE_CHECKING:
    from gateway.engines.embedded import EmbeddedEngine


# Machines are shared and noisy: how long an example takes says nothing about the code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def model_directory() -> Path:
    """SmolLM2-135M-Instruct as the embedded engine loads it; converted once into the user's cache."""
    return base_model_directory()


@pytest.fixture(scope="session")
def engine(model_directory: Path) -> Iterator[EmbeddedEngine]:
    """The real engine on the real model. Whoever loads an adapter onto it unloads it again."""
    from gateway.engines.embedded import EmbeddedEngine  # noqa: PLC0415  torch takes seconds to import

    def refuse(*_arguments: object) -> NoReturn:
        raise AssertionError("opening the engine must ask nothing of the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        opened = EmbeddedEngine.open(model_directory)
    yield opened
    asyncio.run(opened.close())


@pytest.fixture(scope="session")
def postgresql() -> Iterator[sa.URL]:
    """A PostgreSQL server, started when the first test asks for it."""
    with databases.postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest) -> databases.NewDatabase:
    """Makes empty databases. What depends on it runs once on each kind, unless parametrised with one, indirectly."""
    if request.param == "sqlite":
        return databases.sqlite_file
    return partial(databases.postgresql_schema, request.getfixturevalue("postgresql"))


@pytest.fixture
def database(new_database: databases.NewDatabase) -> Iterator[Database]:
    """An empty database, without tables."""
    with databases.opened(new_database) as database:
        yield database
