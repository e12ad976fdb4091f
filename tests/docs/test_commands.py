"""Every command that the documentation shows is one, and has the options that it is shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from gateway.cli.main import app

PAGES = [*Path("docs").glob("*.md"), *Path("deploy").glob("*.md"), Path("README.md"), Path("gateway/tributary.toml")]


def shown(text: str) -> Iterator[str]:
    """The commands in a page: lines of blocks, and what stands between backticks."""
    yield from re.findall(r"^ {4}(tributary [^#\n]*)", text, re.MULTILINE)
    yield from re.findall(r"`(tributary [^`]*)`", text.replace("\n", " "))


COMMANDS = sorted({(page.name, command.strip()) for page in PAGES for command in shown(page.read_text())})


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_that_is_shown_is_one(page: str, command: str) -> None:
    del page
    plain = re.sub(r"\$\([^)]*\)", "WORD", command.replace("|", "/").replace("…", ""))
    words = shlex.split(plain, comments=True)[1:]
    current: Any = typer.main.get_command(app)
    while words and hasattr(current, "commands") and not words[0].startswith("-"):
        name = words.pop(0)
        names = name.split("/")  # `witness init/key/serve` names three
        assert set(names) <= set(current.commands), f"there is no {name!r} among {sorted(current.commands)}"
        current = current.commands[names[0]]
    options = {option for parameter in current.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for each in words for word in each.split("/") if word.startswith("-")}
    assert used <= options | {"--help"}, f"{used - options} are no options of `{command}`"


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 30
