"""What a vLLM server says when it does not answer, as errors of ours. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.engines.base import AdapterNotLoaded, EngineError, EngineRefused, EngineUnavailable, PromptTooLong

MESSAGE_CHARS = 500

_VALUE = re.compile(r"\(parameter=[a-z_]+, value=([0-9]{1,9})\)")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An error as the server put it. status: of HTTP, or what an event in a stream gives in its place."""

    status: int
    message: str
    param: str | None = None

    @classmethod
    def read(cls, status: int, body: bytes) -> Refusal:
        """Read the body of a reply that is an error, in OpenAI's form or in any other."""
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            said = None
        error = said.get("error", said) if isinstance(said, dict) else None
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return cls(status=status, message=f"HTTP {status}")
        code: Any = error.get("code")
        param = error.get("param")
        return cls(
            status=code if type(code) is int and 400 <= code <= 599 else status,
            message=error["message"][:MESSAGE_CHARS],
            param=param if isinstance(param, str) else None,
        )

    def as_error(self, *, adapter: str | None, context_tokens: int) -> EngineError:
        """Whose fault it is. adapter: the name that was asked for, where it was not the base's."""
        if self.status == 404 and self.param == "model" and adapter is not None:
            return AdapterNotLoaded(adapter)
        if self.status in (400, 413, 422):
            tokens = self._prompt_tokens(context_tokens)
            if tokens is not None:
                return PromptTooLong(tokens=tokens, limit_tokens=context_tokens - 1)
            return EngineRefused(self.message, self.param)
        return EngineUnavailable(f"the vLLM server says: {self.message}")

    def _prompt_tokens(self, context_tokens: int) -> int | None:
        """How long a prompt was that did not fit; None where that is not what was wrong.

        A prompt that leaves no room for an answer is told as one whose answer may have no tokens, and one of far too
        many characters is never counted.
        """
        if self.param in ("max_tokens", "input_text"):
            return context_tokens
        if self.param == "input_tokens":
            found = _VALUE.search(self.message)
            return max(int(found[1]) if found else 0, context_tokens)
        return None
