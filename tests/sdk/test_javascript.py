"""The official JavaScript client, unchanged, on a gateway that listens."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tests import npm
from tests.gateway.kit import Site
from tests.sdk.checks import Target
from tests.sdk.kit import eventually

HERE = Path(__file__).parent
REQUIRED = "TRIBUTARY_TEST_SDK"  # set where a missing node or npm is a failure and no excuse


@cache
def modules() -> Path:
    return npm.modules(HERE, cache="sdk", required=REQUIRED)


def outcomes(target: Target, *more: str) -> dict[str, str | None]:
    """What became of every check that applies: None, or why it failed."""
    found: dict[str, str | None] = json.loads(
        npm.node(HERE / "checks.mjs", str(modules()), target.as_json(*more), timeout_s=target.timeout_s + 60)
    )
    return found


def passed(found: dict[str, str | None], number: int) -> None:
    assert {name: why for name, why in found.items() if why} == {}
    assert len(found) == number


def test_over_an_engine_that_writes_itself(writing: Target) -> None:
    passed(outcomes(writing, "auto tools"), 19)


def test_over_an_engine_that_gives_text(plain: Target) -> None:
    passed(outcomes(plain), 12)


def test_trouble(trouble: Target, troubled_site: Site) -> None:
    gone = troubled_site.engine.abandoned
    passed(outcomes(trouble, "trouble"), 18)
    eventually(lambda: troubled_site.engine.abandoned > gone)
