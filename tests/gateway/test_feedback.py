from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from gateway import feedback
from gateway.answers import salted_digest
from gateway.cli.context import office
from ledger_client import Entry
from tests.gateway.kit import Site, body

COMMENT = "exactly what I was looking for"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def answered(client: httpx.AsyncClient) -> str:
    return str((await client.post("/v1/chat/completions", json=body())).headers["x-request-id"])


async def rate(client: httpx.AsyncClient, request_id: str, rating: object, **more: object) -> httpx.Response:
    return await client.post("/v1/feedback", json={"request_id": request_id, "rating": rating} | more)


async def test_a_rating_is_logged_and_its_comment_is_not(site: Site) -> None:
    async with site.serve() as (client, gateway):
        request_id = await answered(client)
        rated = await rate(client, request_id, 1, comment=COMMENT)
        rows = await gateway.transactions.read(lambda c: list(feedback.given(c, request_id)))
        stored = await gateway.transactions.read(lambda c: b"".join(raw for _, raw in gateway.log.entries(c)))
    index = rated.json()["log_index"]
    assert (rated.status_code, rated.json()) == (200, {"request_id": request_id, "rating": 1, "log_index": index})
    assert [(row["log_index"], row["rating"], row["comment"]) for row in rows] == [(index, 1, COMMENT)]
    assert COMMENT.encode() not in stored
    (entry,) = site.entries("feedback.recorded")
    with office(site.config) as o, o.database.read() as connection:
        assert Entry.decode(o.log.entry(connection, index)).data == entry
        salt = connection.exec_driver_sql("SELECT salt FROM feedback_comment").scalar_one()
    assert entry["comment_digest"] == salted_digest(salt, [COMMENT])
    site.check()


async def test_repeating_a_rating_changes_nothing_and_another_one_counts(site: Site) -> None:
    async with site.serve() as (client, gateway):
        request_id = await answered(client)
        first, again = [(await rate(client, request_id, 1, comment=COMMENT)).json() for _ in range(2)]
        assert first == again
        plain = (await rate(client, request_id, 1)).json()
        other = (await rate(client, request_id, -1, comment=COMMENT)).json()
        back = (await rate(client, request_id, 1, comment="")).json()
        rows = await gateway.transactions.read(lambda c: list(feedback.given(c)))
    indexes = [one["log_index"] for one in (first, plain, other, back)]
    assert indexes == sorted(set(indexes)) == [row["log_index"] for row in rows]
    assert [(row["rating"], row["comment"]) for row in rows] == [(1, COMMENT), (1, None), (-1, COMMENT), (1, None)]
    assert len(site.entries("feedback.recorded")) == 4


async def test_only_the_caller_of_an_answer_rates_it(site: Site) -> None:
    other = site.new_caller()
    async with site.serve() as (client, _):
        request_id = await answered(client)
        client.headers["Authorization"] = f"Bearer {other}"
        theirs, nobodys = await rate(client, request_id, -1), await rate(client, "req_" + "a" * 26, -1)
        client.headers["Authorization"] = f"Bearer {site.operator}"
        assert (await rate(client, request_id, 1)).status_code == 403
    assert [response.status_code for response in (theirs, nobodys)] == [404, 404]
    assert theirs.json()["error"]["message"].replace(request_id, "") == nobodys.json()["error"]["message"].replace(
        "req_" + "a" * 26, ""
    )
    assert site.entries("feedback.recorded") == []


@pytest.mark.parametrize(
    "more",
    [{"rating": 0}, {"rating": True}, {"rating": "1"}, {"comment": "x" * 4001}, {"comment": "a\0b"}, {"stars": 5}],
)
async def test_a_rating_that_cannot_be_one_is_refused(site: Site, more: dict[str, object]) -> None:
    async with site.serve() as (client, _):
        request_id = await answered(client)
        refused = await rate(client, request_id, **({"rating": 1} | more))  # type: ignore[arg-type]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(more)))
    assert site.entries("feedback.recorded") == []
