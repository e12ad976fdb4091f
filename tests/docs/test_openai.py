"""What the page on chats says is taken is taken, on the engines it says, and what it refuses is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.api.requests import ChatRequest, CompletionRequest, parse
from gateway.engines.vllm.bodies import OPTIONS
from gateway.errors import BadRequestError
from gateway.settings import Limits

PAGE = Path("docs/openai.md").read_text()
ROUTES = {"chat": ChatRequest, "completions": CompletionRequest}
GOOD = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    "completions": {"model": "m", "prompt": "x"},
}


def rows(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, cell by cell."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line] for line in lines[1:]]


TAKEN = rows("What is taken")
REFUSED = [name for row in rows("What is refused") for name in re.findall(r"`([a-z_]+)`", row[0])]


@pytest.mark.parametrize("route", ROUTES)
def test_every_field_has_its_row_and_every_row_its_field(route: str) -> None:
    named = [field.strip("`") for field, where, *_ in TAKEN if where in (route, "both")]
    assert sorted(named) == sorted(ROUTES[route].model_fields)


def test_the_engines_of_a_field_are_those_that_take_it() -> None:
    engines = {field.strip("`"): engine for field, _, engine, _ in TAKEN}
    assert {field for field, engine in engines.items() if engine == "vLLM"} == OPTIONS
    optional = ChatRequest.NEUTRAL.keys() | CompletionRequest.NEUTRAL.keys() | {"tools"}
    assert optional == OPTIONS


@pytest.mark.model
def test_the_embedded_engine_takes_no_option() -> None:
    from gateway.engines.embedded import EmbeddedEngine  # noqa: PLC0415  torch takes seconds to import

    assert EmbeddedEngine.options == frozenset()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("route", ROUTES)
def test_what_is_refused_is_refused_by_name(route: str, name: str) -> None:
    with pytest.raises(BadRequestError) as error:
        parse(GOOD[route] | {name: 2}, ROUTES[route])
    assert error.value.param == name


def test_the_limits_are_those_of_the_settings() -> None:
    limits = rows("How long things may take, and how large they may be")
    for name, default, _ in limits:
        assert getattr(Limits(), name.strip("`")) == float(default)
