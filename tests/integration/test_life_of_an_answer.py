"""From a question to a proof: what is generated is charged, attributed, split, logged and provable."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from ledger_client import Entry, Receipt, Verifier, verify_receipt
from tests.integration.conftest import Running

pytestmark = pytest.mark.model

QUESTION = "Who cast the fog bell on North Mole?"


def ask(gateway: Running, question: str = QUESTION, **options: Any) -> dict[str, Any]:
    body = {
        "model": "guide",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 40,
        "attribution": {"mode": "inline"},
        **options,
    }
    answer = gateway.http().post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["attribution"]
    return found


def wait_for(gateway: Running, request_id: str) -> dict[str, Any]:
    deadline_s = time.monotonic() + 300
    while True:
        found: dict[str, Any] = gateway.http().get(f"/v1/attributions/{request_id}").json()
        if found["status"] != "pending":
            return found
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def tributary(gateway: Running, *arguments: str) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--config", str(gateway.config), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def attributed(gateway: Running) -> dict[str, Any]:
    return ask(gateway)


def test_the_attribution_adds_up(attributed: dict[str, Any]) -> None:
    assert attributed["status"] == "attributed"
    assert sum(player["share_ppm"] for player in attributed["players"]) == 1_000_000
    assert sum(int(line["amount_nano"]) for line in attributed["split"]) == int(attributed["charge_nano"])
    usage = attributed["usage"]
    assert int(attributed["charge_nano"]) == usage["prompt_tokens"] * 200 + usage["completion_tokens"] * 800
    assert {line["account"] for line in attributed["split"]} >= {"platform", "base:smollm2-135m-instruct"}


def test_scores_by_token_sum_to_the_score(attributed: dict[str, Any]) -> None:
    for player in attributed["players"]:
        assert len(player["token_scores_nats"]) == attributed["usage"]["completion_tokens"]
        assert sum(player["token_scores_nats"]) == pytest.approx(player["score_nats"], abs=1e-4)
    assert sum(p["score_nats"] for p in attributed["players"]) == pytest.approx(attributed["surplus_nats"], abs=1e-4)


def test_the_document_that_holds_the_answer_leads(attributed: dict[str, Any]) -> None:
    documents = [player for player in attributed["players"] if player["kind"] == "document"]
    assert max(documents, key=lambda player: player["share_ppm"])["contributor"] == "harbour-office"
    assert [player["id"] for player in attributed["players"] if player["kind"] == "adapter"] == ["grounded-qa"]


def test_asynchronous_attribution_follows_the_answer(gateway: Running) -> None:
    pending = ask(gateway, attribution={"mode": "async"})
    assert pending["status"] == "pending"
    assert "players" not in pending
    finished = wait_for(gateway, pending["id"])
    assert finished["status"] == "attributed"
    assert finished["charge_nano"] == pending["charge_nano"]


def test_an_answer_without_players_pays_the_residual_account(gateway: Running) -> None:
    found = ask(gateway, model="smollm2", max_tokens=3)
    assert (found["status"], found["players"]) == ("not_applicable", [])
    residual = [line for line in found["split"] if line["role"] == "residual"]
    assert [line["account"] for line in residual] == ["residual"]


def test_the_receipt_verifies_elsewhere_and_names_the_split(
    gateway: Running, attributed: dict[str, Any], tmp_path: Path
) -> None:
    text = gateway.http().get(f"/v1/receipts/{attributed['id']}").text
    verifier = Verifier.parse(httpx.get(f"{gateway.url}/log/key").text.strip())
    verified = verify_receipt(text, verifier)
    assert verified.ok, str(verified)
    assert verified.index == attributed["log_index"]
    assert verified.entry.data["split"] == [
        {
            "account": s["account"],
            "role": s["role"],
            "kind": s["kind"],
            "item": s["id"],
            "amount_nano": s["amount_nano"],
        }
        for s in attributed["split"]
    ]
    copy = tmp_path / "elsewhere.tlog-proof"
    copy.write_text(text)
    line = attributed["split"][-1]
    key = ["--key", verifier.verifier_key, "--config", str(tmp_path / "none.toml")]
    good = CliRunner().invoke(app, ["verify", str(copy), *key, "--claim", f"{line['account']}={line['amount_nano']}"])
    # One account may have several lines; the claim is about their sum, so ask only where it has one.
    if [s["account"] for s in attributed["split"]].count(line["account"]) == 1:
        assert good.exit_code == 0, good.output
    assert CliRunner().invoke(app, ["verify", str(copy), *key]).exit_code == 0
    copy.write_text(text.replace("index ", "index 1", 1))
    bad = CliRunner().invoke(app, ["verify", str(copy), *key])
    assert bad.exit_code == 1
    assert "NOT verified" in bad.output


def test_nothing_of_prompt_or_answer_is_in_the_log(gateway: Running) -> None:
    secret = "xylophone-quartz-7714"
    asked = ask(gateway, f"What is {secret}?", max_tokens=8)
    with gateway.entries() as stored:
        entries = b"".join(raw for _, raw in stored)
    assert asked["id"].encode() in entries
    assert secret.encode() not in entries
    assert b"demo caller" not in entries
    assert secret not in gateway.log_file.read_text()
    assert not any(key in gateway.log_file.read_text() for key in gateway.keys.values())


def test_a_stream_cut_off_after_three_chunks_is_charged_and_logged(gateway: Running) -> None:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Tell me a very long story about a lighthouse."}],
        "max_tokens": 400,
        "temperature": 0,
        "stream": True,
    }
    with gateway.http().stream("POST", "/v1/chat/completions", json=body) as response:
        request_id = response.headers["x-tributary-request-id"]
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        for _ in range(3):
            next(lines)
    deadline_s = time.monotonic() + 60
    while (found := gateway.http().get(f"/v1/attributions/{request_id}")).status_code == 404:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    finished = wait_for(gateway, request_id)
    generated = finished["usage"]["completion_tokens"]
    assert 2 <= generated < 400
    assert int(finished["charge_nano"]) == finished["usage"]["prompt_tokens"] * 100 + generated * 400
    with gateway.entries() as stored:
        usage = next(Entry.decode(raw) for _, raw in stored if request_id.encode() in raw)
    assert usage.type == "usage.recorded"
    assert usage.data["finish_reason"] == "cancelled"
    assert usage.data["completion_tokens"] == generated
    assert found.json()["id"] == request_id


def test_earnings_agree_to_the_nano_wherever_they_are_read(gateway: Running, attributed: dict[str, Any]) -> None:
    wait_until_idle(gateway)
    period = time.strftime("%Y-%m", time.gmtime())
    http = gateway.http("operator")
    for contributor in tributary(gateway, "contributor", "list"):
        who = contributor["id"]
        entries = http.get(f"/v1/contributors/{who}/entries", params={"limit": 1000}).json()["entries"]
        with gateway.entries() as stored:
            posted = sum(
                int(posting["amount_nano"])
                for _, raw in stored
                for posting in Entry.decode(raw).data.get("postings", [])
                if posting["account"] == f"contributor:{who}"
            )
        totals = {
            posted,
            sum(int(entry["amount_nano"]) for entry in entries),
            int(http.get(f"/v1/contributors/{who}/earnings").json()["total_nano"]),
            int(tributary(gateway, "earnings", who)["total_nano"]),
            int(tributary(gateway, "statement", who, period)["closing_nano"]),
            int(http.get(f"/v1/contributors/{who}/statements/{period}").json()["closing_nano"]),
            int(contributor["balance_nano"]),
        }
        assert len(totals) == 1, (who, totals)
        for grouping in ("document", "adapter", "model", "day"):
            groups = tributary(gateway, "earnings", who, "--by", grouping)["groups"]
            assert sum(int(group["amount_nano"]) for group in groups) == posted
    assert attributed["status"] == "attributed"


def test_a_contributor_reads_its_own_and_nothing_else(gateway: Running) -> None:
    own = gateway.http("contributor")
    assert own.get("/v1/contributors/me/earnings").json()["contributor"] == "harbour-office"
    assert own.get("/v1/contributors/harbour-office/earnings").status_code == 200
    other, nobody = (own.get(f"/v1/contributors/{who}/earnings") for who in ("orla-finch", "nobody"))
    assert (other.status_code, nobody.status_code) == (404, 404)
    assert own.get("/v1/models").status_code == 403
    assert gateway.http("caller").get("/v1/contributors/harbour-office/earnings").status_code == 403
    csv = own.get(f"/v1/contributors/me/statements/{time.strftime('%Y-%m')}", headers={"Accept": "text/csv"})
    assert csv.headers["content-type"].startswith("text/csv")
    for path in ("earnings?period=2026-13", "earnings?group_by=mood", "entries?limit=0", "statements/junk"):
        assert own.get(f"/v1/contributors/me/{path}").status_code == 400, path


def test_an_answer_is_its_callers_alone(gateway: Running, attributed: dict[str, Any]) -> None:
    made = CliRunner().invoke(
        app, ["key", "create", "--role", "caller", "--name", "other", "--config", str(gateway.config)]
    )
    other = gateway.http(key=made.stdout.strip())
    for path in ("attributions", "receipts"):
        assert other.get(f"/v1/{path}/{attributed['id']}").status_code == 404
        assert gateway.http("operator").get(f"/v1/{path}/{attributed['id']}").status_code == 200
    broke = other.post("/v1/completions", json={"model": "smollm2", "prompt": "x", "max_tokens": 1})
    assert (broke.status_code, broke.json()["error"]["code"]) == (402, "insufficient_quota")
    assert CliRunner().invoke(app, ["key", "revoke", "other", "--config", str(gateway.config)]).exit_code == 0
    deadline_s = time.monotonic() + 10
    while (revoked := other.get("/v1/models")).status_code == 200:  # a key is remembered for a second
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert (revoked.status_code, "was revoked on" in revoked.json()["error"]["message"]) == (401, True)


def test_withdrawal_takes_effect_on_the_next_request(gateway: Running, tmp_path: Path) -> None:
    question = "Who keeps the key of the Quillon gate?"
    page = tmp_path / "quillon.md"
    page.write_text("# The Quillon Gate\nThe key of the Quillon gate is kept by Matilda Oxbow, who is ninety.\n")
    options = ("--corpus", "harbour", "--owner", "orla-finch", "--licence", "CC0-1.0")
    added = tributary(gateway, "ingest", str(page), *options)[0]
    assert added["outcome"] == "added"
    assert added["document"] in {player["id"] for player in ask(gateway, question)["players"]}
    assert tributary(gateway, "ingest", str(page), *options)[0]["outcome"] == "unchanged"
    tributary(gateway, "document", "withdraw", added["document"])
    assert added["document"] not in {player["id"] for player in ask(gateway, question)["players"]}


def test_the_transparency_log_is_served(gateway: Running, attributed: dict[str, Any]) -> None:
    verifier = Verifier.parse(httpx.get(f"{gateway.url}/log/key").text.strip())
    size = verifier.open(httpx.get(f"{gateway.url}/log/checkpoint").text).size
    assert size > attributed["log_index"]
    width = min(size, 256)
    suffix = "" if width == 256 else f".p/{width}"
    hashes = httpx.get(f"{gateway.url}/log/tile/0/000{suffix}")
    assert len(hashes.content) == 32 * width
    assert "immutable" in hashes.headers["cache-control"]
    assert httpx.get(f"{gateway.url}/log/tile/entries/000{suffix}").status_code == 200
    for path in ("0/999", "0/0", "x/000", "0/000.p/0"):
        assert httpx.get(f"{gateway.url}/log/tile/{path}").status_code == 404, path


def test_metrics_carry_the_promised_names_and_no_identities(gateway: Running, attributed: dict[str, Any]) -> None:
    wait_until_idle(gateway)
    text = httpx.get(f"{gateway.url}/metrics").text
    for name in (
        "gen_ai_server_request_duration_seconds",
        "gen_ai_server_time_to_first_token_seconds",
        "gen_ai_server_time_per_output_token_seconds",
        "gen_ai_client_token_usage",
        "tributary_attribution_seconds",
        "tributary_attribution_residual_ratio",
        "tributary_attribution_backlog",
        "tributary_ledger_entries",
        "tributary_ledger_commit_seconds",
        "tributary_ledger_open_intents",
        "tributary_ledger_swept_intents_total",
        "tributary_charge_nano_total",
        "tributary_credit_nano_total",
        "tributary_adapter_loads_total",
        "tributary_adapters_resident",
        "tributary_routing_decisions_total",
    ):
        assert f"\n{name}" in text, name
    assert "tributary_ledger_open_intents 0.0" in text
    assert "tributary_attribution_backlog 0.0" in text
    for identity in ("harbour-office", "doc_", "req_", "acct_", attributed["id"]):
        assert identity not in text


def test_health_and_readiness(gateway: Running) -> None:
    assert httpx.get(f"{gateway.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{gateway.url}/readyz").json() == {"status": "ready"}


def test_logs_are_structured_and_name_the_request(gateway: Running, attributed: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in gateway.log_file.read_text().splitlines() if line.startswith("{")]
    mine = [line for line in lines if line.get("request_id") == attributed["id"]]
    assert [(line["event"], line["status"]) for line in mine] == [("request", 200)]


def test_secrets_are_files_of_their_owner_alone(gateway: Running) -> None:
    for name in ("tributary.db", "log.key"):
        assert stat.S_IMODE((gateway.config.parent / name).stat().st_mode) == 0o600


def test_fsck_finds_nothing(gateway: Running) -> None:
    wait_until_idle(gateway)
    assert tributary(gateway, "fsck")["ok"] is True


def wait_until_idle(gateway: Running) -> None:
    deadline_s = time.monotonic() + 300
    while "tributary_attribution_backlog 0.0" not in httpx.get(f"{gateway.url}/metrics").text:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def test_a_receipt_is_about_the_usage_until_the_attribution_is_recorded(gateway: Running) -> None:
    pending = ask(gateway, attribution={"mode": "async"})
    raw = Receipt.parse(gateway.http().get(f"/v1/receipts/{pending['id']}").text).entry
    assert raw is not None
    assert Entry.decode(raw).type in {"usage.recorded", "answer.attributed"}
    wait_for(gateway, pending["id"])
