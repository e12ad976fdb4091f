"""Who owns a document is corrected after the fact: the shares stay, the money moves, the log tells both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.context import office
from gateway.cli.main import app
from gateway.corrections import Correction, CorrectionError, correct_owners
from gateway.registry import RegistryError
from metering import AttributionRecord, IntentError, MeteringError
from tests.gateway.kit import Site, body


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.engine.score_as = lambda prompt, answer: [-0.1 if "Petra in 1803" in prompt else -2.0] * len(answer)
    with office(site.config) as o, o.write() as transaction:
        o.registry.add_contributor(transaction, "ben", "Ben")
    return site


async def attributed(site: Site, mode: str = "inline", model: str = "guide") -> dict[str, Any]:
    async with site.serve() as (client, _):
        asked = body(model, attribution={"mode": mode})
        found: dict[str, Any] = (await client.post("/v1/chat/completions", json=asked)).json()["attribution"]
    return found


async def shown(site: Site, request_id: str) -> dict[str, Any]:
    async with site.serve() as (client, _):
        found: dict[str, Any] = (await client.get(f"/v1/attributions/{request_id}")).json()
        assert f"index {found['log_index']}\n" in (await client.get(f"/v1/receipts/{request_id}")).text
    return found


def correct(site: Site, request_id: str, owners: dict[str, str], reason: str = "the deed says so") -> Correction:
    with office(site.config) as o, o.write() as transaction:
        return correct_owners(transaction, o.books, o.registry, request_id, owners, reason)


async def test_a_corrected_owner_gets_what_the_first_one_got(site: Site) -> None:
    before = await attributed(site)
    document = before["players"][0]["id"]
    paid_nano = site.check()["contributor:ada"]
    done = correct(site, before["id"], {document: "ben"})
    after, held = await shown(site, before["id"]), site.check()
    assert done.changes_nano == {"contributor:ada": -paid_nano, "contributor:ben": paid_nano}
    assert (held["contributor:ada"], held["contributor:ben"], held["suspense"]) == (0, paid_nano, 0)
    assert (done.supersedes, done.log_index) == (before["log_index"], after["log_index"])
    assert [player["contributor"] for player in after["players"]] == ["ben"]
    for name in ("share_ppm", "score_nats", "token_scores_nats", "title", "id"):
        assert after["players"][0][name] == before["players"][0][name]
    assert {line["account"] for line in after["split"]} == {"platform", "base:fake-base", "contributor:ben"}
    assert sum(int(line["amount_nano"]) for line in after["split"]) == int(before["charge_nano"])
    (entry,) = site.entries("answer.superseded")
    assert (entry["correction"], entry["usage_index"]) == ("the deed says so", done.supersedes - 1)


async def test_the_same_correction_again_writes_nothing_and_it_can_be_taken_back(site: Site) -> None:
    before = await attributed(site)
    document = before["players"][0]["id"]
    held = site.check()
    first = correct(site, before["id"], {document: "ben"})
    again = correct(site, before["id"], {document: "ben"})
    assert (again.log_index, again.supersedes, again.changes_nano) == (first.log_index, first.log_index, {})
    back = correct(site, before["id"], {document: "ada"}, "the deed was forged")
    assert back.supersedes == first.log_index
    after = await shown(site, before["id"])
    assert (after["split"], after["players"]) == (before["split"], before["players"])
    assert site.check() == held | {"contributor:ben": 0}
    assert len(site.entries("answer.superseded")) == 2


async def test_the_credit_rests_on_the_new_owners_registration_where_there_is_one(site: Site) -> None:
    before = await attributed(site)
    document = before["players"][0]["id"]
    (registered,) = site.entries("document.registered")
    with office(site.config) as o, o.write() as transaction:
        index = o.registry.register_document(transaction, **registered | {"owner": "ben"})
    correct(site, before["id"], {document: "ben"})
    (superseded,) = site.entries("answer.superseded")
    assert superseded["document_indexes"] == {document: index}


async def test_what_cannot_be_corrected_is_refused_and_nothing_written(site: Site) -> None:
    found = await attributed(site)
    document = found["players"][0]["id"]
    plain = await attributed(site, model="plain")
    held = site.check()
    for request_id, owners, reason, error in (
        (found["id"], {document: "nobody"}, "r", RegistryError),
        (found["id"], {"doc_other": "ben"}, "r", CorrectionError),
        (found["id"], {document: "ben"}, "two\nlines", MeteringError),
        (plain["id"], {document: "ben"}, "r", CorrectionError),
    ):
        with pytest.raises(error):
            correct(site, request_id, owners, reason)
    assert (site.check(), site.entries("answer.superseded")) == (held, [])


async def test_an_answer_without_a_record_is_not_corrected_yet(site: Site) -> None:
    async with site.serve() as (client, _):
        site.engine.score_as = lambda _prompt, answer: [float("nan")] * len(answer)
        found = (await client.post("/v1/chat/completions", json=body("guide"))).json()["attribution"]
    with pytest.raises(IntentError, match="not attributed yet"):
        correct(site, found["id"], {"doc_x": "ben"})


async def test_the_command_prints_what_moved(site: Site) -> None:
    found = await attributed(site)
    document, paid = found["players"][0]["id"], str(site.check()["contributor:ada"])
    command = ["attribution", "supersede", found["id"], "--reason", "the deed", "--config", str(site.config)]
    done = CliRunner().invoke(app, [*command, "--owner", f"{document}=ben", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["changes"] == [
        {"account": "contributor:ada", "amount_nano": f"-{paid}"},
        {"account": "contributor:ben", "amount_nano": paid},
    ]
    again = CliRunner().invoke(app, [*command, "--owner", f"{document}=ben"])
    assert (again.exit_code, "nothing was written" in again.stdout) == (0, True)
    assert CliRunner().invoke(app, [*command, "--owner", document]).exit_code == 2
    assert (
        CliRunner().invoke(app, [*command, "--owner", f"{document}=ada", "--owner", f"{document}=ben"]).exit_code == 2
    )


async def test_a_record_is_read_back_strictly(site: Site) -> None:
    await attributed(site)
    (data,) = site.entries("answer.attributed")
    assert AttributionRecord.parse(data).data().items() <= data.items()
    for name, wrong in (
        ("split", [part | {"amount_nano": int(part["amount_nano"])} for part in data["split"]]),
        ("split", [part | {"amount_nano": f"0{part['amount_nano']}"} for part in data["split"]]),
        ("split", [part | {"more": 1} for part in data["split"]]),
        ("players", [player | {"share_ppm": 1.0} for player in data["players"]]),
        ("players", None),
        ("players", []),
        ("coalitions", [*data["coalitions"], [[5], 1.0]]),
        ("coalitions", [[]]),
        ("document_indexes", {"doc_x": "3"}),
        ("policy_index", True),
        ("surplus_nats", "1.0"),
        ("surplus_nats", 0.12345678),
        ("estimator", data["estimator"] | {"evaluations": -1}),
        ("estimator", "exact"),
        ("reason", ["why"]),
        ("request_id", "req_x"),
    ):
        with pytest.raises(MeteringError):
            AttributionRecord.parse(data | {name: wrong})
        with pytest.raises(MeteringError):
            AttributionRecord.parse({key: value for key, value in data.items() if key != name})
