"""vLLM servers behind the engine protocol: one engine is one server, over HTTP."""

from gateway.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]
