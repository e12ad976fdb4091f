"""`tributary witness` and the quorum of `tributary verify`, as a person types them."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ledger_client import Checkpoint, Note, Receipt, Signer, WitnessSigner, WitnessVerifier, leaf_hash
from tests.gateway.command import Run, runner
from tests.ledger_client.facts import registered
from tests.ledger_client.trees import Tree, hashed

LOG = Signer.generate("example.com/log")
TREE = Tree(LOG, hashed(*map(str, range(9))))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`tributary …` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capsys)


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[str]:
    """A witness in a process of its own; gives its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "witness", "serve", "--listen", "127.0.0.1:0", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr
    try:
        seen = ""
        for line in process.stderr:
            seen += line
            if found := re.search(r'"url": ?"(http://[^"]+)"', line):
                break
        else:
            raise AssertionError(seen)
        yield found[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_init_makes_a_private_key_and_state_and_prints_the_key(run: Run, tmp_path: Path) -> None:
    made = run("witness", "init", "witness.example/w1")
    assert made.code == 0
    assert WitnessVerifier.parse(made.out.strip()).name == "witness.example/w1"
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("witness.key", "witness.db")} == {0o600}
    assert run("witness", "key").out == made.out
    key = (tmp_path / "witness.key").read_bytes()
    again = run("witness", "init", "witness.example/w2")
    assert (again.code, "exists" in again.err) == (2, True)
    assert (tmp_path / "witness.key").read_bytes() == key


@pytest.mark.parametrize("name", ["a b", "a+b", "", "x" * 256])
def test_init_with_a_bad_name_writes_nothing(run: Run, tmp_path: Path, name: str) -> None:
    assert run("witness", "init", name).code == 2
    assert not list(tmp_path.iterdir())


def test_a_witness_does_not_serve_without_its_state_or_its_key(run: Run, tmp_path: Path) -> None:
    run("witness", "init", "witness.example/w1")
    serve = ("witness", "serve", "--log", LOG.verifier_key, "--listen", "127.0.0.1:0")
    (tmp_path / "witness.db").rename(tmp_path / "elsewhere.db")
    refused = run(*serve)
    assert (refused.code, "there is no state of a witness at witness.db" in refused.err) == (1, True)
    assert not (tmp_path / "witness.db").exists()
    refused = run(*serve, "--state", "elsewhere.db", "--key", "none.key")
    assert (refused.code, "there is no signing key at none.key" in refused.err) == (1, True)


@pytest.mark.parametrize("listen", ["", "7070", ":7070", "host:", "host:65536", "host:07", "::1:7070", "a b:1"])
def test_an_address_to_listen_on_has_a_host_and_a_port(run: Run, listen: str) -> None:
    run("witness", "init", "witness.example/w1")
    refused = run("witness", "serve", "--log", LOG.verifier_key, "--listen", listen)
    assert (refused.code, "--listen" in refused.err) == (2, True)


def test_a_key_of_another_kind_is_refused(run: Run) -> None:
    key = run("witness", "init", "witness.example/w1").out.strip()
    refused = run("witness", "serve", "--log", key)
    assert (refused.code, "a log's key is of the Ed25519 type 0x01" in refused.err) == (1, True)


def test_a_served_witness_cosigns_and_remembers_over_a_restart(run: Run, tmp_path: Path) -> None:
    witness = WitnessVerifier.parse(run("witness", "init", "witness.example/w1").out.strip())
    with served(tmp_path, "--log", LOG.verifier_key) as url:
        reply = httpx.post(f"{url}/add-checkpoint", content=TREE.submission(0, 3).format().encode())
        assert reply.status_code == 200
        assert witness.find(Note.parse(TREE.note(3) + reply.text))
    with served(tmp_path, "--log", LOG.verifier_key) as url:
        reply = httpx.post(f"{url}/add-checkpoint", content=TREE.submission(0, 5).format().encode())
        assert (reply.status_code, reply.text) == (409, "3\n")


WITNESSES = [WitnessSigner.generate(f"witness.example/w{number}") for number in range(3)]
KEYS = [argument for witness in WITNESSES for argument in ("--witness", witness.verifier_key)]


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    """A receipt under a checkpoint that two of three witnesses have cosigned."""
    entry = registered(0).encode()
    checkpoint = Checkpoint(origin=LOG.name, size=1, root=leaf_hash(entry))
    lines = [witness.cosign(checkpoint.format(), 1_790_000_000).line for witness in WITNESSES[:2]]
    text = Receipt(index=0, path=(), note=LOG.sign(checkpoint) + "".join(lines), entry=entry).format()
    path = tmp_path / "receipt.tlog-proof"
    path.write_text(text, encoding="utf-8")
    return path


def test_verify_counts_witnesses_when_asked(run: Run, receipt: Path) -> None:
    verify = ("verify", str(receipt), "--key", LOG.verifier_key)
    assert "witness" not in run(*verify).out
    verified = run(*verify, *KEYS, "--quorum", "2", "--json")
    assert (verified.code, verified.json["ok"]) == (0, True)
    assert [step["number"] for step in verified.json["steps"]] == [1, 2, 3, 4, 5, 6, 7]
    failed = run(*verify, *KEYS, "--quorum", "3")
    assert (failed.code, "(4) witness quorum: 2 of 3 witnesses cosigned" in failed.out) == (1, True)
    assert run(*verify, *KEYS).code == 1
    assert run(*verify, *KEYS[:4]).code == 0


@pytest.mark.parametrize(
    "arguments",
    [["--quorum", "1"], [*KEYS, "--quorum", "4"], [*KEYS, "--quorum", "0"], [*KEYS, *KEYS[:2], "--quorum", "1"]],
)
def test_a_quorum_that_cannot_be_met_is_a_usage_error(run: Run, receipt: Path, arguments: list[str]) -> None:
    refused = run("verify", str(receipt), "--key", LOG.verifier_key, *arguments)
    assert (refused.code, "--quorum" in refused.err) == (2, True)


def test_the_configured_witnesses_are_asked_where_none_are_named(run: Run, receipt: Path, tmp_path: Path) -> None:
    sections = "".join(
        f"[[witnesses]]\nname = 'w{number}'\nurl = 'https://w.example'\nkey = '{witness.verifier_key}'\n"
        for number, witness in enumerate(WITNESSES)
    )
    (tmp_path / "tributary.toml").write_text(sections)
    verify = ("verify", str(receipt), "--key", LOG.verifier_key, "--quorum")
    assert run(*verify, "2").code == 0
    assert run(*verify, "3").code == 1
