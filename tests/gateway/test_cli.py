"""The command as a person types it: what it prints, how it exits, and that a refusal writes nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gateway.cli import asking, material
from ledger_client import Signer
from tests.gateway.command import Run, runner
from tests.retrieval.kit import HashingEmbedder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`tributary …` in a folder of its own that `init` has prepared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(material, "make_embedder", lambda _settings: HashingEmbedder(name="all-minilm-l6-v2"))
    run = runner(monkeypatch, capsys)
    assert run("init").code == 0
    return run


def entries(run: Run) -> int:
    count: int = run("fsck", "--json").json["entries"]
    return count


def test_init_makes_private_files_and_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    key = (tmp_path / "log.key").read_bytes()
    (tmp_path / "tributary.toml").write_text("[server]\nport = 1234\n")
    assert run("init").code == 0
    assert (tmp_path / "log.key").read_bytes() == key
    assert "1234" in (tmp_path / "tributary.toml").read_text()
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("log.key", "tributary.db")} == {0o600}


@pytest.mark.parametrize("origin", ["a b", "a+b", "", "x" * 256])
def test_init_with_a_bad_origin_writes_nothing(run: Run, tmp_path: Path, origin: str) -> None:
    refused = run("init", "site", "--origin", origin)
    assert (refused.code, "--origin" in refused.err) == (2, True)
    assert not (tmp_path / "site").exists()


def test_init_takes_any_good_origin(run: Run) -> None:
    made = run("init", "site", "--origin", 'example.com/"log\\')
    assert (made.code, 'log key: example.com/"log\\+' in made.out) == (0, True)


def test_a_key_file_that_is_missing_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.key").unlink()
    for command in (["contributor", "list"], ["log-key"]):
        refused = run(*command)
        assert (refused.code, refused.err) == (1, f"error: there is no signing key at {tmp_path / 'log.key'}\n")


def test_a_database_that_fails_is_said_without_its_statement(run: Run, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "tributary.db") as database:
        database.execute("DROP TABLE api_key")
    database.close()
    refused = run("key", "revoke", "hush-hush")
    assert (refused.code, refused.err) == (1, "error: the database: no such table: api_key\n")
    (tmp_path / "tributary.db").write_text("no database at all, but text " * 40)
    refused = run("key", "list")
    assert (refused.code, refused.err) == (1, "error: the database: file is not a database\n")


def test_a_log_that_contradicts_itself_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    run("contributor", "add", "ada")
    run("contributor", "add", "ben")
    with sqlite3.connect(tmp_path / "tributary.db") as database:
        database.execute("DELETE FROM contributor WHERE id = 'ada'")
        database.execute("DELETE FROM log_entry WHERE log_index = 1")
    database.close()
    for who in ("ada", "cleo"):  # logged before, with another name; and after a gap
        refused = run("contributor", "add", who, "--name", "Somebody")
        assert (refused.code, refused.err.count("\n")) == (1, 1), refused.err
        assert refused.err.startswith("error: "), refused.err


def test_what_looks_like_markup_is_printed_as_it_is(run: Run, tmp_path: Path) -> None:
    name = "see [/b] here [red]:warning:"
    assert f"({name})" in run("contributor", "add", "ada", "--name", name).out
    assert name in run("contributor", "list").out
    run("key", "create", "--role", "caller", "--name", name, "--credit", "1")
    assert name in run("key", "list").out
    assert f"{name}: 2." in run("key", "credit", name, "1").out
    assert f"({name})" in run("key", "revoke", name).out
    (tmp_path / "tributary.toml").write_text("[[models]]\nname = 'a'\npolicy = 'none'\n")
    assert "which no [[policies]] defines" in run("key", "list").err


def test_an_attribution_is_drawn_with_titles_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    player = {"kind": "document", "title": "see [/b] here", "contributor": "ada", "score_nats": 1.0, "share_ppm": 10**6}
    found = {
        "id": "req_x",
        "status": "complete",
        "charge_nano": "7",
        "players": [player],
        "reason": "the [/b] of it",
        "split": [{"account": "contributor:ada", "role": "document", "amount_nano": "7"}],
        "log_index": 3,
    }
    asking.draw_attribution(found)
    asking.draw_attribution(found | {"status": "failed"})
    out = capsys.readouterr().out
    assert "document see [/b] here" in out
    assert out.count("the [/b] of it") == 2


def test_ask_takes_the_first_model_for_chat() -> None:
    models = [{"id": "e", "kind": "embedding"}, {"id": "c", "kind": "chat"}]
    assert asking._first_for_chat(models) == "c"
    with pytest.raises(asking.RefusedError, match="no model for chat"):
        asking._first_for_chat(models[:1])


def test_a_key_file_that_others_can_read_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.key").chmod(0o644)
    refused = run("contributor", "list")
    assert (refused.code, "chmod 600" in refused.err) == (1, True)


def test_a_config_key_that_does_not_exist_stops_every_command(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tributary.toml").write_text("[server]\nprot = 1\n")
    for command in (["serve"], ["config", "check"], ["fsck"], ["key", "list"]):
        refused = run(*command)
        assert (refused.code, "server.prot: this key does not exist" in refused.err) == (1, True), command


def test_a_log_is_gone_on_with_by_no_other_key(run: Run, tmp_path: Path) -> None:
    run("contributor", "add", "ada")
    (tmp_path / "log.key").rename(tmp_path / "right.key")
    lost = run("init")
    assert (lost.code, "another key signed" in lost.err, (tmp_path / "log.key").exists()) == (1, True, False)
    Signer.generate("tributary.local/log").save(tmp_path / "log.key")
    wrong = run("contributor", "add", "ben")
    assert (wrong.code, "no signature by" in wrong.err) == (1, True)
    (tmp_path / "right.key").rename(tmp_path / "log.key")
    assert run("fsck").out.strip() == "fsck: ok, 1 entries"


def test_a_corpus_name_that_cannot_be_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# A page\nText.\n")
    assert run("ingest", "page.md", "--corpus", "UPPER", "--owner", "ada").code == 2


def test_usage_errors_exit_with_2(run: Run) -> None:
    assert run("key", "create", "--role", "wizard", "--name", "x").code == 2
    assert run("key", "create", "--role", "operator", "--name", "x", "--credit", "1").code == 2
    assert run("key", "create", "--role", "caller", "--name", "x", "--credit", "-1").code == 2
    assert run("ingest", "nowhere.md", "--corpus", "c", "--owner", "o").code == 2
    assert run("nonsense").code == 2


def test_contributors(run: Run) -> None:
    first = run("contributor", "add", "ada", "--name", "Ada Brandt", "--json").json
    assert first["log_index"] == 0
    assert run("contributor", "add", "ada", "--name", "Ada Brandt", "--json").json["log_index"] == 0
    clash = run("contributor", "add", "ada", "--name", "Somebody Else")
    assert (clash.code, "registered already, as 'Ada Brandt'" in clash.err) == (1, True)
    assert run("contributor", "add", "Not A Slug").code == 1
    assert [row["id"] for row in run("contributor", "list", "--json").json] == ["ada"]
    assert "Ada Brandt" in run("contributor", "show", "ada").out
    assert run("contributor", "show", "ben").code == 1
    assert entries(run) == 1


def test_keys(run: Run) -> None:
    secret = run("key", "create", "--role", "caller", "--name", "app", "--credit", "1.50").out.strip()
    assert secret.startswith("trib-caller-")
    (listed,) = run("key", "list", "--json").json
    assert (listed["name"], listed["available_usd"]) == ("app", "1.500000000")
    assert secret not in run("key", "list", "--json").out
    assert "2.000000000 USD" in run("key", "credit", "app", "0.5").out
    assert run("key", "credit", "app", "0.0000000001").code == 2
    assert run("key", "revoke", "app").code == 0
    assert run("key", "revoke", "app").code == 1
    assert run("key", "create", "--role", "contributor", "--name", "x", "--contributor", "nobody").code == 1


def test_keys_with_limits(run: Run) -> None:
    run("key", "create", "--role", "caller", "--name", "app", "--credit", "2", "--monthly-usd", "20")
    shared = ("--account-of", "app", "--requests-per-minute", "60", "--tokens-per-minute", "9000")
    run("key", "create", "--role", "caller", "--name", "second", *shared)
    app, second = run("key", "list", "--json").json
    assert app["subject"] == second["subject"]
    assert second["available_usd"] == "2.000000000"
    unlimited = {"monthly_usd": None, "requests_per_minute": None, "tokens_per_minute": None}
    unspent = unlimited | {"spent_this_month_usd": "0.000000000"}
    assert app["limits"] == unspent | {"monthly_usd": "20.000000000"}
    assert second["limits"] == unspent | {"requests_per_minute": 60, "tokens_per_minute": 9000}
    assert app["account_limits"] is None
    assert (
        "second: 10 requests/min, 9000 tokens/min" in run("key", "limit", "second", "--requests-per-minute", "10").out
    )
    assert "the account of app: 0.0" in run("key", "limit", "app", "--account", "--monthly-usd", "9.5").out
    assert run("key", "list", "--json").json[1]["account_limits"] == unspent | {"monthly_usd": "9.500000000"}
    assert "9000 tokens/min" in run("key", "list").out
    assert run("key", "limit", "second", "--none").out.strip() == "second: no limits"
    assert run("key", "list", "--json").json[1]["limits"] is None
    run("key", "revoke", "app")
    assert run("key", "list", "--json").json[0]["limits"] == unspent | {"monthly_usd": "20.000000000"}


def test_limits_that_cannot_be_are_usage_errors(run: Run) -> None:
    run("key", "create", "--role", "operator", "--name", "op")
    run("key", "create", "--role", "caller", "--name", "app")
    for wrong in (
        ("create", "--role", "operator", "--name", "x", "--monthly-usd", "1"),
        ("create", "--role", "operator", "--name", "x", "--account-of", "app"),
        ("create", "--role", "caller", "--name", "x", "--account-of", "op"),
        ("create", "--role", "caller", "--name", "x", "--requests-per-minute", "-1"),
        ("limit", "app"),
        ("limit", "app", "--none", "--monthly-usd", "1"),
        ("limit", "app", "--monthly-usd", "much"),
        ("limit", "op", "--monthly-usd", "1"),
    ):
        assert run("key", *wrong).code == 2, wrong
    assert run("key", "limit", "nobody", "--none").code == 1
    assert len(run("key", "list", "--json").json) == 2


def test_a_statement_in_each_form_printed_and_in_a_file(run: Run, tmp_path: Path) -> None:
    run("contributor", "add", "ada", "--name", "Ada & Co")
    stated = ("statement", "ada", "2025-01")
    assert run(*stated, "--json").json["lines"] == []
    assert "Ada &amp; Co" in run(*stated, "--html").out
    for form in ("--csv", "--html", "--json"):
        written = tmp_path / "statement"
        assert run(*stated, form, "--out", str(written)).code == 0
        assert written.read_bytes().decode() == run(*stated, form).out
    assert "the period is open" in run(*stated).out
    assert run(*stated, "--csv", "--html").code == 2
    assert run(*stated, "--out", "x").code == 2


def test_feedback_without_any(run: Run) -> None:
    assert run("feedback", "list", "--json").json == []
    assert run("feedback", "list", "--request", "req_x").code == 0


def test_documents(run: Run, tmp_path: Path) -> None:
    run("contributor", "add", "ada")
    page = tmp_path / "clock.md"
    page.write_text("# The clock\nThe clock was built by Petra.\n")
    command = ("ingest", str(page), "--corpus", "mill", "--owner", "ada", "--licence", "CC0-1.0", "--json")
    (added,) = run(*command).json
    assert (added["outcome"], entries(run)) == ("added", 2)
    assert [row["outcome"] for row in run(*command).json] == ["unchanged"]
    assert entries(run) == 2
    page.write_text("# The clock\nThe clock was built by Petra Voss.\n")
    assert [row["outcome"] for row in run(*command).json] == ["replaced"]
    assert entries(run) == 3
    shown = run("document", "show", added["document"], "--json").json
    assert (shown["owner"], shown["text"]) == ("ada", "The clock was built by Petra Voss.")
    assert run("document", "withdraw", added["document"], "--json").json["changed"] is True
    assert run("document", "withdraw", added["document"], "--json").json["changed"] is False
    assert entries(run) == 4
    assert run("document", "list", "--json").json[0]["withdrawn_at"] is not None
    assert run("document", "withdraw", "doc_0000000000000000").code == 1


def test_a_document_of_nobody_or_a_pdf_that_is_not_one_writes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real.md").write_text("# A page\nSome text.\n")
    nobody = run("ingest", "real.md", "--corpus", "mill", "--owner", "nobody")
    assert (nobody.code, "tributary contributor add" in nobody.err) == (1, True)
    run("contributor", "add", "ada")
    (tmp_path / "fake.pdf").write_text("this is no PDF")
    refused = run("ingest", "fake.pdf", "--corpus", "mill", "--owner", "ada", "--json")
    assert refused.code == 1
    assert "is not a PDF" in refused.json[0]["reason"]
    assert (run("document", "list", "--json").json, entries(run)) == ([], 1)


def test_an_adapter_that_is_a_pickle_or_for_another_base_is_refused(run: Run, tmp_path: Path) -> None:
    run("contributor", "add", "lab")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    pickled = run("adapter", "add", "x", str(folder), "--base", "smollm2-135m-instruct", "--developer", "lab")
    assert (pickled.code, "a pickle, which can run code" in pickled.err) == (1, True)
    other = run("adapter", "add", "x", str(folder), "--base", "llama-9", "--developer", "lab")
    assert (other.code, "the engine's base model is 'smollm2-135m-instruct'" in other.err) == (1, True)
    assert (run("adapter", "list", "--json").json, entries(run)) == ([], 1)


def test_fsck_names_what_was_changed(run: Run, tmp_path: Path) -> None:
    for who in ("ada", "ben", "cleo"):
        run("contributor", "add", who)
    assert run("fsck").out.strip() == "fsck: ok, 3 entries"
    with sqlite3.connect(tmp_path / "tributary.db") as database:
        database.execute("UPDATE log_entry SET entry = CAST(replace(entry, 'ben', 'bob') AS BLOB) WHERE log_index = 1")
    database.close()
    broken = run("fsck", "--json")
    assert broken.code == 1
    assert ("I8", 1) in {(finding["invariant"], finding["log_index"]) for finding in broken.json["findings"]}


def test_fsck_names_a_posting_that_was_moved(run: Run, tmp_path: Path) -> None:
    run("key", "create", "--role", "caller", "--name", "app", "--credit", "1.50")
    assert run("fsck").out.strip() == "fsck: ok, 1 entries"
    with sqlite3.connect(tmp_path / "tributary.db") as database:
        database.execute("UPDATE posting SET account = 'contributor:mallory' WHERE account = 'funding'")
    database.close()
    broken = run("fsck", "--json")
    assert broken.code == 1
    assert ("I3", 0) in {(finding["invariant"], finding["log_index"]) for finding in broken.json["findings"]}


def test_a_log_is_archived_checked_by_an_outsider_and_restored(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        run("contributor", "add", f"who-{number}")
    assert run("archive", "export", "copy", "--json").json["size"] == 3
    assert run("archive", "export", "copy").out.strip() == "archived 3 entries, 0 of them new: 0 files written"
    key = run("log-key").out.strip()
    copy, outside = str(tmp_path / "copy"), tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    assert run("fsck", "--from-tiles", copy).code == 2
    assert run("fsck", "--from-tiles", copy, "--key", key).out.strip() == "fsck: ok, 3 entries"
    assert run("archive", "check", copy, "--key", key, "--json").json == {"ok": True, "entries": 3, "findings": []}
    assert run("archive", "check", "nowhere", "--key", key).out.startswith("I5: there is no checkpoint")
    other = Signer.generate("tributary").verifier_key
    assert run("archive", "check", copy, "--key", other).code == 1

    assert run("init", "--origin", key.split("+")[0]).code == 0
    (outside / "log.key").write_bytes((tmp_path / "log.key").read_bytes())
    restored = run("archive", "restore", copy)
    assert (restored.code, restored.out.startswith("restored 3 entries, equal to the archive")) == (0, True)
    again = run("archive", "restore", copy)
    assert (again.code, again.err.startswith("error: the database has a log already")) == (1, True)
    assert run("fsck").out.strip() == "fsck: ok, 3 entries"
    assert run("archive", "export", "http://127.0.0.1/log").code == 1

    bundle = tmp_path / "copy/tile/entries/000.p/3"
    bundle.write_bytes(bundle.read_bytes().replace(b"who-1", b"who-7"))
    broken = run("fsck", "--from-tiles", copy, "--key", key, "--json")
    assert broken.code == 1
    assert ("I8", 1) in {(finding["invariant"], finding["log_index"]) for finding in broken.json["findings"]}


def test_verify_says_which_step_failed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("not a receipt")
    refused = run("verify", "junk")
    assert (refused.code, "FAIL (1) format" in refused.out) == (1, True)
    assert run("verify", "junk", "--key", "not-a-key").code == 1


def test_reading_what_is_not_there(run: Run) -> None:
    for command in (["earnings", "nobody"], ["statement", "nobody", "2025-01"], ["attribution", "show", "req_x"]):
        refused = run(*command)
        assert (refused.code, refused.err.startswith("error: there is no")) == (1, True), command
    run("contributor", "add", "ada")
    assert run("earnings", "ada").out.strip() == "ada earned 0 nano-USD (0.000000000 USD)"
    assert run("earnings", "ada", "--period", "2025-13").code == 1
    assert run("statement", "ada", "2025-01", "--csv").out.startswith("log_index,time")


def test_ask_without_a_gateway_says_so(run: Run) -> None:
    refused = run("ask", "Anybody?", "--url", "http://127.0.0.1:9", "--key", "x")
    assert (refused.code, refused.err.startswith("error:")) == (1, True)


def test_serve_says_in_one_line_that_an_address_is_taken(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run("serve", "--port", str(port))
    assert (refused.code, refused.err) == (1, f"error: cannot listen on 127.0.0.1:{port}: Address already in use\n")


SERVE = """
from functools import partial
from gateway.app import create_app
from gateway.cli import main, server
from tests.fakes import FakeEngine
from tests.gateway.command import Run, runner
from tests.retrieval.kit import HashingEmbedder

parts = {"engine": lambda _: FakeEngine(), "embedder": lambda _: HashingEmbedder(name="all-minilm-l6-v2")}
server.create_app = partial(create_app, **parts)
main()
"""


def serving(folder: Path) -> subprocess.Popen[str]:
    """`tributary serve --port 0` with a fake engine, in a process of its own."""
    (folder / "tributary.toml").write_text("")
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", "--port", "0"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("run")
def test_serve_tells_its_address_and_closes_its_books_when_told_to_stop(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.stderr is not None
        events = (json.loads(line) for line in server.stderr)
        url = next(event["url"] for event in events if event["event"] == "listening")
        assert httpx.get(f"{url}/readyz").status_code == 200
        server.send_signal(signal.SIGTERM)
        assert "error" not in {event["level"] for event in events}
        assert server.wait(30) == 0


def test_serve_says_in_one_line_why_the_gateway_does_not_open(run: Run, tmp_path: Path) -> None:
    assert run("init").code == 0
    (tmp_path / "log.key").unlink()
    with serving(tmp_path) as server:
        assert server.communicate(timeout=60)[1] == f"error: there is no signing key at {tmp_path / 'log.key'}\n"
    assert server.returncode == 1


def test_config_check_says_where_names_lead(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "tributary.toml"
    names = '[[aliases]]\nname = "stable"\ntargets = [{ model = "smollm2", weight = 3 }]\n'
    config.write_text(f'{config.read_text()}\n{names}\n[routing]\nauto_fallback = "smollm2"\n')
    said = run("config", "check").out.splitlines()
    assert {"stable: smollm2 × 3", "auto: among no model, else smollm2"} <= set(said)
