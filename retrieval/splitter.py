"""Cut a text into passages: spans that a reader can take in at once and that an embedder sees whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PASSAGE_TOKENS = 110
# A tokenizer may take a long word for a single unknown token, so characters are bounded as well.
_CHARS_PER_TOKEN_MAX = 16

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(
    r"""(?<=[.!?…])["'”’)\]]*\s+(?=[^a-z\s])|(?<=[。！？])|\n(?=[ \t]*(?:[-*+•]|\d+[.)])[ \t])"""
)
_HEADINGS = re.compile(r"(?:#{1,6}[ \t][^\n]*(?:\n\s*|\Z))+")
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, kw_only=True, order=True)
class Span:
    """Characters start (inclusive) to end (exclusive) of a text."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a span holds at least one character, not {self.start} to {self.end}")

    def of(self, text: str) -> str:
        """What the span covers."""
        return text[self.start : self.end]


Division = Callable[[str, Span], Iterator[Span]]


def split(text: str, *, count_tokens: Callable[[str], int], max_tokens: int = PASSAGE_TOKENS) -> list[Span]:
    """Spans of at most max_tokens tokens, in order and without overlap, that cover all of the text but white space.

    Neighbouring paragraphs share a passage while they fit. A paragraph is divided between sentences only when it does
    not fit, and a sentence between words only when it does not fit either. The tokens of a joined text are taken to be
    the sum of its parts', which WordPiece keeps.
    """
    if max_tokens < 1:
        raise ValueError(f"a passage holds at least one token, not {max_tokens}")
    spans: list[Span] = []
    room = 0
    max_chars = max_tokens * _CHARS_PER_TOKEN_MAX

    def pieces(span: Span, divisions: tuple[Division, ...]) -> Iterator[tuple[Span, int]]:
        short = span.end - span.start <= max_chars
        tokens = count_tokens(span.of(text)) if short else max_tokens + 1
        if tokens <= max_tokens or span.end - span.start == 1:
            yield span, tokens
            return
        for part in divisions[0](text, span):
            yield from pieces(part, divisions[1:] or divisions)

    for whole in _trimmed(text, 0, len(text)):
        for span, tokens in pieces(whole, (_paragraphs, _sentences, _halves)):
            if spans and tokens <= room and span.end - spans[-1].start <= max_chars:
                spans[-1] = Span(start=spans[-1].start, end=span.end)
            else:
                spans.append(span)
                room = max_tokens
            room -= tokens
    return spans


def _paragraphs(text: str, span: Span) -> Iterator[Span]:
    """Paragraphs; a Markdown heading stays with what it heads."""
    start = span.start
    for end in _PARAGRAPH_END.finditer(text, span.start, span.end):
        if not _HEADINGS.fullmatch(text, start, end.start()):
            yield from _trimmed(text, start, end.start())
            start = end.end()
    yield from _trimmed(text, start, span.end)


def _sentences(text: str, span: Span) -> Iterator[Span]:
    start = span.start
    for end in _SENTENCE_END.finditer(text, span.start, span.end):
        yield from _trimmed(text, start, end.end())
        start = end.end()
    yield from _trimmed(text, start, span.end)


def _halves(text: str, span: Span) -> Iterator[Span]:
    """Two halves, divided between words if the second half has a space, else anywhere."""
    middle = (span.start + span.end) // 2
    space = _SPACE.search(text, middle, span.end)
    cut = space.start() if space else middle
    yield from _trimmed(text, span.start, cut)
    yield from _trimmed(text, cut, span.end)


def _trimmed(text: str, start: int, end: int) -> Iterator[Span]:
    """The span without the white space around it; nothing when there is nothing else."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    end -= len(part) - len(part.rstrip())
    if start < end:
        yield Span(start=start, end=end)
