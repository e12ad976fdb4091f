from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from retrieval import metadata

from .kit import HashingEmbedder, open_sqlite

# An empty database that the tests may fill and empty, for instance postgresql+psycopg://localhost/scratch.
POSTGRES_URL = os.environ.get("TRIBUTARY_TEST_POSTGRES_URL")


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRES_URL else ["sqlite"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "postgresql":
        assert POSTGRES_URL
        engine = create_engine(POSTGRES_URL)
        metadata.drop_all(engine)
    else:
        engine = open_sqlite(tmp_path / "corpus.db")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()
