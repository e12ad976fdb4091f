"""The official Python client, unchanged, on a gateway that listens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import FakeEngine
from tests.gateway.kit import Site
from tests.raw_fake import OPTIONS
from tests.sdk import checks
from tests.sdk.checks import Target
from tests.sdk.kit import listening
from tests.sdk.obedient import ObedientEngine


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Over an engine that takes every option and writes in OpenAI's form itself."""
    site = Site(tmp_path_factory.mktemp("writing"))
    site.engine = ObedientEngine(text="The bell was cast by Petra in 1803, of bronze.")
    with listening(site) as target:
        yield target


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Over an engine that takes no option and gives text."""
    site = Site(tmp_path_factory.mktemp("plain"))
    site.engine = FakeEngine(text="The bell was cast by Petra in 1803, of bronze.")
    with listening(site) as target:
        yield target


@pytest.mark.parametrize("name", checks.CHECKS)
def test_over_an_engine_that_writes_itself(writing: Target, name: str) -> None:
    checks.run(name, writing)


@pytest.mark.parametrize("name", checks.applicable(()))
def test_over_an_engine_that_gives_text(plain: Target, name: str) -> None:
    checks.run(name, plain)


def test_every_check_runs() -> None:
    assert checks.applicable(OPTIONS) == list(checks.CHECKS)
