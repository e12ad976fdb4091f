"""What the README says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.attribution.__main__ import main

README = Path("README.md").read_text()


def test_the_two_commands_are_in_it_and_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets


def test_the_numbers_are_those_that_the_benchmark_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.attribution"])
    main()
    printed = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(printed) if line.startswith("estimator"))
    end = next(number for number, line in enumerate(printed) if line.startswith("RESULT"))
    for line in filter(None, printed[start:end]):
        assert f"    {line}\n" in README


def test_the_adapters_figures_are_those_of_the_examples() -> None:
    rows = re.findall(r"^ +base.*%.*$", README, re.MULTILINE)
    assert len(rows) == 2
    examples = Path("examples/README.md").read_text()
    assert all(row.strip() in examples for row in rows)


def test_links_lead_somewhere() -> None:
    for page in (page for folder in (".", "docs", "examples", "deploy") for page in Path(folder).glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
