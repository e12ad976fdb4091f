"""A real vLLM server on the demo's base model, once for all tests here.

They run where TRIBUTARY_TEST_VLLM names an environment that environment.py made; `make test-vllm` sees to both.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.engines import AdapterFiles
from gateway.engines.vllm import VllmEngine
from gateway.engines.vllm.server import ServerSpec, VllmServer
from gateway.engines.weights import model_digest

BASE = "smollm2-135m-instruct"
CONTEXT_TOKENS = 512
SLOTS = 2
ADAPTERS = Path("examples/adapters").resolve()
# As little as serves: no compilation, a small cache.
ARGUMENTS = ("--enforce-eager", "--max-num-seqs", "8", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1"}


@pytest.fixture(scope="session")
def command() -> str:
    """The vllm of the environment that the tests were given."""
    folder = os.environ.get("TRIBUTARY_TEST_VLLM")
    if folder is None:
        pytest.skip("TRIBUTARY_TEST_VLLM names no environment with vLLM; `make test-vllm` makes one")
    return str(Path(folder).absolute() / "bin" / "vllm")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(command: str, model_directory: Path) -> AsyncIterator[VllmServer]:
    spec = ServerSpec(
        command=(command,),
        model=str(model_directory),
        served_name=BASE,
        context_tokens=CONTEXT_TOKENS,
        slots=SLOTS,
        max_rank=8,
        arguments=ARGUMENTS,
        environment=ENVIRONMENT,
    )
    async with VllmServer(spec, starts=1, start_s=300) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm(server: VllmServer, model_directory: Path) -> AsyncIterator[VllmEngine]:
    engine = await VllmEngine.open(
        server.url,
        base_model=BASE,
        base_digest=model_digest(model_directory),
        model_directory=model_directory,
        api_key=server.api_key,
        priorities=True,
    )
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
def demo_adapters() -> tuple[AdapterFiles, AdapterFiles]:
    return AdapterFiles.read(ADAPTERS / "grounded-qa"), AdapterFiles.read(ADAPTERS / "telegram")
