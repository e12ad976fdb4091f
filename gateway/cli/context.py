"""What every command needs: the settings, the books behind them, and a way to print for people or for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.database import Database
from gateway.registry import Registry
from gateway.settings import Settings, load
from gateway.transactions import ledger_write, require_signer
from ledger_client import Log, Signer
from metering import Books, Transaction

# Where nobody watches, nothing is cut to the width of a screen.
WIDE = None if sys.stdout.isatty() else 240
out = Console(highlight=False, emoji=False, soft_wrap=True, width=WIDE)
err = Console(stderr=True, highlight=False, emoji=False)

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="TRIBUTARY_CONFIG", help="The configuration file.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DEFAULT_CONFIG = Path("tributary.toml")


@dataclass(frozen=True, kw_only=True)
class Office:
    """The settings and the books, for commands that work beside a running gateway or without one."""

    settings: Settings
    database: Database
    signer: Signer
    log: Log
    books: Books
    registry: Registry

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A transaction on the books."""
        with ledger_write(self.database, self.log) as transaction:
            yield transaction


@contextmanager
def office(config: Path) -> Iterator[Office]:
    """Open the books that a configuration file names."""
    settings = load(config)
    database = Database(settings.database.url)
    try:
        database.require_current_schema()
        signer = Signer.load(settings.log.signing_key_file)
        log = Log(signer, settings.quorum)
        require_signer(database, log, signer, settings.log.origin)
        yield Office(
            settings=settings,
            database=database,
            signer=signer,
            log=log,
            books=Books(settings.server.id, lambda: datetime.now(UTC)),
            registry=Registry(log),
        )
    finally:
        database.close()


def print_json(value: object) -> None:
    """Print one JSON document."""
    typer.echo(json_text(value))


def json_text(value: object) -> str:
    """A JSON document, indented."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, title: str = "") -> None:
    """Print records as a table of the named columns, or all of each record as JSON."""
    if as_json:
        print_json(list(rows))
        return
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right" if column.endswith(("nano", "usd")) else "left")
    for row in rows:
        table.add_row(*(Text("" if row[column] is None else str(row[column])) for column in columns))
    out.print(table)


def say(text: str) -> None:
    """Print a line as it is: what people named may look like markup."""
    out.print(text, markup=False)


def usd(amount_nano: int) -> str:
    """Nano-USD as dollars, every decimal kept."""
    return f"{Decimal(amount_nano).scaleb(-9):f}"
