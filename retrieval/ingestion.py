"""From files to documents in the database: find, read, split, embed, and only then write.

One transaction a file, opened when everything slow is done. What fails leaves nothing of its file behind.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Literal

import sqlalchemy as sa

from retrieval import store
from retrieval.documents import DocumentError, media_type_of, parse, read_bytes
from retrieval.embedder import Embedder, EmbedProgress
from retrieval.splitter import split
from retrieval.store import Document, DocumentRefusedError, Outcome, PreparedDocument, Terms, document_id

MAX_SOURCE_CHARS = 1024

Begin = Callable[[], AbstractContextManager[sa.Connection]]
Record = Callable[[sa.Connection, PreparedDocument], object]


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file found, under the source name that its document will have.

    problem: why it will not be read, if so; skipped: whether that is nothing to worry about.
    """

    source: str
    path: Path
    problem: str | None = None
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class FileOutcome:
    """What became of one file. passages: how many were embedded. reason: why it was skipped or failed."""

    source: str
    path: Path
    outcome: Outcome | Literal["skipped", "failed"]
    document_id: str | None = None
    passages: int = 0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class IngestProgress:
    """How far an ingestion is: files done of files, and passages embedded of the present file's."""

    source: str
    files_done: int
    files: int
    passages_done: int = 0
    passages: int = 0


def ingest(
    begin: Begin,
    paths: Iterable[Path],
    *,
    terms: Terms,
    embedder: Embedder,
    record: Record | None = None,
    reinstate: bool = False,
    progress: Callable[[IngestProgress], None] | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[FileOutcome]:
    """Put files, and what is in folders, into the database; yields each file's outcome once it is committed.

    begin: opens a write transaction that commits on exit. record: called in the transaction of every document that is
    added or replaced. reinstate: offer again what was withdrawn. The index file follows when a retriever syncs.
    Raises what the database, the embedder or record raise: the files before are then committed, the present one is not.
    """
    files = find_files(paths)
    with begin() as connection:
        known = {document.id: document for document in store.documents(connection, corpus=terms.corpus)}
    task = _Ingestion(begin, terms, embedder, record or (lambda *_: None), reinstate, clock, known)
    for position, file in enumerate(files):
        now = IngestProgress(source=file.source, files_done=position, files=len(files))

        def watch(done: int, total: int, now: IngestProgress = now) -> None:
            if progress:
                progress(replace(now, passages_done=done, passages=total))

        watch(0, 0)
        if file.problem is not None:
            yield _not_ingested(file, "skipped" if file.skipped else "failed", file.problem)
            continue
        try:
            outcome = task.put(file, watch)
        except (DocumentError, DocumentRefusedError) as error:
            outcome = _not_ingested(file, "failed", str(error))
        yield outcome


@dataclass(frozen=True)
class _Ingestion:
    """What is the same for every file."""

    begin: Begin
    terms: Terms
    embedder: Embedder
    record: Record
    reinstate: bool
    clock: Callable[[], datetime]
    known: Mapping[str, Document]

    def put(self, file: SourceFile, watch: EmbedProgress) -> FileOutcome:
        """Read, prepare and write one file. Raises DocumentError or DocumentRefusedError."""
        raw = read_bytes(file.path)
        id_ = document_id(self.terms.corpus, file.source)
        outcome = store.settle(
            self.known.get(id_),
            self.terms,
            digest=hashlib.sha256(raw).hexdigest(),
            embedder=self.embedder.name,
            reinstate=self.reinstate,
        )
        passages = 0
        if outcome != "unchanged":
            document = prepare(file.source, raw, terms=self.terms, embedder=self.embedder, progress=watch)
            passages = len(document.spans)
            with self.begin() as connection:
                # Decided again, since another process may have been faster.
                outcome = store.put_document(connection, document, at=self.clock(), reinstate=self.reinstate)
                if outcome != "unchanged":
                    self.record(connection, document)
        return FileOutcome(source=file.source, path=file.path, outcome=outcome, document_id=id_, passages=passages)


def _not_ingested(file: SourceFile, outcome: Literal["skipped", "failed"], reason: str) -> FileOutcome:
    return FileOutcome(source=file.source, path=file.path, outcome=outcome, reason=reason)


def prepare(
    source: str, raw: bytes, *, terms: Terms, embedder: Embedder, progress: EmbedProgress | None = None
) -> PreparedDocument:
    """Parse, split and embed a file's bytes: all that can be done before the database is touched.

    A passage is embedded below its document's title, as a model will read it. Raises DocumentError.
    """
    parsed = parse(PurePath(source).name, raw)
    spans = split(parsed.text, count_tokens=lambda text: embedder.count_tokens([text]))
    vectors = embedder.embed([f"{parsed.title}\n{span.of(parsed.text)}" for span in spans], progress)
    return PreparedDocument(
        terms=terms,
        source=source,
        digest=parsed.digest,
        media_type=parsed.media_type,
        title=parsed.title,
        text=parsed.text,
        embedder=embedder.name,
        spans=tuple(spans),
        vectors=vectors,
    )


def find_files(paths: Iterable[Path]) -> list[SourceFile]:
    """The files that paths name, and those in folders that they name, in an order that the names alone decide.

    A source name begins with the name of the folder that was given, or of the folder that the given file lies in, so
    that it is the same wherever that folder lies. In folders, what is hidden is passed over, a link to a folder is not
    followed, and a link to a file only to within the folder given. No file is found twice.
    """
    found: dict[str, SourceFile] = {}
    seen: set[Path] = set()
    for given in paths:
        root = Path(os.path.abspath(given))  # noqa: PTH100  resolve() would follow links, and with them change names
        for file in _walk(root) if root.is_dir() else [_source_file(root, root.parent)]:
            real = file.path.resolve()
            if real in seen:
                continue
            seen.add(real)
            if file.source in found:
                other = found[file.source].path
                problem = f"has the same folder and name as {other}; rename its folder, or give the folder above both"
                found[str(file.path)] = SourceFile(source=file.source, path=file.path, problem=problem)
            else:
                found[file.source] = file
    return list(found.values())


def _walk(root: Path) -> Iterator[SourceFile]:
    unreadable: list[OSError] = []
    inside = root.resolve()
    for folder, subfolders, names in os.walk(root, onerror=unreadable.append):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            file = _source_file(Path(folder, name), root)
            if media_type_of(name) is None:
                file = replace(file, problem=f"{name} is of a kind that is not read", skipped=True)
            elif file.path.is_symlink() and not file.path.resolve().is_relative_to(inside):
                file = replace(
                    file, problem=f"{name} is a link that leads out of {root.name}; put the file there instead"
                )
            yield file
    for error in unreadable:
        file = _source_file(Path(error.filename), root)
        yield replace(file, problem=f"the folder cannot be read: {error.strerror}")


def _source_file(path: Path, root: Path) -> SourceFile:
    source = unicodedata.normalize("NFC", PurePath(root.name, path.relative_to(root)).as_posix())
    problem = None
    if len(source) > MAX_SOURCE_CHARS:
        problem = f"its path is longer than {MAX_SOURCE_CHARS} characters; shorten it"
    if not source.isprintable():
        problem = "its name holds characters that cannot be printed; rename it"
    return SourceFile(source=source, path=path, problem=problem)
