"""A database as the gateway opens one, and an embedder that needs no model."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Engine, create_engine, event

from retrieval import EmbedProgress, PreparedDocument, Terms, Vectors, prepare

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
TERMS = Terms(corpus="harbour", owner="harbour-office", licence="CC-BY-4.0")


class HashingEmbedder:
    """A bag of words, every word in the dimension that its hash names."""

    def __init__(self, *, name: str = "bag-of-words", dimension: int = 64) -> None:
        self.name = name
        self.dimension = dimension
        self.max_tokens = 1000
        self.texts: list[str] = []

    def count_tokens(self, texts: Sequence[str]) -> int:
        return sum(len(_words(text)) for text in texts)

    def embed(self, texts: Sequence[str], progress: EmbedProgress | None = None) -> Vectors:
        self.texts += texts
        vectors = np.full((len(texts), self.dimension), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in _words(text):
                vectors[row, hashlib.sha256(word.encode()).digest()[0] % self.dimension] += 1
            if progress:
                progress(row + 1, len(texts))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def prepared(
    embedder: HashingEmbedder, source: str, text: str, *, corpus: str = "harbour", owner: str = "harbour-office"
) -> PreparedDocument:
    terms = Terms(corpus=corpus, owner=owner, licence="CC-BY-4.0")
    return prepare(source, text.encode(), terms=terms, embedder=embedder)


def open_sqlite(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def prepare_connection(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
