"""A contributor's statement in each of its forms, and which form a client gets."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.negotiation import best
from gateway.auth import create_key
from gateway.cli.context import office
from tests.gateway.kit import Site, body

FORMS = ("application/json", "text/csv", "text/html")
JSON, CSV, HTML = FORMS
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/csv", CSV),
        ("TEXT/CSV", CSV),
        ("text/html; charset=utf-8", HTML),
        (BROWSER, HTML),
        ("text/*", CSV),
        ("text/*, text/csv;q=0.1", HTML),
        ("text/csv;q=0.5, text/html;q=0.9", HTML),
        ("text/csv;q=0.5, */*;q=0.1", CSV),
        ("*/*, application/json;q=0", CSV),
        ("text/csv, text/html", CSV),
        ("application/xml", None),
        ("application/json;q=0", None),
        ("*/*;q=0", None),
        ("text/csv;q=2", None),
        ("text/csv;version=2", None),
        ("nonsense", None),
        ("nonsense, text/csv", CSV),
    ],
)
def test_the_form_that_a_client_would_rather_have(accept: str | None, form: str | None) -> None:
    assert best(accept, FORMS) == form


@given(st.text(st.characters(max_codepoint=255)))
def test_no_header_is_too_odd_to_be_read(accept: str) -> None:
    assert best(accept, FORMS) in (*FORMS, None)


async def test_a_statement_in_every_form(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.engine.score_as = lambda prompt, answer: [-0.1 if "Petra in 1803" in prompt else -2.0] * len(answer)
    with office(site.config) as o, o.write() as transaction:
        own = create_key(transaction.connection, role="contributor", name="Ada's", contributor="ada").secret
    address = f"/v1/contributors/me/statements/{datetime.now(UTC):%Y-%m}"
    async with site.serve() as (client, _):
        asked = body("guide", attribution={"mode": "inline"})
        attribution = (await client.post("/v1/chat/completions", json=asked)).json()["attribution"]
        await client.post("/v1/feedback", json={"request_id": attribution["id"], "rating": -1})
        client.headers["Authorization"] = f"Bearer {own}"
        client.headers.pop("Accept")
        stated = await client.get(address)
        table = await client.get(address, headers={"Accept": "text/csv"})
        page = await client.get(address, headers={"Accept": BROWSER})
        refused = await client.get(address, headers={"Accept": "application/pdf"})
        several = await client.get(address, headers=[("Accept", "application/pdf"), ("Accept", "text/csv")])
    found = stated.json()
    (line,) = found["lines"]
    assert (line["log_index"], line["request_id"], line["rating"]) == (attribution["log_index"], attribution["id"], -1)
    assert found["closing_nano"] == line["amount_nano"]
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert (rows[-1]["balance_nano"], rows[-1]["log_index"]) == (found["closing_nano"], str(line["log_index"]))
    assert table.headers["content-disposition"].startswith("attachment")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<h1>Ada</h1>" in page.text
    assert attribution["id"] in page.text
    assert (refused.status_code, refused.json()["error"]["code"]) == (406, "not_acceptable")
    assert several.headers["content-type"].startswith("text/csv")
    assert {response.headers["vary"] for response in (stated, table, page)} == {"accept"}
