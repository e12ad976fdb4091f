"""The official clients on the real model: what they must be able to do over any engine.

Of the Python client, what `test_openai_client.py` leaves.
"""

from __future__ import annotations

import pytest

from tests.integration.conftest import Running
from tests.sdk import checks
from tests.sdk.checks import Target
from tests.sdk.test_javascript import outcomes, passed

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def target(gateway: Running) -> Target:
    return Target(base_url=f"{gateway.url}/v1", key=gateway.keys["caller"], chat="guide", embedding="minilm")


@pytest.mark.parametrize("name", [name for name in checks.applicable(()) if name.startswith("response")])
def test_python(target: Target, name: str) -> None:
    checks.run(name, target)


def test_javascript(target: Target) -> None:
    passed(outcomes(target), 12)
