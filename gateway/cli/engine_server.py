"""The vLLM server that `tributary serve` starts where the configuration names none that runs."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.settings import ENVIRONMENT_PREFIX, Settings


@asynccontextmanager
async def servers_running(settings: Settings) -> AsyncIterator[None]:
    """Have a server for as long as the block lasts, if the engine is vLLM and `servers` names none.

    Where it serves goes into the environment, from where settings that are loaded inside have it, and those of workers
    too. Raises ServerFailed when it does not come up.
    """
    chosen = settings.engine
    if chosen.kind != "vllm" or chosen.servers:
        yield
        return
    # These take httptools along, which a gateway with the embedded engine does not have.
    from gateway.engines.vllm.server import ServerSpec, VllmServer  # noqa: PLC0415
    from gateway.engines.weights import base_model_directory  # noqa: PLC0415

    spec = ServerSpec(
        command=chosen.command,
        model=chosen.model or str(base_model_directory()),
        served_name=chosen.name,
        context_tokens=chosen.context_tokens,
        dtype=chosen.dtype,
        slots=chosen.slots,
        max_rank=settings.adapters.max_rank,
        arguments=chosen.arguments,
    )
    async with VllmServer(spec) as server:
        override_engine(servers=json.dumps([server.url]), api_key=server.api_key, priorities="true")
        yield


def override_engine(**values: str | None) -> None:
    """Set keys of [engine] for this process and those that it starts, over what the file says; None leaves a key."""
    for key, value in values.items():
        if value is not None:
            os.environ[f"{ENVIRONMENT_PREFIX}ENGINE__{key.upper()}"] = value
