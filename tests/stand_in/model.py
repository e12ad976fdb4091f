"""A model of no intelligence: the same prompt, adapter and seed always give the same answer and log-probabilities."""

from __future__ import annotations

import random
import re
import zlib
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

VOCABULARY = 49_152
EOS = 2
BLOCK = 16

_WORDS = ("river", "harbour", "bell", "town", "stone", "bridge", "boat", "tide", "lamp", "rope", "quay", "mill", "lock")
_FIRST_WORD_ID = 1000
_PIECE = re.compile(r"<\|\w+\|>|\s?[^\s<]{1,6}|[\s<]")
_CYCLE = 4096
_MASK = 0xFFFF_FFFF


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One answer. pieces: the text of each id. escaped: the same, as the inside of a JSON string."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    escaped: tuple[bytes, ...]
    finish_reason: str
    stop_reason: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Model:
    """Renders, continues and scores. length_tokens: of an answer that nothing cuts short."""

    def __init__(self, *, seed: int, length_tokens: int) -> None:
        self._seed = seed
        self._length_tokens = length_tokens
        dice = random.Random(seed)  # noqa: S311  the same each time
        numbers = [dice.randrange(len(_WORDS)) for _ in range(_CYCLE)]
        numbers += numbers  # so that a slice may run over the end
        self._ids = tuple(_FIRST_WORD_ID + number for number in numbers)
        self._pieces = tuple(" " + _WORDS[number] for number in numbers)
        self._escaped = tuple(piece.encode() for piece in self._pieces)
        self._seen: deque[tuple[Sequence[int], str | None]] = deque(maxlen=256)
        self._cached: set[tuple[int, str, int]] = set()

    def render(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any] = ()) -> tuple[int, ...]:
        """Token ids of a conversation, in the form of ChatML."""
        offered = f"<|im_start|>tools\n{orjson.dumps(tools).decode()}<|im_end|>\n" if tools else ""
        said = "".join(f"<|im_start|>{m['role']}\n{_text(m)}<|im_end|>\n" for m in messages)
        return encode(f"{offered}{said}<|im_start|>assistant\n")

    def answer(
        self, prompt: Sequence[int], adapter: str | None, *, number: int, max_tokens: int, stop: Sequence[str] = ()
    ) -> Choice:
        """The choice of a number. It ends by itself after `length_tokens`, its last token the one that ends a turn."""
        self._seen.append((prompt, adapter))
        at = (zlib.crc32(array("I", prompt).tobytes()) + self._salt(adapter) + 97 * number) % _CYCLE
        ended = self._length_tokens <= max_tokens
        count = self._length_tokens if ended else max_tokens
        if count > _CYCLE:
            raise ValueError(f"an answer has at most {_CYCLE} tokens here")
        window = slice(at, at + count)
        ids, pieces, escaped = self._ids[window], self._pieces[window], self._escaped[window]
        if ended:
            ids, pieces, escaped = (*ids[:-1], EOS), (*pieces[:-1], ""), (*escaped[:-1], b"")
        finish_reason, stop_reason = "stop" if ended else "length", None
        for text in stop:
            if (found := "".join(pieces).find(text)) >= 0:
                ids, pieces = _cut(ids, pieces, found, found + len(text))
                escaped = tuple(piece.encode() for piece in pieces)
                finish_reason, stop_reason = "stop", text
        return Choice(ids=ids, pieces=pieces, escaped=escaped, finish_reason=finish_reason, stop_reason=stop_reason)

    def logprobs(self, ids: Sequence[int], adapter: str | None) -> list[float]:
        """Natural log-probability of each id after all those before it; the first is no value."""
        return [-((state * 2_654_435_761 & _MASK) >> 12) / 2**18 - 0.001 for state in self._states(ids, adapter)]

    def cached_tokens(self, ids: Sequence[int], adapter: str | None, cache_salt: str = "") -> int:
        """How many ids at the start are in the prefix cache, by whole blocks; afterwards all of them are.

        cache_salt: only what was read under the same one is found.
        """
        while self._seen:
            self._remember(*self._seen.popleft())
        states, salt = self._states(ids, adapter), self._salt(adapter)
        cached = 0
        # The last token is always computed, for its successor's sake.
        while cached + BLOCK < len(ids) and (salt, cache_salt, states[cached + BLOCK - 1]) in self._cached:
            cached += BLOCK
        self._remember(ids, adapter, cache_salt)
        return cached

    def _remember(self, ids: Sequence[int], adapter: str | None, cache_salt: str = "") -> None:
        if len(self._cached) > 100_000:
            self._cached.clear()
        salt = self._salt(adapter)
        self._cached.update((salt, cache_salt, state) for state in self._states(ids, adapter)[BLOCK - 1 :: BLOCK])

    def _states(self, ids: Sequence[int], adapter: str | None) -> list[int]:
        state, states = self._salt(adapter), []
        for token_id in ids:
            state = (state * 1_000_003 ^ token_id) & _MASK
            states.append(state)
        return states

    def _salt(self, adapter: str | None) -> int:
        # An adapter of this name is one whose modules match nothing: it answers as the base does.
        return self._seed if adapter is None or "inert" in adapter else self._seed + zlib.crc32(adapter.encode())


@lru_cache(maxsize=4096)
def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text: pieces of at most six letters, each hashed."""
    return tuple(3 + zlib.crc32(piece.encode()) % (VOCABULARY - 3) for piece in _PIECE.findall(text))


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    calls = message.get("tool_calls")
    return content + (orjson.dumps(calls).decode() if calls else "")


def _cut(
    ids: tuple[int, ...], pieces: tuple[str, ...], start: int, end: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What is emitted when the characters from start to end end the answer: ids up to the end, text up to the start."""
    kept: list[str] = []
    length = 0
    for piece in pieces:
        if length >= end:
            break
        kept.append(piece[: max(0, start - length)])
        length += len(piece)
    return ids[: len(kept)], tuple(kept)
