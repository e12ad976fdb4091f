"""From a closed month to tokens in a contributor's wallet, by the commands that an operator types."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.cli.context import office
from gateway.cli.settling import KEY_VARIABLE
from ledger_client import to_address
from metering import Books, DocumentTerms, PlayerShare
from tests.metering.kit import CALLER, POLICY, PRICE, Clock, attribution_record, digest, request_id, usage_record

from .kit import HOUR_S, Site

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], site: Site) -> Run:
    """`tributary …` in a folder whose gateway pays through the distributor. A command that fails raises SystemExit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(KEY_VARIABLE, "0x" + site.owner.secret.hex())

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tributary", *arguments])
        capsys.readouterr()
        try:
            main()
        except SystemExit as stopped:
            if stopped.code:
                raise
        return capsys.readouterr().out

    run("init")
    for name, value in (
        ("SETTLEMENT__METHOD", "chain"),
        ("SETTLEMENT__MINIMUM_PAYOUT", "0.000005"),
        ("CHAIN__RPC_URL", site.anvil.url),
        ("CHAIN__CHAIN_ID", str(site.distributor.chain.chain_id)),
        ("CHAIN__CONTRACT", site.distributor.address),
    ):
        monkeypatch.setenv(f"TRIBUTARY__{name}", value)
    return run


def earn(owner: str, tokens: int, number: int, now: datetime) -> None:
    """Answer a question for which a document's owner earns 105 nano-USD a token."""
    books = Books("gateway-1", Clock(now))
    player = PlayerShare(id="doc_1", share_ppm=1_000_000, terms=DocumentTerms(owner=owner))
    with office(Path("tributary.toml")) as o, o.write() as transaction:
        price = books.publish_price(transaction, "chat", PRICE)
        policy = books.publish_policy(transaction, POLICY)
        books.grant_credit(transaction, CALLER, 10**9, "welcome", f"grant-{number}")
        document = o.registry.register_document(
            transaction, document="doc_1", corpus="town", owner=owner, licence="CC0-1.0", digest=digest("text")
        )
        intent = books.admit(transaction, CALLER, 10**8, request_id(number))
        record = usage_record(tokens, 0, price_index=price, adapter=None)
        books.record_usage(transaction, intent, record)
        changes: dict[str, Any] = {
            "policy_index": policy,
            "adapter_index": None,
            "document_indexes": {"doc_1": document},
        }
        books.record_attribution(
            transaction, attribution_record(request_id(number), record.charge_nano, [player], **changes)
        )


def test_a_month_is_settled_posted_funded_and_claimed(run: Run, site: Site) -> None:
    earn("ada", 1_000, 1, datetime(2025, 1, 20, tzinfo=UTC))  # 105,000 nano-USD, 105 units
    run("contributor", "add", "ada", "--name", "Ada")
    wallet = site.alice
    to_sign = json.loads(run("payouts", "bind", "ada", wallet.address))
    assert to_sign["message"]["contributor"] == "ada"
    run("payouts", "bind", "ada", wallet.address, "--signature", wallet.sign_typed_data(to_sign))

    settled = json.loads(run("settle", "--json"))
    assert (settled["period"], settled["epoch"], settled["cumulative_total"]) == ("2025-01", 1, "105")
    assert [(payout["contributor"], payout["address"]) for payout in settled["payouts"]] == [("ada", wallet.address)]

    (posted,) = json.loads(run("payouts", "post", "2025-01", "--json"))
    assert posted["transaction"].startswith("0x")
    assert json.loads(run("payouts", "post", "2025-01", "--json"))[0]["transaction"] is None
    site.mint(site.owner.address, 1_000)
    assert "funded up to 105 units" in run("payouts", "fund")
    site.anvil.sleep(HOUR_S)
    claimed = json.loads(run("payouts", "claim", "ada", "--json"))[0]
    assert (claimed["units"], claimed["cumulative"]) == ("105", "105")
    assert site.distributor.balance(wallet.address) == 105
    assert json.loads(run("payouts", "claim", "ada", "--json"))[0]["transaction"] is None

    status = json.loads(run("payouts", "status", "--json"))
    assert (status["settled"], status["funded"], status["claimed"]) == (105, 105, 105)
    assert json.loads(run("fsck", "--json"))["ok"]


def test_a_root_is_revoked_in_time_and_posted_again(run: Run) -> None:
    earn("ada", 1_000, 1, datetime(2025, 1, 20, tzinfo=UTC))
    run("settle", "2025-01")
    run("payouts", "post", "2025-01")
    assert "revoked" in run("payouts", "revoke", "2025-01")
    (posted,) = json.loads(run("payouts", "post", "2025-01", "--json"))
    assert posted["transaction"] is not None


def test_missing_months_are_posted_first(run: Run, site: Site) -> None:
    earn("ada", 1_000, 1, datetime(2025, 1, 20, tzinfo=UTC))
    earn("ada", 1_000, 2, datetime(2025, 2, 20, tzinfo=UTC))
    for period in ("2025-01", "2025-02", "2025-03"):
        run("settle", period)
    posted = json.loads(run("payouts", "post", "2025-03", "--json"))
    assert [each["period"] for each in posted] == ["2025-01", "2025-02", "2025-03"]
    assert site.distributor.standing().latest_epoch == 3


def test_the_log_is_anchored_as_it_grows(run: Run, site: Site) -> None:
    run("contributor", "add", "ada", "--name", "Ada")
    assert "size 1" in run("anchor")
    assert "there already" in run("anchor")
    run("contributor", "add", "ben", "--name", "Ben")
    run("anchor")
    standing = site.distributor.standing()
    assert standing.anchor is not None
    assert standing.anchor.size == 2


def test_a_signature_of_another_address_binds_nothing(run: Run, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    run("contributor", "add", "ada", "--name", "Ada")
    to_sign = json.loads(run("payouts", "bind", "ada", site.alice.address))
    with pytest.raises(SystemExit):
        run("payouts", "bind", "ada", site.alice.address, "--signature", site.bob.sign_typed_data(to_sign))
    assert "was signed by" in capsys.readouterr().err
    stranger = to_address(b"\x07" * 20)
    with pytest.raises(SystemExit):
        run("payouts", "bind", "ada", stranger, "--signature", site.alice.sign_typed_data(to_sign))
    run("contributor", "list")


def test_a_list_is_exported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIBUTARY__SETTLEMENT__METHOD", "csv")
    earn("ada", 1_000, 1, datetime(2025, 1, 20, tzinfo=UTC))
    run("contributor", "add", "ada", "--name", "=Ada")
    run("settle", "2025-01")
    head, row = run("payouts", "export", "2025-01").splitlines()
    assert head == "period,contributor,name,amount_usd,token_units,address,log_index"
    assert row.startswith("2025-01,ada,'=Ada,0.000105000,105,,")
