"""Documents: what answers are grounded in, and whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import retrieval
from gateway.app import make_embedder
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
from gateway.registry import RegistryError
from metering import Transaction
from retrieval import Embedder, FileOutcome, PreparedDocument, Retriever, Terms

documents = typer.Typer(no_args_is_help=True, help="Documents and their owners.")


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
