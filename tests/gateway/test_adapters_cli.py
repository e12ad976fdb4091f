"""`tributary adapter …` and the gateway that serves what it registered: what is bad never reaches an engine."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from gateway.adapter_sources import SourceError
from gateway.cli import adapters
from gateway.engines import AdapterRejected, Engine, EngineUnavailable
from gateway.engines.adapters import WEIGHTS_FILE
from gateway.registry import RegistryError
from gateway.settings import load

from .command import Outcome, Run, runner
from .engines.adapter_kit import tensors, write
from .kit import Site

SHAPES = {"model.layers.0.self_attn.q_proj": (16, 16), "model.layers.0.self_attn.v_proj": (16, 4)}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A gateway whose engine is the one that adapters are tried on."""
    site = Site(tmp_path)
    monkeypatch.setattr(adapters, "open_one", lambda _settings: awake(site))
    return site


async def awake(site: Site) -> Engine:
    site.engine.down = False
    return site.engine


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(site.folder)
    return runner(monkeypatch, capsys)


def offer(site: Site, seed: int = 0, **changed: object) -> str:
    """A folder with an adapter, each time the same one."""
    weights = tensors(SHAPES, seed=seed)
    return str(write(site.folder / "offered", weights, **{"base_model_name_or_path": "org/fake-base"} | changed))


def add(run: Run, name: str, source: str, *options: str) -> Outcome:
    return run("adapter", "add", name, source, "--base", "fake-base", "--developer", "ada", *options)


def serve(site: Site, *models: tuple[str, str]) -> None:
    """Configure served models, each a name and the adapter that it takes."""
    text = site.config.read_text().partition("# adapters")[0] + "# adapters\n"
    for name, adapter in models:
        text += f'[[models]]\nname = "{name}"\nbase = "fake-base"\nadapter = "{adapter}"\n'
    site.config.write_text(text)
    site.settings = load(site.config)


def resident(site: Site) -> dict[str, str]:
    """From served model to the digest of its adapter, after a start of the gateway; all are loaded."""

    async def started() -> dict[str, str]:
        async with site.open() as gateway:
            served = {model.name: model.adapter for model in gateway.catalogue if model.adapter}
            assert gateway.engine.resident() == {adapter.resident_name for adapter in served.values()}
            return {name: adapter.digest for name, adapter in served.items()}

    site.engine.down = False
    site.engine._resident.clear()
    return asyncio.run(started())


def test_a_served_model_takes_the_newest_version_or_the_one_it_pins(site: Site, run: Run) -> None:
    first = add(run, "qa", offer(site), "--dataset", "ada=3", "--json").json
    second = add(run, "qa", offer(site, seed=1), "--dataset", "ada=3", "--json").json
    assert add(run, "qa", offer(site, seed=1), "--dataset", "ada=3", "--json").json == second
    assert (first["version"], second["version"]) == (1, 2)
    assert first["digest"] != second["digest"]
    assert Path(first["source"]) == site.folder / "offered"
    shutil.rmtree(site.folder / "offered")  # what was pulled is not asked for again
    serve(site, ("guide-qa", "qa"), ("old-qa", "qa@1"))
    assert resident(site) == {"guide-qa": second["digest"], "old-qa": first["digest"]}
    refused = run("adapter", "remove", "qa@1")
    assert (refused.code, "model 'old-qa' uses adapter 'qa@1'" in refused.err) == (1, True)
    assert run("adapter", "remove", "qa@2").out == "removed qa@2\n"  # the model that took it has the one before
    assert resident(site) == {"guide-qa": first["digest"], "old-qa": first["digest"]}
    refused = run("adapter", "remove", "qa")
    assert (refused.code, "uses adapter 'qa'" in refused.err) == (1, True)
    listed = run("adapter", "list", "--json").json
    assert [(each["name"], each["version"]) for each in listed] == [("qa", 1)]
    listed = run("adapter", "list", "--versions", "--json").json
    assert [(each["version"], each["removed_at"] is None) for each in listed] == [(1, True), (2, False)]
    assert run("fsck").code == 0


def test_lineage_is_shown_as_it_was_claimed(site: Site, run: Run) -> None:
    add(run, "base-qa", offer(site))
    add(run, "style", offer(site, seed=1), "--parent", "base-qa")
    add(run, "facts", offer(site, seed=2), "--parent", "base-qa@1")
    made = add(
        run, "qa", offer(site, seed=3), "--parent", "style", "--parent", "facts", "--dataset", "ada=2", "--json"
    ).json
    assert [(parent["adapter"], parent["version"]) for parent in made["parents"]] == [("style", 1), ("facts", 1)]
    run("adapter", "remove", "style")
    shown = run("adapter", "show", "qa", "--json").json
    assert [claim["name"] for claim in shown["lineage"]] == ["qa", "facts", "style", "base-qa"]
    lines = run("adapter", "show", "qa@1").out.splitlines()
    assert "datasets      ada=2" in lines
    tree = [line.partition(" of ")[0] for line in lines if " of ada, sha256 " in line]
    assert tree == ["qa@1", "├── style@1", "│   └── base-qa@1", "└── facts@1", "    └── base-qa@1"]
    assert run("adapter", "show", "style@1").code == 0  # it is history, and stays
    assert run("adapter", "show", "style").code == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--developer", "nobody"), "there is no contributor 'nobody'"),
        (("--dataset", "nobody=1"), "there is no contributor 'nobody'"),
        (("--dataset", "ada=0"), "not of the form contributor=weight"),
        (("--parent", "ghost"), "adapter 'ghost' is not registered"),
        (("--parent", "qa@1"), "adapter 'qa@1' is not registered"),
        (("--base", "llama-9"), "the engine's base model is 'fake-base'"),
    ],
)
def test_what_is_refused_is_not_even_fetched(site: Site, run: Run, arguments: tuple[str, str], reason: str) -> None:
    before = len(site.entries("adapter.registered"))
    refused = add(run, "qa", "s3://permitted/by-nobody", *arguments)
    assert refused.code in {1, 2}
    assert reason in refused.err.replace("\n", " ")
    assert len(site.entries("adapter.registered")) == before
    assert not (site.folder / "adapters").exists()


def test_an_adapter_that_changes_nothing_is_not_registered(site: Site, run: Run) -> None:
    site.engine.reject = "it leaves the base as it was"
    refused = add(run, "qa", offer(site))
    assert (refused.code, refused.err) == (1, "error: it leaves the base as it was\n")
    assert site.entries("adapter.registered") == []


def test_without_an_engine_an_adapter_waits_to_be_tried(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_settings: object) -> Engine:
        raise EngineUnavailable("http://127.0.0.1:9 does not answer")

    async def somebody(_settings: object) -> Engine:
        return site.engine

    monkeypatch.setattr(adapters, "open_one", nobody)
    refused = add(run, "qa", offer(site))
    assert refused.code == 1
    assert "no engine is at hand to try the adapter on: http://127.0.0.1:9 does not answer" in refused.err
    assert "--unproven" in refused.err
    monkeypatch.setattr(adapters, "open_one", somebody)
    site.engine.down = True
    assert "the fake engine takes no work" in add(run, "qa", offer(site)).err

    added = add(run, "qa", offer(site), "--unproven", "--json").json
    assert (added["proven_at"], added["base_digest"]) == (None, None)
    assert "not tried on an engine yet" in run("adapter", "show", "qa").out
    serve(site, ("guide-qa", "qa"))
    site.engine.reject = "it leaves the base as it was"  # the engine that loads it tries it
    with pytest.raises(AdapterRejected, match="leaves the base"):
        resident(site)
    site.engine.reject = None
    assert resident(site) == {"guide-qa": added["digest"]}


def test_what_was_tampered_with_after_it_was_registered_is_never_loaded(site: Site, run: Run) -> None:
    added = add(run, "qa", offer(site), "--json").json
    serve(site, ("guide-qa", "qa"))
    weights = site.folder / "adapters" / added["digest"] / WEIGHTS_FILE
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AdapterRejected, match="not those that were registered"):
        resident(site)
    assert site.engine.resident() == frozenset()
    shutil.rmtree(weights.parent)  # then it is pulled again from where it came from
    assert resident(site) == {"guide-qa": added["digest"]}
    shutil.rmtree(weights.parent)
    offer(site, seed=9)
    with pytest.raises(AdapterRejected, match="by now, not"):
        resident(site)
    shutil.rmtree(site.folder / "offered")
    with pytest.raises(SourceError, match="there is no adapter sha256"):
        resident(site)
    assert site.engine.resident() == frozenset()


def test_an_adapter_that_was_tried_on_other_weights_is_never_loaded(site: Site, run: Run) -> None:
    add(run, "qa", offer(site))
    serve(site, ("guide-qa", "qa"))
    site.engine.base_digest = "1" * 64
    with pytest.raises(RegistryError, match="qa@1 was tried on weights of fake-base that are not those here"):
        resident(site)
    again = add(run, "qa", offer(site), "--json").json
    assert again["version"] == 2  # on these weights it is another one
    assert resident(site) == {"guide-qa": again["digest"]}


def test_a_limit_that_was_lowered_keeps_a_larger_rank_out(site: Site, run: Run) -> None:
    add(run, "qa", offer(site))
    site.config.write_text(f"[adapters]\nmax_rank = 4\n{site.config.read_text()}")
    assert "from 1 to 4, not 8" in add(run, "other", offer(site)).err
    serve(site, ("guide-qa", "qa"))
    with pytest.raises(AdapterRejected, match="from 1 to 4, not 8"):
        resident(site)


@pytest.mark.parametrize("source", ["s3://bucket/qa", "hf://org/qa"])
def test_only_folders_are_permitted_unless_the_operator_says_more(site: Site, run: Run, source: str) -> None:
    refused = add(run, "qa", source)
    assert (refused.code, "[adapters] sources permits directory" in refused.err) == (1, True)
    del site
