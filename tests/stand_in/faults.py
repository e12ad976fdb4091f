"""What goes wrong, when: so many of the next requests, or a part of all of them chosen by the seed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

Work: TypeAlias = Literal["generate", "score", "load"]

# error: 500 before the first byte. busy: 503. event: an error event in the middle of the stream. cut: the connection
# ends in the middle. hang: silence from the start. stall: silence from the middle. drip: a second between chunks.
# lost: the adapter is forgotten, hence 404. garbage: scores under other token ids. nan: scores that JSON cannot hold.
Fault: TypeAlias = Literal["error", "busy", "event", "cut", "hang", "stall", "drip", "lost", "garbage", "nan"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_AT_RANDOM: tuple[Fault, ...] = ("error", "event", "cut")


class Faults:
    """rate: part of the generations that fail, each in one of the ways of kinds."""

    def __init__(self, *, seed: int, rate: float = 0.0, kinds: Sequence[Fault] = _AT_RANDOM) -> None:
        self._dice = random.Random(seed)  # noqa: S311  the same each time
        self._rate = rate
        self._kinds = tuple(kinds)
        self._next: dict[str, deque[Fault]] = {"generate": deque(), "score": deque(), "load": deque()}

    def order(self, fault: Fault, work: Work, times: int) -> None:
        """Let the next requests of this kind of work fail."""
        self._next[work].extend([fault] * times)

    def draw(self, work: Work) -> Fault | None:
        """How this request fails."""
        if self._next[work]:
            return self._next[work].popleft()
        if work == "generate" and self._rate and self._dice.random() < self._rate:
            return self._dice.choice(self._kinds)
        return None
