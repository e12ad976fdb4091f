"""A real chain for every test here: anvil, from npm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .kit import Anvil, Site, running_anvil


@pytest.fixture(scope="session")
def running() -> Iterator[Anvil]:
    with running_anvil() as anvil:
        yield anvil


@pytest.fixture
def anvil(running: Anvil) -> Iterator[Anvil]:
    """The chain, which forgets afterwards what the test did to it."""
    with running.forgetting():
        yield running


@pytest.fixture
def site(anvil: Anvil) -> Site:
    """A distributor of a test token, with nothing posted and nothing funded."""
    return Site(anvil)
