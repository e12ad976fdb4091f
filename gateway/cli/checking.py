"""The check of everything: of one's own books, or as an outsider of the files that somebody else publishes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.cli.context import DEFAULT_CONFIG, ConfigOption, JsonOption, err, office, out, print_json
from gateway.settings import load
from ledger_client import (
    ArchiveError,
    ArchiveReader,
    Finding,
    Signer,
    StoredLog,
    Verifier,
    fsck,
    fsck_archive,
    fsck_shipments,
    open_source,
)
from ledger_client import Progress as Checked
from metering import StoredBooks, balances, open_intents

KeyOption = Annotated[
    str | None, typer.Option("--key", envvar="TRIBUTARY_LOG_KEY", help="The log's verifier key.", metavar="VKEY")
]


class Tell(Protocol):
    """Takes entries done, entries in all, and entries a second where that is known."""

    def __call__(self, done: int, total: int | None, rate: float | None = None) -> None:
        """Show them."""
        ...


# Signatures are the costliest part of a check, and another processor can verify them.
HELPERS = max(min((os.cpu_count() or 1) - 1, 4), 0)


def run_fsck(
    from_tiles: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL", help="Check a log that others publish: a folder, a gateway's /log or s3://bucket/prefix."
        ),
    ] = None,
    key: KeyOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Check every invariant from the stored bytes: entries, tree, checkpoints, postings, balances, statements, intents.

    With --from-tiles it needs neither database nor configuration, only the log's verifier key.
    """
    if from_tiles is not None:
        size, findings = check_archive(from_tiles, verifier_of(key, config))
    else:
        size, findings = _check_own(key, config)
    tell_findings(size, findings, as_json=as_json)


def check_archive(name: str, verifier: Verifier) -> tuple[int, list[Finding]]:
    """Check the files of a log; returns how many entries it has, 0 where that cannot be believed, and what is wrong."""
    with progress_bar("entries checked") as tell:
        try:
            reader = ArchiveReader(open_source(name), verifier)
        except ArchiveError as error:
            return 0, [Finding(invariant="I5", log_index=None, message=str(error))]
        return reader.size, fsck_archive(reader, processes=HELPERS, progress=partial(_tell_checked, tell))


def verifier_of(key: str | None, config: Path) -> Verifier:
    """Return the verifier of a key, else of the configured log's."""
    if key is None and not config.exists():
        raise typer.BadParameter("give the log's verifier key with --key; the operator publishes it at /log/key")
    return Verifier.parse(key) if key else Signer.load(load(config).log.signing_key_file).verifier


def tell_findings(size: int, findings: list[Finding], *, as_json: bool) -> None:
    """Print what a check found, and exit with 1 where that is anything."""
    if as_json:
        print_json({"ok": not findings, "entries": size, "findings": [vars(finding) for finding in findings]})
    else:
        for finding in findings:
            where = "" if finding.log_index is None else f" at log index {finding.log_index}"
            out.print(f"[red]{finding.invariant}[/red]{where}: {escape(finding.message)}")
        out.print(f"fsck: ok, {size} entries" if not findings else f"fsck: {len(findings)} findings")
    raise typer.Exit(1 if findings else 0)


@contextmanager
def progress_bar(what: str) -> Iterator[Tell]:
    """A bar on a terminal, and nothing where nobody watches."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed} {task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=None, rate="")

        def tell(done: int, total: int | None, rate: float | None = None) -> None:
            bar.update(task, completed=done, total=total, rate="" if rate is None else f"({rate:,.0f}/s)")

        yield tell


def _check_own(key: str | None, config: Path) -> tuple[int, list[Finding]]:
    with office(config) as o, o.database.read() as connection, progress_bar("entries checked") as tell:
        size = o.log.size(connection)
        stored = StoredLog(connection)
        findings = fsck(
            stored.entries(),
            o.log.checkpoints(connection),
            dict(balances(connection)),
            Verifier.parse(key) if key else o.signer.verifier,
            open_intents={(intent.gateway, intent.gateway_seq) for intent in open_intents(connection)},
            read=partial(o.log.entry, connection),
            laws=[stored, StoredBooks(connection)],
            processes=HELPERS,
            total=size,
            progress=partial(_tell_checked, tell),
        )
        findings += fsck_shipments(connection, o.log)
    return size, findings


def _tell_checked(tell: Tell, checked: Checked) -> None:
    tell(checked.done, checked.total, checked.rate)
