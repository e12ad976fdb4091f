"""Engines that generate and score.

The embedded engine and the preparation of its weights are imported by module (`gateway.engines.embedded`,
`gateway.engines.weights`), for a gateway in front of other engines has no torch.
"""

from gateway.engines.adapters import AdapterFiles, linear_shapes, resident_name
from gateway.engines.base import (
    AdapterNotLoaded,
    AdapterRejected,
    Delta,
    Engine,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    FinishReason,
    GenerationRequest,
    Health,
    PromptTooLong,
    SamplingParams,
    Scores,
)

__all__ = [
    "AdapterFiles",
    "AdapterNotLoaded",
    "AdapterRejected",
    "Delta",
    "Engine",
    "EngineError",
    "EngineRefused",
    "EngineUnavailable",
    "FinishReason",
    "GenerationRequest",
    "Health",
    "PromptTooLong",
    "SamplingParams",
    "Scores",
    "linear_shapes",
    "resident_name",
]
