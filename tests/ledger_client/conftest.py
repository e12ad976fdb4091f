"""A real log on real databases, opened as the gateway opens them."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from gateway.database import Database
from ledger_client import Log, Signer, Verifier, metadata

from ..databases import engine_of  # noqa: TID252  the tests are no package of their own

ORIGIN = "example.com/log"


@pytest.fixture
def engine(database: Database) -> Engine:
    return engine_of(database, metadata)


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer.generate(ORIGIN)


@pytest.fixture(scope="session")
def verifier(signer: Signer) -> Verifier:
    return signer.verifier


@pytest.fixture
def log(signer: Signer) -> Log:
    return Log(signer)
