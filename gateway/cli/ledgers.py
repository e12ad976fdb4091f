"""Ledgers elsewhere: running one, and seeing what others hold of this log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.markup import escape

from gateway.cli.context import DEFAULT_CONFIG, ConfigOption, JsonOption, office, out, print_json, print_rows, say
from gateway.cli.server import bind, make_key, run
from gateway.database import Database
from gateway.ledger_server import create_ledger_app
from gateway.observe import configure_logging
from gateway.published import DatabaseReads, Published
from gateway.settings import DatabaseUrl, SettingsError, describe
from gateway.transactions import require_signer
from ledger_client import (
    LocalLedger,
    Log,
    Signer,
    StoredLog,
    StoredReceived,
    Verifier,
    forks,
    fsck,
    metadata,
    shipped,
    sources,
)

ledgers = typer.Typer(no_args_is_help=True, help="Ledgers elsewhere, which hold what other logs ship to them.")

DatabaseOption = Annotated[str, typer.Option("--database", help="An SQLAlchemy URL: sqlite:///FILE or postgresql+…")]
KeyOption = Annotated[
    Path, typer.Option("--signing-key", help="The ledger's key; `serve` makes one on a new database.")
]
OriginOption = Annotated[str, typer.Option("--origin", help="The ledger's name, signed into every checkpoint.")]
AcceptOption = Annotated[
    list[str], typer.Option("--accept", metavar="VKEY", help="The verifier key of a log to receive; may be repeated.")
]


@ledgers.command("serve")
def serve(
    database: DatabaseOption,
    signing_key: KeyOption,
    origin: OriginOption,
    accept: AcceptOption,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Port 0 takes any free one.")] = "127.0.0.1:8100",
) -> None:
    """Receive the logs whose keys are given, until told to stop. Needs no configuration file."""
    verifiers = [Verifier.parse(key) for key in accept]
    with bind(*_address(listen)) as listener, _opened(database) as opened:
        with opened.write() as connection:
            metadata.create_all(connection)
        signer = Signer.load(signing_key) if signing_key.exists() else make_key(signing_key, origin, opened)
        log = Log(signer)
        require_signer(opened, log, signer, origin)
        say(f"ledger key: {signer.verifier_key}")
        configure_logging()
        app = create_ledger_app(
            LocalLedger(log, opened.write, opened.read, verifiers),
            Published(log=log, verifier_key=signer.verifier_key, reads=DatabaseReads(opened)),
        )
        asyncio.run(run(app, listener))


@ledgers.command("status")
def status(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """What each ledger of the configuration has acknowledged of this log, and how much waits."""
    with office(config) as o, o.database.read() as connection:
        size = o.log.size(connection)
        rows = [
            {
                "ledger": ledger.name,
                "url": ledger.url,
                "acknowledged": (acknowledged := shipped(connection, ledger.verifier.name)),
                "backlog": size - acknowledged,
            }
            for ledger in o.settings.ledgers
        ]
    print_rows(rows, ("ledger", "url", "acknowledged", "backlog"), as_json=as_json)


@ledgers.command("fsck")
def check(
    database: DatabaseOption, signing_key: KeyOption, accept: AcceptOption, *, as_json: JsonOption = False
) -> None:
    """Check a ledger's database from the stored bytes: its own log, and what it holds of every other."""
    verifiers = [Verifier.parse(key) for key in accept]
    with _opened(database) as opened, opened.read() as connection:
        signer = Signer.load(signing_key)
        log = Log(signer)
        stored = StoredLog(connection)
        findings = fsck(
            stored.entries(),
            log.checkpoints(connection),
            None,
            signer.verifier,
            laws=(stored, StoredReceived(connection, verifiers)),
            processes=1,
        )
        held = sources(connection)
        forked = forks(connection)
    if as_json:
        told = [vars(finding) for finding in findings]
        print_json({"ok": not findings, "held": held, "forked": sorted(forked), "findings": told})
    else:
        for origin, entries in held.items():
            say(f"{origin}: {entries} entries{', and its key signed another history too' * (origin in forked)}")
        for finding in findings:
            out.print(f"[red]{escape(str(finding))}[/red]")
        out.print("fsck: ok" if not findings else f"fsck: {len(findings)} findings")
    raise typer.Exit(1 if findings else 0)


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    try:
        TypeAdapter(DatabaseUrl).validate_python(url)
    except ValidationError as error:
        raise SettingsError(f"--database: {describe(error)}") from None
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not port.isascii() or int(port) > 65_535:
        raise typer.BadParameter(f"{listen!r} is not of the form 127.0.0.1:8100", param_hint="--listen")
    return host.removeprefix("[").removesuffix("]"), int(port)
