"""What is shipped compiled is what its source compiles to, from the packages that the lock names."""

from __future__ import annotations

import json

from ledger_client.chain import artefact

from .kit import CONTRACTS, compiled


def test_the_shipped_bytecode_is_compiled_from_the_shipped_source() -> None:
    shipped = (CONTRACTS / "TributaryDistributor.json").read_text()
    assert compiled(CONTRACTS / "TributaryDistributor.sol") == shipped, (
        "compile it: npm run compile, in ledger_client/contracts"
    )
    assert artefact() == json.loads(shipped)


def test_the_contract_fits_a_chain() -> None:
    assert len(bytes.fromhex(artefact()["bytecode"][2:])) < 24_576


def test_the_lock_names_versions_and_no_addresses() -> None:
    lock = json.loads((CONTRACTS / "package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
    wanted = json.loads((CONTRACTS / "package.json").read_text())["devDependencies"]
    assert {name: lock["packages"][f"node_modules/{name}"]["version"] for name in wanted} == wanted
