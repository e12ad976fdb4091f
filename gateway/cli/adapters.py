"""Adapters: pulled, tried, registered by version, and traced back to what they were made from."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text
from rich.tree import Tree

from gateway.adapter_store import Pulled, Tell
from gateway.adapters import Adapter, AdapterClaim, Proposal
from gateway.app import make_adapter_store, open_one
from gateway.cli.context import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    Office,
    err,
    office,
    out,
    print_json,
    print_rows,
    say,
)
from gateway.engines import AdapterFiles, EngineUnavailable
from gateway.engines.weights import WeightsError
from gateway.registry import RegistryError
from gateway.settings import Settings

adapters = typer.Typer(no_args_is_help=True, help="LoRA adapters and their makers.")

Reference = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A version, or what NAME stands for.")]


@adapters.command("add")
def add(
    name: str,
    source: Annotated[
        str, typer.Argument(metavar="DIR|s3://BUCKET/PREFIX|hf://ORG/NAME[@REVISION]", help="Where its files are.")
    ],
    *,
    base: Annotated[str, typer.Option(help="The base model it was trained on.")],
    developer: Annotated[str, typer.Option(help="The contributor who made it.")],
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="ID=WEIGHT", help="A contributor of training data; may be repeated.")
    ] = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[@VERSION]", help="A registered adapter that it was made from; may be repeated."),
    ] = None,
    unproven: Annotated[
        bool, typer.Option("--unproven", help="Try it on no engine now; the one that first loads it does.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Copy an adapter into the store, verify it, and register it as the next version of its name.

    Safetensors only, made for this base, and changing what the base says. The newest version, said again, stays.
    """
    datasets = tuple(_dataset(text) for text in dataset or [])
    with office(config) as o:
        if base != o.settings.engine.name:
            raise RegistryError(f"the engine's base model is {o.settings.engine.name!r}, not {base!r}")
        terms: dict[str, Any] = {"developer": developer, "datasets": datasets, "parents": tuple(parent or ())}
        proposal = Proposal(name=name, digest="", source="", base_model=base, base_digest=None, **terms)
        with o.database.read() as connection:
            o.registry.adapters.check(connection, proposal)  # before anything is fetched
        pulled = pull(o.settings, source)
        base_digest = None if unproven else asyncio.run(prove(o.settings, [pulled.files]))
        added = register(o, pulled, base_digest=base_digest, name=name, **terms)
    if as_json:
        print_json(asdict(added))
    else:
        say(f"adapter {added.reference}, sha256 {added.digest}, log index {added.log_index}")


def pull(settings: Settings, source: str) -> Pulled:
    """Copy an adapter into the store with a bar on standard error, and verify it.

    Raises SourceError, and AdapterRejected for files that no engine is to see.
    """
    with _transfer() as tell:
        return make_adapter_store(settings).pull(source, tell=tell)


async def prove(settings: Settings, adapters: Sequence[AdapterFiles]) -> str:
    """Have the configured engine try adapters, and return the digest of its base.

    Raises AdapterRejected when one does not fit the base, or changes nothing, and EngineUnavailable when no engine is
    at hand.
    """
    try:
        engine = await open_one(settings)
        try:
            if not (await engine.health()).ready:
                raise EngineUnavailable(f"the {engine.name} engine takes no work")
            for adapter in adapters:
                await engine.load(adapter)  # and left there: a gateway may share the engine and use it already
            return engine.base_digest
        finally:
            await engine.close()
    except (EngineUnavailable, ImportError, WeightsError) as error:
        raise EngineUnavailable(
            f"no engine is at hand to try the adapter on: {error}; start one, or register the adapter with --unproven, "
            "and the engine that first loads it tries it"
        ) from error


def register(
    o: Office,
    pulled: Pulled,
    *,
    base_digest: str | None,
    name: str,
    developer: str,
    datasets: tuple[tuple[str, int], ...],
    parents: tuple[str, ...] = (),
) -> Adapter:
    """Date an adapter of the store in the log. base_digest: as `prove` returned it, None where it was not asked.

    Raises RegistryError.
    """
    proposal = Proposal(
        name=name,
        digest=pulled.files.digest,
        source=pulled.source,
        base_model=o.settings.engine.name,
        base_digest=base_digest,
        developer=developer,
        datasets=datasets,
        parents=parents,
    )
    with o.write() as transaction:
        return o.registry.adapters.add(transaction, proposal)


@adapters.command("list")
def list_adapters(
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    versions: Annotated[bool, typer.Option("--versions", help="Every version, removed ones too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The adapters on offer, each by its newest version."""
    with office(config) as o, o.database.read() as connection:
        found = o.registry.adapters.all(connection) if versions else o.registry.adapters.offered(connection)
    columns = ["name", "version", "base_model", "developer", "digest", "log_index", "proven_at"]
    print_rows(
        [asdict(adapter) for adapter in found], [*columns, *(["removed_at"] if versions else [])], as_json=as_json
    )


@adapters.command("show")
def show(adapter: Reference, config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """A version: whose it is, what it was made of, and what it descends from."""
    with office(config) as o, o.database.read() as connection:
        found = o.registry.adapters.find(connection, adapter, removed=True)
        lineage = {claim.log_index: claim for claim in o.registry.adapters.lineage(connection, found)}
    if as_json:
        print_json(asdict(found) | {"lineage": [asdict(claim) for claim in lineage.values()]})
        return
    fields = asdict(found) | {"datasets": ", ".join(f"{who}={weight}" for who, weight in found.datasets)}
    del fields["parents"]
    for name, value in fields.items():
        if value not in {None, ""}:
            say(f"{name:<14}{value}")
    if found.proven_at is None:
        say("not tried on an engine yet: the one that first loads it tries it before it answers")
    if found.parents:
        out.print(_tree(found, lineage))


@adapters.command("remove")
def remove(adapter: Reference, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Offer a version no more, or every version of a name. What they earned stays.

    A served model that would be left without its adapter must be changed first.
    """
    with office(config) as o, o.write() as transaction:
        registered = o.registry.adapters
        gone = registered.remove(transaction.connection, adapter)
        for model in o.settings.models:
            if model.adapter and model.adapter.partition("@")[0] == gone[0].name:
                try:
                    registered.find(transaction.connection, model.adapter)
                except RegistryError:
                    raise RegistryError(
                        f"model {model.name!r} uses adapter {model.adapter!r}; change the configuration first"
                    ) from None
    say(f"removed {', '.join(version.reference for version in gone)}")


def _tree(adapter: AdapterClaim, lineage: dict[int, AdapterClaim]) -> Tree:
    """What an adapter descends from; what was drawn above is not drawn again with all that is below it."""
    drawn: set[int] = set()

    def label(claim: AdapterClaim) -> Text:
        again = " (see above)" if claim.log_index in drawn and claim.parents else ""
        return Text(
            f"{claim.reference} of {claim.developer}, sha256 {claim.digest[:16]}…, log index {claim.log_index}{again}"
        )

    def grow(tree: Tree, claim: AdapterClaim) -> None:
        for parent in claim.parents:
            below = lineage[parent.log_index]
            branch = tree.add(label(below))
            if below.log_index not in drawn:
                drawn.add(below.log_index)
                grow(branch, below)

    root = Tree(label(adapter))
    grow(root, adapter)
    return root


@contextmanager
def _transfer() -> Iterator[Tell]:
    """A bar for each file on a terminal, and nothing where nobody watches."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        yield tell


def _dataset(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)=([1-9][0-9]{0,8})", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not of the form contributor=weight", param_hint="--dataset")
    return match[1], int(match[2])
