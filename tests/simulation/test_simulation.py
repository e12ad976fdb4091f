"""Histories by lot from fixed seeds; for more of them see `python -m tests.simulation --help`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from metering import Books, Intent, Transaction
from tests.databases import NewDatabase, sqlite_file

from .seeds import STEPS, SimulationFailed, run_seed

BUDGET = {"sqlite": 20, "postgresql": 5}  # seeds


@pytest.mark.parametrize("part", range(5))
def test_histories_are_as_the_model_says(new_database: NewDatabase, part: int, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["new_database"]
    for seed in range(part, BUDGET[kind], 5):
        run_seed(seed, STEPS, new_database, kind)


def test_a_seed_decides_everything() -> None:
    first, again, other = (run_seed(seed, STEPS, sqlite_file, "sqlite") for seed in (1, 1, 2))
    assert first == again
    assert first.root != other.root
    assert min(first.happened[what] for what in ("use", "attribute", "refused", "doubled")) > 0


def test_both_databases_come_to_the_same_log(new_database: NewDatabase, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["new_database"]
    ours, theirs = (run_seed(3, STEPS, new, kind) for new in (new_database, sqlite_file))
    assert (ours.root, ours.size) == (theirs.root, theirs.size)


def test_a_process_of_its_own_comes_to_the_same_log() -> None:
    root = run_seed(4, 40, sqlite_file, "sqlite").root
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "4", "--steps", "40"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"seed 4 ended in {root[:16]}" in run.stdout


def test_a_fault_in_the_books_is_found_and_can_be_lived_again(monkeypatch: pytest.MonkeyPatch) -> None:
    admit = Books.admit

    def generous(
        books: Books, transaction: Transaction, account: str, maximum_nano: int, request: str, **more: Any
    ) -> Intent:
        return admit(books, transaction, account, maximum_nano // 2, request, **more)

    monkeypatch.setattr(Books, "admit", generous)
    with pytest.raises(SimulationFailed, match=r"again: python -m tests\.simulation --seeds 0 --steps 100"):
        run_seed(0, STEPS, sqlite_file, "sqlite")
