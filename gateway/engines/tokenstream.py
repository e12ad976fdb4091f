"""From token ids to text that can be sent: whole characters only, cut before a stop sequence. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What decoders write for bytes that are not (yet) a character.
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decode ids one by one so that the pieces join to the decoding of all ids.

    decode: the tokenizer's own, special tokens skipped. Each piece is decoded after the one before it, because some
    tokenizers write a token differently at the start of a text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str | None:
        """Text that the id completes; None while it leaves a character unfinished."""
        self._pending.append(token_id)
        text = self._text()
        if text.endswith(_BROKEN):
            return None
        # A token without text tells nothing about the start of a text, so the one before it stays in view.
        self._before = self._pending if text else [*self._before, *self._pending]
        self._pending = []
        return text

    def flush(self) -> str:
        """Text of what is left, broken as it may be."""
        return self._text() if self._pending else ""

    def _text(self) -> str:
        before = self._decode(self._before)
        return self._decode([*self._before, *self._pending])[len(before) :]


class TokenStream:
    """Hold back ids and text while they may belong to half a character or to a stop sequence; release them together.

    An id is released with the first of its text, so the released ids always cover the released text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stop = tuple(stop)
        self._text = ""
        self._ids: list[tuple[int, int]] = []  # held ids, each with where its text starts in the held text
        self.stopped = False

    def push(self, token_id: int) -> tuple[tuple[int, ...], str]:
        """Take the next id; return the ids and text that are now safe to send. Sets `stopped` at a stop sequence."""
        self._ids.append((token_id, len(self._text)))
        text = self._detokenizer.push(token_id)
        if text is None:
            return (), ""
        return self._release(text, final=False)

    def finish(self) -> tuple[tuple[int, ...], str]:
        """Release everything held, because no id follows."""
        return self._release(self._detokenizer.flush(), final=True)

    def _release(self, text: str, *, final: bool) -> tuple[tuple[int, ...], str]:
        self._text += text
        matches = [at for stop in self._stop if (at := self._text.find(stop)) >= 0]
        if matches:
            self.stopped = True
            return self._cut(min(matches))
        return self._cut(len(self._text) if final else len(self._text) - self._undecided())

    def _cut(self, end: int) -> tuple[tuple[int, ...], str]:
        text, self._text = self._text[:end], self._text[end:]
        # An id without text of its own (a special token) goes with the text before it.
        whole = not self._text
        ids = tuple(token_id for token_id, start in self._ids if whole or start < end)
        self._ids = [(token_id, start - end) for token_id, start in self._ids if not (whole or start < end)]
        return ids, text

    def _undecided(self) -> int:
        """Length of the longest ending of the held text that begins a stop sequence."""
        return max(
            (
                size
                for stop in self._stop
                for size in range(1, min(len(stop), len(self._text) + 1))
                if self._text.endswith(stop[:size])
            ),
            default=0,
        )
