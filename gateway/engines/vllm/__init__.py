"""vLLM servers behind the engine protocol: one engine is one server, over HTTP."""

from gateway.engines.vllm.engine import VllmEngine
from gateway.engines.vllm.server import ServerSpec, VllmServer, start

__all__ = ["ServerSpec", "VllmEngine", "VllmServer", "start"]
