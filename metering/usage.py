"""How many tokens a request took."""

from __future__ import annotations

from dataclasses import dataclass

from metering._checks import check_whole


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts of one request: what the engine read and what it emitted, each ≥ 0."""

    prompt_tokens: int
    completion_tokens: int

    def __post_init__(self) -> None:
        check_whole("prompt_tokens", self.prompt_tokens)
        check_whole("completion_tokens", self.completion_tokens)
