"""Finds passages: the database's truth, searched through the vector index."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from retrieval import store
from retrieval.embedder import Embedder, Vectors
from retrieval.index import IndexDamagedError, VectorIndex
from retrieval.store import Passage


class EmbedderMismatchError(RuntimeError):
    """Documents on offer were embedded by another embedder; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What a sync did: passages added to and removed from the index, and how many it holds now."""

    added: int
    removed: int
    passages: int


class Retriever:
    """Searches a copy of the index in memory, brought up to date from the database before each search.

    The file saves a start from reading every vector out of the database, and is nothing else: it may be missing, stale,
    damaged, or written by another process at any time. Safe to share by threads; each brings its own connection.
    """

    def __init__(self, path: Path, embedder: Embedder) -> None:
        self._path = path
        self._embedder = embedder
        self._lock = threading.Lock()
        self._index: VectorIndex | None = None
        self._revision: int | None = None
        self._saved_revision: int | None = None

    def sync(self, connection: sa.Connection) -> Synced:
        """Bring the index to what the database holds, and save it. Raises EmbedderMismatchError."""
        with self._lock:
            synced = self._refresh(connection)
            if self._saved_revision != self._revision or not self._path.exists():
                self._loaded().save(self._path)
                self._saved_revision = self._revision
            return synced

    def search(
        self,
        connection: sa.Connection,
        query: str | Vectors,
        *,
        corpora: Collection[str],
        k: int,
        licences: Collection[str] | None = None,
    ) -> list[Passage]:
        """The k passages of these corpora that are most like the query, best first; fewer when there are fewer.

        query: a question, or its unit vector, float32 (dimension,). licences: those that allow the use; None for any.
        What the connection's transaction sees is what is found: whatever was ingested or withdrawn before it, by
        whichever process, counts. Raises EmbedderMismatchError.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        with self._lock:
            self._refresh(connection)
            if self._loaded().corpora.isdisjoint(corpora):
                return []
        # Outside of the lock: embedding takes longer than everything else here.
        vector = self._embedder.embed([query])[0] if isinstance(query, str) else query
        wanted = k
        while True:
            with self._lock:
                self._refresh(connection)
                ranked = self._loaded().search(vector, wanted, corpora)
            found = [p for p in store.passages(connection, ranked) if licences is None or p.licence in licences]
            if len(found) >= k or len(ranked) < wanted:
                return found[:k]
            wanted *= 4  # what was refused made room for what ranks below it

    def _refresh(self, connection: sa.Connection) -> Synced:
        """Make the copy in memory hold what the database offers. Needs the lock.

        The revision is read before the passages, so a change that commits in between is copied under the older revision
        and the next refresh finds nothing left to do. A failure on the way leaves the older revision, too.
        """
        revision = store.revision(connection)
        index = self._loaded()
        if revision == self._revision:
            return Synced(added=0, removed=0, passages=len(index))
        foreign = store.embedders(connection) - {self._embedder.name}
        if foreign:
            raise EmbedderMismatchError(
                f"there are documents embedded by {', '.join(sorted(foreign))}, not by {self._embedder.name}; "
                "ingest them again, or set the embedder back"
            )
        offered = store.offered_keys(connection)
        stale = index.keys.keys() - offered.keys()
        missing = sorted(offered.keys() - index.keys.keys())
        index.remove(stale)
        for keys, vectors in store.embeddings(connection, missing):
            index.add([offered[key] for key in keys], keys, vectors)
        self._revision = revision
        return Synced(added=len(missing), removed=len(stale), passages=len(index))

    def _loaded(self) -> VectorIndex:
        """The copy in memory; at first what the file holds, if it is whole."""
        if self._index is None:
            name, dimension = self._embedder.name, self._embedder.dimension
            self._index = VectorIndex(embedder=name, dimension=dimension)
            with suppress(FileNotFoundError, IndexDamagedError):
                self._index = VectorIndex.load(self._path, embedder=name, dimension=dimension)
        return self._index
