"""The official clients on a gateway over a real vLLM server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.engines.vllm import VllmEngine
from gateway.engines.vllm.server import VllmServer
from gateway.engines.weights import model_digest
from tests.gateway.kit import Site
from tests.sdk import checks
from tests.sdk.checks import Target
from tests.sdk.kit import listening
from tests.sdk.test_javascript import outcomes, passed

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def target(
    server: VllmServer, model_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Target]:
    """A gateway in a thread of its own, so that the server's output is read meanwhile."""
    site = await asyncio.to_thread(Site, tmp_path_factory.mktemp("clients"))
    opening = partial(
        VllmEngine.open,
        server.url,
        base_model=site.settings.engine.name,
        base_digest=model_digest(model_directory),
        model_directory=model_directory,
        api_key=server.api_key,
        priorities=True,
    )
    gateway = listening(site, lambda _: {"real": opening}, takes=VllmEngine.options, timeout_s=300)
    with ExitStack() as stack:
        yield await asyncio.to_thread(stack.enter_context, gateway)


@pytest.mark.parametrize("name", checks.applicable(VllmEngine.options))
async def test_python(target: Target, name: str) -> None:
    await asyncio.to_thread(checks.run, name, target)


async def test_javascript(target: Target) -> None:
    passed(await asyncio.to_thread(outcomes, target), 18)
