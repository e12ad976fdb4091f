"""What answers are made of: documents and adapters, and whose they are."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import retrieval
from gateway.app import make_embedder, make_engine
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
)
from gateway.engines import AdapterFiles, Engine
from gateway.registry import Adapter, RegistryError
from metering import Transaction
from retrieval import Embedder, FileOutcome, PreparedDocument, Retriever, Terms

documents = typer.Typer(no_args_is_help=True, help="Documents and their owners.")
adapters = typer.Typer(no_args_is_help=True, help="LoRA adapters and their makers.")


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders: txt, md, html, pdf.", exists=True)],
    *,
    corpus: Annotated[str, typer.Option(help="The corpus they go to.")],
    owner: Annotated[str, typer.Option(help="The contributor who owns them.")],
    licence: Annotated[str, typer.Option(help="An SPDX identifier or a short phrase.")] = "all rights reserved",
    reinstate: Annotated[bool, typer.Option(help="Offer again what was withdrawn.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Put documents into a corpus. A file that did not change does nothing."""
    try:
        terms = Terms(corpus=corpus, owner=owner, licence=licence)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with office(config) as o:
        outcomes = ingest_paths(o, make_embedder(o.settings), paths, terms, reinstate=reinstate)
    rows = [asdict(outcome) | {"document": outcome.document_id, "path": str(outcome.path)} for outcome in outcomes]
    print_rows(rows, ["outcome", "document", "passages", "source", "reason"], as_json=as_json)
    raise typer.Exit(1 if any(outcome.outcome == "failed" for outcome in outcomes) else 0)


def ingest_paths(
    o: Office, embedder: Embedder, paths: Iterable[Path], terms: Terms, *, reinstate: bool = False
) -> list[FileOutcome]:
    """Ingest with progress on standard error, date each document in the log, and bring the index up to date."""
    with o.database.read() as connection:
        o.registry.contributor(connection, terms.owner)

    writing: list[Transaction] = []

    @contextmanager
    def begin() -> Iterator[sa.Connection]:
        with o.write() as transaction:
            writing[:] = [transaction]
            yield transaction.connection

    def register(_connection: sa.Connection, document: PreparedDocument) -> None:
        o.registry.register_document(
            writing[0],
            document=document.id,
            corpus=terms.corpus,
            owner=terms.owner,
            licence=terms.licence,
            digest=document.digest,
        )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(f"ingesting into {terms.corpus}", total=None)
        outcomes = list(
            retrieval.ingest(
                begin,
                paths,
                terms=terms,
                embedder=embedder,
                record=register,
                reinstate=reinstate,
                progress=lambda state: bar.update(
                    task, completed=state.files_done, total=state.files, description=state.source
                ),
            )
        )
    with o.database.read() as connection:
        Retriever(o.settings.retrieval.index_file, embedder).sync(connection)
    return outcomes


@documents.command("list")
def list_documents(
    corpus: Annotated[str | None, typer.Option(help="Only this corpus.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Every document, withdrawn ones too."""
    with office(config) as o, o.database.read() as connection:
        rows = [asdict(document) for document in retrieval.documents(connection, corpus=corpus)]
    print_rows(rows, ["id", "corpus", "owner", "licence", "title", "withdrawn_at"], as_json=as_json)


@documents.command("show")
def show_document(document: str, config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """One document, with its text."""
    with office(config) as o, o.database.read() as connection:
        found = retrieval.find_document(connection, document)
        if found is None:
            raise RegistryError(f"there is no document {document!r}; `tributary document list` shows them")
        fields: dict[str, Any] = asdict(found) | {"text": retrieval.document_text(connection, document)}
    if as_json:
        print_json(fields)
    else:
        for name, value in fields.items():
            out.print(f"{name:<14}{value}", markup=False)


@documents.command("withdraw")
def withdraw_document(document: str, config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Offer a document no more, from the next request on. What it earned stays."""
    with office(config) as o, o.write() as transaction:
        if retrieval.find_document(transaction.connection, document) is None:
            raise RegistryError(f"there is no document {document!r}; `tributary document list` shows them")
        changed = retrieval.withdraw(transaction.connection, document, at=datetime.now(UTC))
        index = o.registry.withdraw_document(transaction, document)
    if as_json:
        print_json({"document": document, "changed": changed, "log_index": index})
    else:
        out.print(f"{document} {'withdrawn' if changed else 'was withdrawn before'}, log index {index}")


@adapters.command("add")
def add(
    name: str,
    path: Annotated[Path, typer.Argument(help="A folder as peft writes it.", exists=True, file_okay=False)],
    *,
    base: Annotated[str, typer.Option(help="The base model it was trained on.")],
    developer: Annotated[str, typer.Option(help="The contributor who made it.")],
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="ID=WEIGHT", help="A contributor of training data; may be repeated.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Verify an adapter and register it: safetensors only, made for this base, and changing what the base says."""
    datasets = [_dataset(text) for text in dataset or []]
    with office(config) as o:
        if base != o.settings.engine.name:
            raise RegistryError(f"the engine's base model is {o.settings.engine.name!r}, not {base!r}")
        AdapterFiles.read(path)  # before the engine takes its seconds to start
        engine = make_engine(o.settings)
        try:
            added = register_adapter(o, engine, name=name, path=path, developer=developer, datasets=datasets)
        finally:
            asyncio.run(engine.close())
    if as_json:
        print_json(_fields(added))
    else:
        out.print(f"adapter {added.name}, sha256 {added.digest}, log index {added.log_index}")


def register_adapter(
    o: Office, engine: Engine, *, name: str, path: Path, developer: str, datasets: Sequence[tuple[str, int]]
) -> Adapter:
    """Have the engine try an adapter, then date it in the log. Raises AdapterRejected or RegistryError."""
    files = AdapterFiles.read(path.resolve())
    asyncio.run(engine.load(files))
    with o.write() as transaction:
        return o.registry.add_adapter(
            transaction,
            name=name,
            digest=files.digest,
            path=files.path,
            base_model=engine.base_model,
            base_digest=engine.base_digest,
            developer=developer,
            datasets=datasets,
        )


@adapters.command("list")
def list_adapters(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Every adapter on offer."""
    with office(config) as o, o.database.read() as connection:
        rows = [_fields(adapter) for adapter in o.registry.adapters(connection)]
    print_rows(rows, ["name", "base_model", "developer", "digest", "log_index"], as_json=as_json)


@adapters.command("remove")
def remove(name: str, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Stop offering an adapter. What it earned stays; a served model that names it must be changed first."""
    with office(config) as o, o.write() as transaction:
        users = [model.name for model in o.settings.models if model.adapter == name]
        if users:
            raise RegistryError(f"model {users[0]!r} uses adapter {name!r}; change the configuration first")
        o.registry.remove_adapter(transaction.connection, name)
    out.print(f"removed {name}")


def _fields(adapter: Adapter) -> dict[str, Any]:
    return vars(adapter) | {"path": str(adapter.path)}


def _dataset(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)=([1-9][0-9]{0,8})", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not of the form contributor=weight", param_hint="--dataset")
    return match[1], int(match[2])
