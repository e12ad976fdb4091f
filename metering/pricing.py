"""What a token costs. A thousandth of a dollar for a million tokens is exactly one nano-USD for one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from ledger_client import JSON
from metering._checks import check_whole
from metering.errors import MeteringError
from metering.usage import Usage

_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,8})(?:\.([0-9]{1,3}))?")
_NANO_PER_TOKEN_MAX = 999_999_999_999


@dataclass(frozen=True, kw_only=True)
class Price:
    """The price of a served model, in nano-USD for one token read and one token emitted."""

    prompt_nano_per_token: int
    completion_nano_per_token: int

    def __post_init__(self) -> None:
        check_whole("prompt_nano_per_token", self.prompt_nano_per_token, maximum=_NANO_PER_TOKEN_MAX)
        check_whole("completion_nano_per_token", self.completion_nano_per_token, maximum=_NANO_PER_TOKEN_MAX)

    @classmethod
    def parse(cls, *, prompt: str, completion: str) -> Self:
        """Read two prices in USD for a million tokens: decimal strings with at most three decimals, such as "0.15".

        Raises MeteringError on a sign, an exponent, a leading zero, a fourth decimal, or anything that is not a string.
        """
        return cls(
            prompt_nano_per_token=_nano_per_token("prompt price", prompt),
            completion_nano_per_token=_nano_per_token("completion price", completion),
        )

    def charge_nano(self, usage: Usage) -> int:
        """Return what the usage costs, in nano-USD."""
        return (
            usage.prompt_tokens * self.prompt_nano_per_token + usage.completion_tokens * self.completion_nano_per_token
        )

    def maximum_nano(self, context_tokens: int, completion_tokens: int | None = None, completions: int = 1) -> int:
        """Return the most that a request can cost whose prompt and any one completion share the context, in nano-USD.

        completion_tokens: the most that each completion may have; None for as many as fit. completions: how many there
        are of the one prompt.
        """
        check_whole("context_tokens", context_tokens)
        check_whole("completions", completions)
        emitted = context_tokens if completion_tokens is None else min(completion_tokens, context_tokens)
        dearer_nano = max(completions * self.completion_nano_per_token - self.prompt_nano_per_token, 0)
        return context_tokens * self.prompt_nano_per_token + emitted * dearer_nano

    def data(self, served_model: str) -> dict[str, JSON]:
        """Return the data of a `price.published` entry."""
        return {
            "served_model": served_model,
            "prompt_nano_per_token": str(self.prompt_nano_per_token),
            "completion_nano_per_token": str(self.completion_nano_per_token),
        }


def _nano_per_token(name: str, text: str) -> int:
    match = _DECIMAL.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise MeteringError(
            f'{name} must be USD for a million tokens as a string with at most 3 decimals, such as "0.15", not {text!r}'
        )
    whole, decimals = match.groups()
    return int(whole) * 1000 + int((decimals or "").ljust(3, "0"))
