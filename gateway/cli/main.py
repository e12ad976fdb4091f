"""The command's root: every group of commands, and errors told in one line."""

from __future__ import annotations

import sys

import httpx
import sqlalchemy as sa
import typer
from rich.text import Text

from gateway.adapter_sources import SourceError
from gateway.answers import UnknownRequestError
from gateway.auth import UnknownKeyError
from gateway.cli import (
    adapters,
    archiving,
    asking,
    checking,
    ledgers,
    material,
    people,
    proofs,
    reading,
    server,
    settling,
    witness,
)
from gateway.cli.context import err
from gateway.cli.demo import DemoError, demo
from gateway.corrections import CorrectionError
from gateway.database import DatabaseError
from gateway.engines import EngineError
from gateway.engines.weights import WeightsError
from gateway.payout_addresses import NoChainError
from gateway.registry import RegistryError
from gateway.settings import SettingsError
from ledger_client import (
    AddressError,
    ArchiveError,
    ChainError,
    CheckpointError,
    EntryConflict,
    KeyFileError,
    LogError,
    NotInLog,
    PeriodError,
    ProofError,
    SettlementError,
    WitnessStateError,
)
from metering import CommitError, IntentError, MeteringError
from retrieval import DocumentError, EmbedderError, EmbedderMismatchError

EXPECTED = (
    AddressError,
    ChainError,
    ArchiveError,
    CheckpointError,
    CommitError,
    CorrectionError,
    DatabaseError,
    DemoError,
    DocumentError,
    EmbedderError,
    EmbedderMismatchError,
    EngineError,
    EntryConflict,
    IntentError,
    KeyFileError,
    LogError,
    MeteringError,
    NotInLog,
    OSError,
    NoChainError,
    PeriodError,
    ProofError,
    RegistryError,
    asking.RefusedError,
    SettingsError,
    SettlementError,
    SourceError,
    UnknownKeyError,
    UnknownRequestError,
    WeightsError,
    WitnessStateError,
    httpx.TransportError,
    sa.exc.SQLAlchemyError,
)

app = typer.Typer(
    name="tributary",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="An inference gateway that attributes every answer and pays the people behind it.",
)
app.command()(server.init)
app.command()(server.serve)
app.command("serve-worker", hidden=True)(server.serve_worker)
app.command()(server.migrate)
app.command()(demo)
app.command("fsck")(checking.run_fsck)
app.command()(material.ingest)
app.command()(asking.ask)
app.command()(reading.earnings)
app.command()(reading.statement)
app.command()(settling.settle)
app.command()(settling.anchor)
app.command()(proofs.receipt)
app.command()(proofs.verify)
app.command("log-key")(proofs.log_key)
app.add_typer(server.configuration, name="config")
app.add_typer(people.contributors, name="contributor")
app.add_typer(people.keys, name="key")
app.add_typer(material.documents, name="document")
app.add_typer(adapters.adapters, name="adapter")
app.add_typer(settling.payouts, name="payouts")
app.add_typer(reading.attributions, name="attribution")
app.add_typer(ledgers.ledgers, name="ledger")
app.add_typer(archiving.archive, name="archive")
app.add_typer(witness.witness, name="witness")
app.add_typer(reading.ratings, name="feedback")


def main() -> None:
    """Run the command; an error that a person can mend is one line, and exit code 1."""
    try:
        app()
    except EXPECTED as error:
        err.print(Text.assemble(("error:", "red"), f" {_told(error)}"), soft_wrap=True)
        sys.exit(1)


def _told(error: Exception) -> str:
    """What an error says; of the database's, what the driver said, without the statement and its parameters."""
    if not isinstance(error, sa.exc.SQLAlchemyError):
        return str(error)
    cause = error.orig if isinstance(error, sa.exc.StatementError) and error.orig else error
    first, *_ = str(cause.args[0] if cause.args else cause).splitlines() or [type(cause).__name__]
    return f"the database: {first}"
