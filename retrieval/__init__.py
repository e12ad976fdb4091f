"""Documents people own, the passages in them, and the vector index that finds them."""

from retrieval.documents import DocumentError, ParsedDocument, parse, read
from retrieval.embedder import Embedder, EmbedderError, EmbedProgress, MiniLM, Vectors
from retrieval.index import IndexDamagedError, VectorIndex
from retrieval.ingestion import FileOutcome, IngestProgress, SourceFile, find_files, ingest, prepare
from retrieval.retriever import EmbedderMismatchError, Retriever, Synced
from retrieval.splitter import Span, split
from retrieval.store import (
    Document,
    DocumentRefusedError,
    Outcome,
    Passage,
    PreparedDocument,
    Terms,
    UnknownDocumentError,
    document_id,
    document_text,
    documents,
    find_document,
    metadata,
    put_document,
    revision,
    withdraw,
)

__all__ = [
    "Document",
    "DocumentError",
    "DocumentRefusedError",
    "EmbedProgress",
    "Embedder",
    "EmbedderError",
    "EmbedderMismatchError",
    "FileOutcome",
    "IndexDamagedError",
    "IngestProgress",
    "MiniLM",
    "Outcome",
    "ParsedDocument",
    "Passage",
    "PreparedDocument",
    "Retriever",
    "SourceFile",
    "Span",
    "Synced",
    "Terms",
    "UnknownDocumentError",
    "VectorIndex",
    "Vectors",
    "document_id",
    "document_text",
    "documents",
    "find_document",
    "find_files",
    "ingest",
    "metadata",
    "parse",
    "prepare",
    "put_document",
    "read",
    "revision",
    "split",
    "withdraw",
]
