"""Documents and passages in the database, which is the truth that the vector index copies.

Every function takes the caller's connection and never commits. A change to what may be found raises the revision, a
counter whose row stays locked until that transaction ends: who sees an unchanged revision has missed nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import sqlalchemy as sa

from retrieval.embedder import Vectors
from retrieval.splitter import Span

Outcome = Literal["added", "replaced", "unchanged"]

_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_KEYS_IN_A_QUERY = 500

metadata = sa.MetaData()

corpus_document = sa.Table(
    "corpus_document",
    metadata,
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("corpus", sa.String(63), nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("owner", sa.String(63), nullable=False),
    sa.Column("licence", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("media_type", sa.String(32), nullable=False),
    sa.Column("title", sa.String(200), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("embedder", sa.String(63), nullable=False),
    sa.Column("ingested_at", sa.String(32), nullable=False),
    sa.Column("withdrawn_at", sa.String(32)),
    sa.Index("corpus_document_by_corpus", "corpus"),
)

# The embedding is stored, float32 little-endian, so that an index is rebuilt without a model.
corpus_passage = sa.Table(
    "corpus_passage",
    metadata,
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("document_id", sa.String(20), sa.ForeignKey("corpus_document.id"), nullable=False),
    sa.Column("start_offset", sa.Integer, nullable=False),
    sa.Column("end_offset", sa.Integer, nullable=False),
    sa.Column("embedding", sa.LargeBinary, nullable=False),
    sa.Index("corpus_passage_by_document", "document_id"),
)

corpus_revision = sa.Table(
    "corpus_revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

_OFFERED = corpus_document.c.withdrawn_at.is_(None)


class DocumentRefusedError(ValueError):
    """The database holds a document that this one may not replace; the message says what to do."""


class UnknownDocumentError(LookupError):
    """No document has this id."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Where a document goes, whose it is, what may be done with it. licence: an SPDX identifier or a short phrase."""

    corpus: str
    owner: str
    licence: str

    def __post_init__(self) -> None:
        for field, value in (("corpus", self.corpus), ("owner", self.owner)):
            if not _SLUG.fullmatch(value):
                raise ValueError(f"{field} {value!r} is not 1 to 63 of a-z, 0-9 and '-', begun by a letter or digit")
        if not (0 < len(self.licence) <= 100 and self.licence.isprintable()):
            raise ValueError("a licence is named in 1 to 100 printable characters, for instance CC-BY-4.0")


@dataclass(frozen=True, kw_only=True)
class Document:
    """An owned item of a corpus. digest: SHA-256 of the file, in hex. Times are RFC 3339 UTC."""

    id: str
    corpus: str
    source: str
    owner: str
    licence: str
    digest: str
    media_type: str
    title: str
    embedder: str
    ingested_at: str
    withdrawn_at: str | None


@dataclass(frozen=True, kw_only=True)
class Passage:
    """What a search found: text is characters start to end of the document's; score is a cosine, -1 to 1."""

    id: str
    document_id: str
    corpus: str
    owner: str
    licence: str
    digest: str
    title: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedDocument:
    """A document ready to be put: the slow work is done. vectors: float32 (n_spans, dimension), unit rows."""

    terms: Terms
    source: str
    digest: str
    media_type: str
    title: str
    text: str
    embedder: str
    spans: tuple[Span, ...]
    vectors: Vectors

    def __post_init__(self) -> None:
        if not self.spans or len(self.spans) != len(self.vectors):
            raise ValueError(f"{len(self.spans)} passages with {len(self.vectors)} vectors")

    @property
    def id(self) -> str:
        """The document's id."""
        return document_id(self.terms.corpus, self.source)


def document_id(corpus: str, source: str) -> str:
    """The id of the document that a corpus holds under a source name, so that ingesting it again finds it."""
    return f"doc_{_digest16(corpus, source)}"


def settle(existing: Document | None, terms: Terms, *, digest: str, embedder: str, reinstate: bool = False) -> Outcome:
    """What putting a file does, given the document that has its id.

    Raises DocumentRefusedError: what was withdrawn stays so unless reinstated, and a document changes hands only by
    being withdrawn by one owner and reinstated by the next.
    """
    if existing is None:
        return "added"
    if existing.withdrawn_at is not None:
        if not reinstate:
            raise DocumentRefusedError(
                f"{existing.source} was withdrawn at {existing.withdrawn_at}; reinstate it to offer it"
            )
        return "replaced"
    if existing.owner != terms.owner:
        raise DocumentRefusedError(
            f"corpus {terms.corpus} holds a document {existing.source} of {existing.owner}; "
            "withdraw that first, or ingest this one from a folder of another name"
        )
    same = (existing.digest, existing.licence, existing.embedder) == (digest, terms.licence, embedder)
    return "unchanged" if same else "replaced"


def put_document(
    connection: sa.Connection, document: PreparedDocument, *, at: datetime, reinstate: bool = False
) -> Outcome:
    """Add a document with its passages, or replace them; nothing when it is unchanged. Raises DocumentRefusedError."""
    revision = _locked_revision(connection)
    outcome = settle(
        find_document(connection, document.id),
        document.terms,
        digest=document.digest,
        embedder=document.embedder,
        reinstate=reinstate,
    )
    if outcome == "unchanged":
        return outcome
    row = {
        "corpus": document.terms.corpus,
        "source": document.source,
        "owner": document.terms.owner,
        "licence": document.terms.licence,
        "digest": document.digest,
        "media_type": document.media_type,
        "title": document.title,
        "text": document.text,
        "embedder": document.embedder,
        "ingested_at": _timestamp(at),
        "withdrawn_at": None,
    }
    if outcome == "added":
        connection.execute(sa.insert(corpus_document).values(id=document.id, **row))
    else:
        connection.execute(sa.delete(corpus_passage).where(corpus_passage.c.document_id == document.id))
        connection.execute(sa.update(corpus_document).where(corpus_document.c.id == document.id).values(row))
    connection.execute(sa.insert(corpus_passage), [*_passage_rows(document)])
    _set_revision(connection, revision + 1)
    return outcome


def withdraw(connection: sa.Connection, document_id: str, *, at: datetime) -> bool:
    """Offer a document no more, from the next search on; False when it was withdrawn already.

    Raises UnknownDocumentError.
    """
    revision = _locked_revision(connection)
    document = find_document(connection, document_id)
    if document is None:
        raise UnknownDocumentError(f"there is no document {document_id}")
    if document.withdrawn_at is not None:
        return False
    changed = sa.update(corpus_document).where(corpus_document.c.id == document_id)
    connection.execute(changed.values(withdrawn_at=_timestamp(at)))
    _set_revision(connection, revision + 1)
    return True


def find_document(connection: sa.Connection, document_id: str) -> Document | None:
    """One document, withdrawn or not."""
    return next(_documents(connection, corpus_document.c.id == document_id), None)


def documents(connection: sa.Connection, *, corpus: str | None = None) -> list[Document]:
    """Every document, withdrawn ones too, by corpus and source."""
    return [*_documents(connection, sa.true() if corpus is None else corpus_document.c.corpus == corpus)]


def document_text(connection: sa.Connection, document_id: str) -> str:
    """The extracted text that passages' offsets refer to. Raises UnknownDocumentError."""
    query = sa.select(corpus_document.c.text).where(corpus_document.c.id == document_id)
    text: str | None = connection.execute(query).scalar_one_or_none()
    if text is None:
        raise UnknownDocumentError(f"there is no document {document_id}")
    return text


# What the index copies. A passage's key there is its id as a signed 64-bit integer; the id is made of everything that
# its vector depends on, so that an index that holds the key holds the right vector.


def passage_id(key: int) -> str:
    """The id of the passage with this key."""
    return f"pas_{key % 2**64:016x}"


def revision(connection: sa.Connection) -> int:
    """How often what may be found has changed."""
    return connection.execute(sa.select(corpus_revision.c.revision)).scalar_one_or_none() or 0


def embedders(connection: sa.Connection) -> frozenset[str]:
    """The embedders of all documents that are offered."""
    query = sa.select(corpus_document.c.embedder).where(_OFFERED).distinct()
    return frozenset(connection.execute(query).scalars())


def offered_keys(connection: sa.Connection) -> dict[int, str]:
    """The keys of all passages that may be found, each with its corpus."""
    query = sa.select(corpus_passage.c.id, corpus_document.c.corpus).join(corpus_document).where(_OFFERED)
    return {_key(id_): corpus for id_, corpus in connection.execute(query)}


def embeddings(connection: sa.Connection, keys: Sequence[int]) -> Iterator[tuple[list[int], Vectors]]:
    """The vectors of those keys that exist, in batches: keys, and float32 (n_keys, dimension)."""
    for ids in _batches(keys):
        query = sa.select(corpus_passage.c.id, corpus_passage.c.embedding).where(corpus_passage.c.id.in_(ids))
        if rows := connection.execute(query).all():
            vectors = np.frombuffer(b"".join(row.embedding for row in rows), dtype="<f4").reshape(len(rows), -1)
            yield [_key(row.id) for row in rows], vectors.astype(np.float32, copy=False)


def passages(connection: sa.Connection, scores: Sequence[tuple[int, float]]) -> list[Passage]:
    """The passages with these keys and scores, in this order, without those that are no longer offered."""
    document, passage = corpus_document.c, corpus_passage.c
    text = sa.func.substr(document.text, passage.start_offset + 1, passage.end_offset - passage.start_offset)
    columns = (
        *(passage.id, passage.document_id, document.corpus, document.owner, document.licence, document.digest),
        *(document.title, text.label("text"), passage.start_offset.label("start"), passage.end_offset.label("end")),
    )
    found = {}
    for ids in _batches([key for key, _ in scores]):
        query = sa.select(*columns).join_from(corpus_passage, corpus_document).where(passage.id.in_(ids), _OFFERED)
        found.update({row.id: row for row in connection.execute(query)})
    ranked = [(found.get(passage_id(key)), score) for key, score in scores]
    return [Passage(**row._mapping, score=score) for row, score in ranked if row is not None]


def _documents(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Iterator[Document]:
    columns = [column for column in corpus_document.columns if column.name != "text"]
    query = sa.select(*columns).where(condition).order_by(corpus_document.c.corpus, corpus_document.c.source)
    return (Document(**row._mapping) for row in connection.execute(query))


def _passage_rows(document: PreparedDocument) -> Iterator[dict[str, object]]:
    for span, vector in zip(document.spans, document.vectors, strict=True):
        place = (document.id, document.embedder, str(span.start), str(span.end))
        yield {
            "id": f"pas_{_digest16(*place, document.title, span.of(document.text))}",
            "document_id": document.id,
            "start_offset": span.start,
            "end_offset": span.end,
            "embedding": vector.astype("<f4").tobytes(),
        }


def _locked_revision(connection: sa.Connection) -> int:
    """The revision, its row locked until the transaction ends; the first change of all makes the row."""
    locked = sa.select(corpus_revision.c.revision).with_for_update()
    if connection.execute(locked).first() is None:
        with suppress(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(sa.insert(corpus_revision).values(id=1, revision=0))
    revision: int = connection.execute(locked).scalar_one()
    return revision


def _set_revision(connection: sa.Connection, revision: int) -> None:
    connection.execute(sa.update(corpus_revision).values(revision=revision))


def _batches(keys: Sequence[int]) -> Iterator[list[str]]:
    for start in range(0, len(keys), _KEYS_IN_A_QUERY):
        yield [passage_id(key) for key in keys[start : start + _KEYS_IN_A_QUERY]]


def _key(id_: str) -> int:
    return int.from_bytes(bytes.fromhex(id_.removeprefix("pas_")), "big", signed=True)


def _digest16(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _timestamp(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError("a time needs a time zone")
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
