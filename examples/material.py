"""The demo's material as it lies on disk: corpora, questions and datasets."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.grounding import Source
from retrieval import read

EXAMPLES = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a corpus, the words that answer it, and the document (a path below examples/) that holds them.

    near_copies: other documents that hold them too.
    """

    id: str
    corpus: str
    question: str
    answer: str
    document: str
    near_copies: tuple[str, ...] = ()


def read_questions(group: str) -> list[Question]:
    """Read one group of questions.json: `demo`, or `held_out` for measuring."""
    rows: list[dict[str, Any]] = json.loads((EXAMPLES / "questions.json").read_text())[group]
    return [Question(**row | {"near_copies": tuple(row.get("near_copies", ()))}) for row in rows]


def read_manifest() -> dict[str, Any]:
    """Read corpora.toml."""
    return tomllib.loads((EXAMPLES / "corpora.toml").read_text())


def documents_of(corpus: dict[str, Any]) -> list[str]:
    """Return the paths below examples/ of a corpus of the manifest, in order."""
    globs = [holding["files"] for holding in corpus["holdings"]]
    return sorted(str(path.relative_to(EXAMPLES)) for glob in globs for path in EXAMPLES.glob(glob))


def read_source(document: str) -> Source:
    """Read a document as the gateway would offer it to a model."""
    parsed = read(EXAMPLES / document)
    return Source(title=parsed.title, text=parsed.text)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question and the sentence that answers it."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a dataset: examples about a document, or about nothing in particular."""

    source: Source | None
    examples: tuple[Example, ...]


def read_dataset(path: Path) -> list[Record]:
    """Read a JSONL dataset: `{title, text, questions: [{question, answer}]}`, without title and text if general."""
    records = []
    for line in path.read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        source = Source(title=row["title"], text=row["text"]) if "text" in row else None
        records.append(Record(source=source, examples=tuple(Example(**pair) for pair in row["questions"])))
    return records


def normalise(text: str) -> str:
    """Lower case, no apostrophes, no commas inside numbers, no articles, words and numbers apart by one space."""
    text = re.sub(r"['’]|(?<=\d),(?=\d)", "", text.lower())
    words = re.findall(r"\d+(?:\.\d+)?|[^\W\d]+", text)
    return " ".join(word for word in words if word not in {"a", "an", "the"})


def holds(text: str, answer: str) -> bool:
    """Whether the normalised words of the answer stand in the normalised text, whole and in a row."""
    return f" {normalise(answer)} " in f" {normalise(text)} "
