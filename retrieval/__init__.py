"""Documents people own, the passages in them, and the vector index that finds them."""

from retrieval.documents import DocumentError, ParsedDocument, parse, read
from retrieval.splitter import Span, split

__all__ = [
    "DocumentError",
    "ParsedDocument",
    "Span",
    "parse",
    "read",
    "split",
]
