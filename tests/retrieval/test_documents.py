from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path

import pypdf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from retrieval import DocumentError, parse, read
from retrieval.documents import MAX_FILE_BYTES

SUFFIXES = (".txt", ".md", ".html", ".pdf")


def pdf(*pages: list[str], title: str | None = None, password: str | None = None) -> bytes:
    """A PDF with these lines of text on its pages."""
    writer = pypdf.PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for lines in pages:
        page = writer.add_blank_page(612, 792)
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        drawn = "".join(f"({line}) Tj T* " for line in lines)
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 14 TL 72 720 Td {drawn}ET".encode())
        page[NameObject("/Contents")] = writer._add_object(content)
    if title is not None:
        writer.add_metadata({"/Title": title})
    if password is not None:
        writer.encrypt(password, algorithm="AES-256")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_plain_text_is_titled_by_its_file() -> None:
    raw = "\ufeffHigh water at noon.\r\nLow water at six.\r\n".encode()
    parsed = parse("tide-tables_1931.txt", raw)
    assert parsed.title == "tide tables 1931"
    assert parsed.text == "High water at noon.\nLow water at six."
    assert parsed.media_type == "text/plain"
    assert parsed.digest == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    ("markdown", "title", "text"),
    [
        ("# The Mole\n\nIt is long.", "The Mole", "It is long."),
        ("\n## The Mole ##\nIt is long.\n", "The Mole", "It is long."),
        ("# C#\nA key.", "C#", "A key."),
        ("The Mole\n========\n\nIt is long.", "The Mole", "It is long."),
        ("It is long.\n\n# Later\n\nMore.", "mole", "It is long.\n\n# Later\n\nMore."),
        ('---\ntitle: "The Mole"\ntags: a\n---\n# The Mole\nIt is long.', "The Mole", "It is long."),
        ("---\ntitle: The Mole\n---\n# History\nIt is long.", "The Mole", "# History\nIt is long."),
        ("---\ntags: a\n---\n# The Mole\nIt is long.", "The Mole", "It is long."),
        ("#hashtag is no heading", "mole", "#hashtag is no heading"),
    ],
)
def test_a_markdown_heading_becomes_the_title_and_leaves_the_text(markdown: str, title: str, text: str) -> None:
    parsed = parse("mole.md", markdown.encode())
    assert (parsed.title, parsed.text) == (title, text)


@pytest.mark.parametrize(
    ("html", "title", "text"),
    [
        ("<title> The\nMole </title><h1>The  Mole</h1><p>It is <b>long</b>.", "The Mole", "It is long."),
        ("<title>Mole | Harbour</title><h1>The Mole</h1><p>Long.", "Mole | Harbour", "The Mole\n\nLong."),
        ("<title></title><h1>The Mole</h1>Long.", "The Mole", "Long."),
        ("<p>Long.</p>", "mole", "Long."),
        ("<p>\n It <b> is </b> \n long </p>\n<p> Old. </p>", "mole", "It is long\n\nOld."),
        ("<?xml version='1.0'?><!DOCTYPE html><html><p>Long.<br/>Old.</p></html>", "mole", "Long.\nOld."),
        ("<head><title>Mole</title><body>Long.", "Mole", "Long."),
        ("<p>a<!-- no --><script>no()</script><style>no{}</style> b</p><template>no</template>", "mole", "a b"),
        ("<ul><li>one<li>two</ul>three", "mole", "one\ntwo\n\nthree"),
        ("one<br>two", "mole", "one\ntwo"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "mole", "1 2\n3"),
        ("<p>code:</p><pre>if a:\n    b\n</pre>", "mole", "code:\n\nif a:\n    b"),
        ("&lt;b&gt; &amp; caf&eacute;", "mole", "<b> & café"),
        ("just mole.html", "mole", "just mole.html"),
    ],
)
def test_html_keeps_what_a_reader_sees(html: str, title: str, text: str) -> None:
    parsed = parse("mole.html", html.encode())
    assert (parsed.title, parsed.text) == (title, text)


def test_html_may_declare_its_encoding() -> None:
    assert parse("a.html", "<meta charset='iso-8859-1'><p>café".encode("latin-1")).text == "café"
    assert parse("a.html", "<meta charset='iso-8859-1'><p>café".encode()).text == "café"
    with pytest.raises(DocumentError, match="save it as UTF-8"):
        parse("a.html", "<meta charset='klingon'><p>café".encode("latin-1"))


def test_deep_and_wide_html_is_read() -> None:
    assert parse("deep.html", b"<div>" * 20_000 + b"bottom").text == "bottom"
    assert parse("wide.html", b"<p>row</p>\n" * 20_000).text.count("row") == 20_000


def test_pdf_text_and_title() -> None:
    parsed = parse("mole.pdf", pdf(["The Mole", "It is long."], ["It is old."], title="The Mole"))
    assert (parsed.title, parsed.text) == ("The Mole", "It is long.\n\nIt is old.")
    assert parsed.media_type == "application/pdf"
    assert parse("mole.pdf", pdf(["The Mole", "It is long."])).title == "The Mole"
    assert parse("mole.pdf", pdf(["It is long."], title="Harbour")).text == "It is long."
    assert parse("mole.pdf", pdf(["It is long."])).text == "It is long."


@pytest.mark.parametrize(
    ("name", "raw", "advice"),
    [
        ("notes.pdf", b"Dear diary", "is not a PDF"),
        ("notes.pdf", b"%PDF-1.7\nnothing more", "damaged PDF"),
        ("notes.pdf", pdf(["It is long."])[:200], "damaged PDF"),
        ("notes.pdf", pdf([]), "text recognition"),
        ("notes.pdf", pdf(["It is long."], password="secret"), "without a password"),
        ("notes.docx", b"PK", "convert it"),
        ("notes", b"text", "convert it"),
        ("notes.txt", b"", "no text"),
        ("notes.txt", b" \n\t\n", "no text"),
        ("notes.md", b"# Only a title\n", "no text besides its title"),
        ("notes.html", b"<script>x()</script>", "no text"),
        ("notes.html", b"<p>a<![foo[b]]>", "malformed HTML"),
        ("notes.txt", b"caf\xe9", "byte 0xe9 at offset 3; save it as UTF-8"),
        ("notes.txt", b"MZ\x00\x01", "it is no text"),
    ],
)
def test_what_cannot_be_read_is_told_why(name: str, raw: bytes, advice: str) -> None:
    with pytest.raises(DocumentError, match=advice) as raised:
        parse(name, raw)
    assert name in str(raised.value)


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="there is no file"):
        read(tmp_path / "absent.txt")
    with pytest.raises(DocumentError, match="not a regular file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DocumentError, match="not a regular file"):
        read(tmp_path / "pipe.txt")
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DocumentError, match="larger than 20 MB"):
        read(large)


@given(st.text(), st.sampled_from(SUFFIXES), st.text(min_size=1))
def test_any_text_is_read_or_refused(stem: str, suffix: str, text: str) -> None:
    raw = text.encode("utf-8", "replace")
    try:
        parsed = parse(stem + suffix, raw)
    except DocumentError:
        return
    assert parsed.text == parsed.text.strip() != ""
    assert len(parsed.title) <= 200
    assert "\x00" not in parsed.text + parsed.title
    (parsed.text + parsed.title).encode()  # no lone surrogates


@given(st.binary(), st.sampled_from(SUFFIXES))
def test_any_bytes_are_read_or_refused(raw: bytes, suffix: str) -> None:
    with suppress(DocumentError):
        assert parse(f"file{suffix}", (b"%PDF-1.4\n" if suffix == ".pdf" else b"") + raw).text
