"""Documents people own, the passages in them, and the vector index that finds them."""

from retrieval.documents import DocumentError, ParsedDocument, parse, read
from retrieval.embedder import Embedder, EmbedderError, EmbedProgress, MiniLM, Vectors
from retrieval.index import IndexDamagedError, VectorIndex
from retrieval.splitter import Span, split

__all__ = [
    "DocumentError",
    "EmbedProgress",
    "Embedder",
    "EmbedderError",
    "IndexDamagedError",
    "MiniLM",
    "ParsedDocument",
    "Span",
    "VectorIndex",
    "Vectors",
    "parse",
    "read",
    "split",
]
