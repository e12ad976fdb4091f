"""The same example under other names and numbers.

A small model soon knows a few hundred answers by heart. Where names and numbers change at every showing, only reading
the document gives the answer, and reading is what is to be learned.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from material import Example, Record

from gateway.grounding import Source

_COUNTS = (
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
)
_KEPT = {
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    *("Tuesdays", "Wednesdays", "Fridays", "Saturdays"),
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
    *("Captain", "Doctor", "Lieutenant", "Lord", "Madame", "Miss", "Mr", "Mrs", "Saint"),
    *("Low", "Most", "On", "Three", "Two"),
}
_INSIDE_A_SENTENCE = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")


def names_in(records: Sequence[Record]) -> list[str]:
    """Return the words that stand with a capital inside a sentence, once each."""
    found = {word for record in records for text in _texts(record) for word in _INSIDE_A_SENTENCE.findall(text)}
    return sorted(found - _KEPT)


def disguise(record: Record, names: Sequence[str], rng: random.Random) -> Record:
    """Exchange every name, number and counting word of a record, alike wherever it stands."""
    text = " ".join(_texts(record))
    words = [word for word in dict.fromkeys(re.findall(r"[A-Za-z]+", text)) if word in set(names)]
    other = dict(zip(words, rng.sample(list(names), len(words)), strict=True))
    other |= dict(zip(_COUNTS, rng.sample(_COUNTS, len(_COUNTS)), strict=True))
    other |= {word.capitalize(): exchanged.capitalize() for word, exchanged in other.items()}
    other |= {word.upper(): exchanged.upper() for word, exchanged in other.items()}
    other |= {number: _other_number(number, rng) for number in dict.fromkeys(re.findall(r"\d+", text))}

    def exchange(text: str) -> str:
        return re.sub(r"[A-Za-z]+|\d+", lambda word: other.get(word[0], word[0]), text)

    source = record.source
    return Record(
        source=None if source is None else Source(title=exchange(source.title), text=exchange(source.text)),
        examples=tuple(
            Example(question=exchange(example.question), answer=exchange(example.answer)) for example in record.examples
        ),
    )


def _texts(record: Record) -> list[str]:
    document = [] if record.source is None else [record.source.title, record.source.text]
    return [*document, *(text for example in record.examples for text in (example.question, example.answer))]


def _other_number(number: str, rng: random.Random) -> str:
    if re.fullmatch(r"1[5-9]\d\d|20\d\d", number):
        return str(rng.randint(1500, 2029))
    return str(rng.randint(max(2, 10 ** (len(number) - 1)), 10 ** len(number) - 1)).zfill(len(number))
