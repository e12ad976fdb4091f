"""The vector index: a copy of the embeddings, arranged for searching. The only module that knows FAISS.

It is a cache. Whatever is wrong with its file, the database has every vector, so a reader need only notice.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import cast

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.embedder import Vectors

_FORMAT = "tributary-index/1"


class IndexDamagedError(ValueError):
    """The file is not a whole index of this embedder."""


class VectorIndex:
    """Unit vectors under int64 keys, corpus by corpus, searched exhaustively.

    One part a corpus, because a search is always limited to the corpora that a served model may use, and so visits
    exactly what it may return. Not safe to change and search at once; its owner holds a lock.

    File: SHA-256 of the rest, then a line of JSON that gives format, embedder, dimension and the parts' corpora and
    sizes in bytes, then the parts as FAISS writes them.
    """

    def __init__(self, *, embedder: str, dimension: int) -> None:
        self._embedder = embedder
        self._dimension = dimension
        self._parts: dict[str, faiss.IndexIDMap] = {}
        self._corpus_of: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._corpus_of)

    @property
    def keys(self) -> Mapping[int, str]:
        """The corpus of every key that the index holds."""
        return self._corpus_of

    @property
    def corpora(self) -> Set[str]:
        """The corpora of which the index holds anything."""
        return self._parts.keys()

    def add(self, corpora: Sequence[str], keys: Sequence[int], vectors: Vectors) -> None:
        """Add vectors, float32 (n_keys, dimension), under keys that the index does not hold yet, each in its corpus."""
        if not len(corpora) == len(keys) == len(vectors) or vectors.shape[1:] != (self._dimension,):
            raise ValueError(f"{len(keys)} keys need vectors ({len(keys)}, {self._dimension}), not {vectors.shape}")
        if len(set(keys)) < len(keys) or not self._corpus_of.keys().isdisjoint(keys):
            raise ValueError("a key is added twice")
        for corpus in dict.fromkeys(corpora):
            rows = [row for row, its in enumerate(corpora) if its == corpus]
            part = self._parts.setdefault(corpus, faiss.IndexIDMap(faiss.IndexFlatIP(self._dimension)))
            part.add_with_ids(vectors[rows], np.array([keys[row] for row in rows], dtype=np.int64))
        self._corpus_of.update(zip(keys, corpora, strict=True))

    def remove(self, keys: Collection[int]) -> None:
        """Remove keys; those that the index does not hold are passed over."""
        by_corpus: dict[str, list[int]] = {}
        for key in keys:
            corpus = self._corpus_of.pop(key, None)
            if corpus is not None:
                by_corpus.setdefault(corpus, []).append(key)
        for corpus, gone in by_corpus.items():
            self._parts[corpus].remove_ids(faiss.IDSelectorBatch(np.array(gone, dtype=np.int64)))
            if self._parts[corpus].ntotal == 0:
                del self._parts[corpus]

    def search(self, vector: NDArray[np.float32], k: int, corpora: Collection[str]) -> list[tuple[int, float]]:
        """The k keys of these corpora whose vectors have the largest inner product with vector, best first."""
        query = np.ascontiguousarray(vector, dtype=np.float32).reshape(1, self._dimension)
        found: list[tuple[int, float]] = []
        for corpus in set(corpora) & self._parts.keys():
            part = self._parts[corpus]
            scores, keys = part.search(query, min(k, part.ntotal))
            found.extend(zip(keys[0].tolist(), scores[0].tolist(), strict=True))
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]

    def save(self, path: Path) -> None:
        """Replace the file as a whole; when this returns, it is on the disk. Readers see the old file or the new."""
        parts = {corpus: faiss.serialize_index(part).tobytes() for corpus, part in sorted(self._parts.items())}
        header = {
            "format": _FORMAT,
            "embedder": self._embedder,
            "dimension": self._dimension,
            "parts": [[corpus, len(part)] for corpus, part in parts.items()],
        }
        blocks = [json.dumps(header).encode() + b"\n", *parts.values()]
        checksum = hashlib.sha256()
        for block in blocks:
            checksum.update(block)
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines([checksum.digest(), *blocks])
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _fsync_folder(path.parent)

    @classmethod
    def load(cls, path: Path, *, embedder: str, dimension: int) -> VectorIndex:
        """Read a file that `save` wrote. Raises FileNotFoundError, or IndexDamagedError for any other bytes."""
        raw = path.read_bytes()
        checksum, body = raw[:32], memoryview(raw)[32:]
        if hashlib.sha256(body).digest() != checksum:
            raise IndexDamagedError(f"{path} does not match its checksum")
        line_end = raw.index(b"\n", 32) + 1
        header = json.loads(raw[32:line_end])
        if (header["format"], header["embedder"], header["dimension"]) != (_FORMAT, embedder, dimension):
            raise IndexDamagedError(f"{path} holds vectors of {header['embedder']}, not of {embedder}")
        index = cls(embedder=embedder, dimension=dimension)
        start = line_end
        for corpus, size_bytes in header["parts"]:
            stored = np.frombuffer(raw, dtype=np.uint8, count=size_bytes, offset=start)
            start += size_bytes
            part = cast("faiss.IndexIDMap", faiss.deserialize_index(stored))
            index._parts[corpus] = part
            index._corpus_of |= dict.fromkeys(faiss.vector_to_array(part.id_map).tolist(), corpus)
        return index


def _fsync_folder(folder: Path) -> None:
    """Make a rename in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
