"""A file becomes a title and a text; offsets of passages refer to that text.

Markdown stays as it was written, but for the heading that became the title. HTML keeps what a reader sees, PDF its text
layer. Whatever cannot be read so raises DocumentError, which says what to change.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePath

import pypdf

MAX_FILE_BYTES = 20_000_000
MAX_TEXT_CHARS = 20_000_000
MAX_TITLE_CHARS = 200

_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)?---(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*(\S.*)$", re.MULTILINE)
_HEADING = re.compile(r"\A\s*(?:#{1,6}[ \t]+(\S.*)|(\S.*)\n[ \t]*(?:={3,}|-{3,})[ \t]*)(?:\n|\Z)")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")

_HTML_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_HTML_UNSEEN = ("noscript", "script", "style", "template")
# The white space that a browser puts before the first and after the last word of an element.
_HTML_EDGES = (
    dict.fromkeys(("br", "dd", "dt", "li", "tr"), ("\n", ""))
    | dict.fromkeys(("td", "th"), ("", " "))
    | dict.fromkeys(
        (
            *("address", "article", "aside", "blockquote", "caption", "details", "div", "dl", "fieldset", "figcaption"),
            *("figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main", "nav", "ol", "p"),
            *("pre", "section", "table", "ul"),
        ),
        ("\n\n", "\n\n"),
    )
)


class DocumentError(ValueError):
    """The file cannot become a document; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class ParsedDocument:
    """What a file says. digest: SHA-256 of the file's bytes, in hex. text: never empty, without the title's line."""

    title: str
    text: str
    digest: str
    media_type: str


def read(path: Path) -> ParsedDocument:
    """Read and parse one file. Raises DocumentError when it is no file, too large, or not what its name says."""
    return parse(path.name, read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """A regular file's bytes, at most MAX_FILE_BYTES. Raises DocumentError."""
    try:
        if not path.is_file():
            raise DocumentError(f"{path.name} is not a regular file" if path.exists() else f"there is no file {path}")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DocumentError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise DocumentError(
            f"{path.name} is larger than {MAX_FILE_BYTES // 1_000_000} MB; split it into smaller documents"
        )
    return raw


def parse(name: str, raw: bytes) -> ParsedDocument:
    """Parse a file's bytes; its name's suffix says how, and its stem is the title where the text offers none.

    Raises DocumentError.
    """
    path = PurePath(name)
    media_type = media_type_of(name)
    if media_type is None:
        raise DocumentError(f"{name} is not one of {', '.join(sorted(_MEDIA_TYPES))}; convert it to one of them")
    title, text = _PARSERS[media_type](name, raw)
    title = " ".join(_clean(title or "").split()) or re.sub(r"[-_\s]+", " ", _clean(path.stem)).strip()
    text = _clean(text).strip()
    if not text:
        raise DocumentError(f"{name} holds no text besides its title")
    if len(text) > MAX_TEXT_CHARS:
        raise DocumentError(f"{name} holds more than {MAX_TEXT_CHARS} characters; split it into smaller documents")
    return ParsedDocument(
        title=title[:MAX_TITLE_CHARS],
        text=text,
        digest=hashlib.sha256(raw).hexdigest(),
        media_type=media_type,
    )


def media_type_of(name: str) -> str | None:
    """The media type that a file's suffix stands for, or None when it is not a document's."""
    return _MEDIA_TYPES.get(PurePath(name).suffix.lower())


def _plain(name: str, raw: bytes) -> tuple[str | None, str]:
    return None, _decode(name, raw)


def _markdown(name: str, raw: bytes) -> tuple[str | None, str]:
    text = _decode(name, raw)
    title = None
    if front := _FRONT_MATTER.match(text):
        text = text[front.end() :]
        named = _FRONT_TITLE.search(front[1] or "")
        title = named and named[1].strip().strip("\"'")
    heading = _HEADING.match(text)
    if heading and title in {None, _heading_text(heading)}:
        return _heading_text(heading), text[heading.end() :]
    return title, text


def _heading_text(heading: re.Match[str]) -> str:
    said = (heading[1] or heading[2]).strip()
    bare = said.rstrip("#")
    return bare.rstrip() if bare[-1:].isspace() else said


def _html(name: str, raw: bytes) -> tuple[str | None, str]:
    declared = _HTML_CHARSET.search(raw[:1024])
    page = _Page()
    text = _decode(name, raw, declared and declared[1].decode("ascii"))
    try:
        page.feed(text)
        page.close()
    except AssertionError as error:  # how the parser refuses a malformed <![section
        raise DocumentError(f"{name} is malformed HTML ({error}); correct it") from error
    return page.result()


class _Page(HTMLParser):
    """Gathers what a reader sees, white space where a browser puts it, in one pass and without a tree."""

    def __init__(self) -> None:
        super().__init__()
        self._text: list[str] = []
        self._title: list[str] = []
        self._heading: list[int] = []  # where in the text the first heading begins and ends
        self._open = Counter[str]()

    def result(self) -> tuple[str | None, str]:
        """The title, and the text without the heading that says the same."""
        title = " ".join("".join(self._title).split())
        if len(self._heading) == 2:
            heading = slice(*self._heading)
            said = " ".join("".join(self._text[heading]).split())
            if said and title in {"", said}:
                title = said
                self._text[heading] = ["\n\n"]
        text = re.sub(r"(?<![ \t])[ \t]+\n", "\n", "".join(self._text))
        return title, re.sub(r"\n{3,}", "\n\n", text)

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - the base class's
        if tag == "h1" and not self._heading:
            self._heading.append(len(self._text))
        self._open[tag] += 1
        self._add(_HTML_EDGES.get(tag, ("", ""))[0])

    def handle_endtag(self, tag: str) -> None:
        self._open[tag] = max(0, self._open[tag] - 1)
        self._add(_HTML_EDGES.get(tag, ("", ""))[1])
        if tag == "h1" and len(self._heading) == 1:
            self._heading.append(len(self._text))

    def handle_data(self, data: str) -> None:
        if self._open["title"]:
            self._title.append(data)
        elif self._open["pre"]:
            self._add(data)
        elif not any(self._open[tag] for tag in _HTML_UNSEEN):
            inside_line = self._text and not self._text[-1][-1].isspace()
            data = re.sub(r"\s+", " ", data)
            self._add(data if inside_line else data.lstrip())

    def _add(self, piece: str) -> None:
        if piece:
            self._text.append(piece)


def _pdf(name: str, raw: bytes) -> tuple[str | None, str]:
    if b"%PDF-" not in raw[:1024]:
        raise DocumentError(f"{name} is not a PDF: it does not begin with %PDF-; give it the suffix of what it is")
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        locked = reader.is_encrypted and not reader.decrypt("")
        title = None if locked else reader.metadata and reader.metadata.title
        text = "" if locked else "\n\n".join(page.extract_text().strip() for page in reader.pages).strip()
    except Exception as error:  # a damaged PDF raises nearly anything from deep inside the parser
        raise DocumentError(f"{name} is a damaged PDF ({type(error).__name__}: {error}); save it anew") from error
    if locked:
        raise DocumentError(f"{name} is encrypted; save it without a password")
    if not text:
        raise DocumentError(f"{name} holds no text, perhaps only images; run it through text recognition first")
    first_line, _, rest = text.partition("\n")
    title = (title or "").strip() or (first_line if len(first_line) <= MAX_TITLE_CHARS else None)
    return title, rest if rest.strip() and title and first_line.split() == title.split() else text


def _decode(name: str, raw: bytes, declared: str | None = None) -> str:
    """UTF-8 if it can be, else what the document itself declares."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            text = raw.decode(declared or "utf-8")
        except (LookupError, UnicodeError):
            raise DocumentError(
                f"{name} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; save it as UTF-8"
            ) from error
    if "\x00" in text:
        raise DocumentError(f"{name} holds NUL characters, so it is no text; give it the suffix of what it is")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _clean(text: str) -> str:
    """Without what no database stores and no reader sees."""
    return _CONTROL.sub("", text.replace("\f", "\n"))


_MEDIA_TYPES = {
    ".htm": "text/html",
    ".html": "text/html",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".pdf": "application/pdf",
    ".txt": "text/plain",
}
_PARSERS: dict[str, Callable[[str, bytes], tuple[str | None, str]]] = {
    "text/plain": _plain,
    "text/markdown": _markdown,
    "text/html": _html,
    "application/pdf": _pdf,
}
