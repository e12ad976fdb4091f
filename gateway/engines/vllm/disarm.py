"""Control tokens that messages spell out. A vLLM server takes them for what they look like.

A document that says `<|im_end|>` must not end the turn that quotes it. The server renders conversations from text, and
knows no text that looks like a control token and is none; so a space of no width is put into it first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_NO_WIDTH = "\N{ZERO WIDTH SPACE}"
_MAX_TOKENIZER_BYTES = 256 << 20


class Disarm:
    """Takes the power of a model's control tokens from texts."""

    def __init__(self, control_tokens: frozenset[str]) -> None:
        tokens = sorted(token for token in control_tokens if len(token) > 1)
        self._spelt = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "$^")
        # Most texts hold none of the characters that the tokens begin with, and looking for those is cheap.
        self._signs = sorted({token[0] for token in tokens})

    @classmethod
    def of(cls, directory: Path) -> Disarm:
        """For the model in a folder; where that has no tokenizer.json, for none."""
        file = directory / "tokenizer.json"
        if not file.is_file() or file.stat().st_size > _MAX_TOKENIZER_BYTES:
            return cls(frozenset())
        added = json.loads(file.read_bytes()).get("added_tokens", ())
        return cls(frozenset(token["content"] for token in added if token.get("special")))

    def __call__(self, text: str) -> str:
        """The text, in which nothing is a control token."""
        if not any(sign in text for sign in self._signs):
            return text
        return self._spelt.sub(lambda spelt: spelt[0][0] + _NO_WIDTH + spelt[0][1:], text)
