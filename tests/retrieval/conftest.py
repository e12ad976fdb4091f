from __future__ import annotations

import pytest
from sqlalchemy import Engine

from gateway.database import Database
from retrieval import metadata

from ..databases import engine_of  # noqa: TID252  the tests are no package of their own
from .kit import HashingEmbedder


@pytest.fixture
def engine(database: Database) -> Engine:
    return engine_of(database, metadata)


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()
