"""How busy a vLLM server is, read from its metrics. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

# One line for each of the server's engines, when its data are parallel.
_SAMPLE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{.*\})? ([0-9.e+-]{1,32})$",
    re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests that run and that wait, scorings among them; part of the KV cache in use, from 0 to 1."""

    running: int
    waiting: int
    kv_used: float

    @classmethod
    def parse(cls, metrics: bytes) -> Load:
        """Read what /metrics says. Raises ValueError when it says nothing of requests."""
        found: dict[bytes, list[float]] = {}
        for name, value in _SAMPLE.findall(metrics):
            found.setdefault(name, []).append(float(value))
        if b"num_requests_running" not in found:
            raise ValueError("the metrics are not those of a vLLM server")
        return cls(
            running=round(sum(found[b"num_requests_running"])),
            waiting=round(sum(found.get(b"num_requests_waiting", []))),
            kv_used=min(max(found.get(b"kv_cache_usage_perc", [0.0])), 1.0),
        )
