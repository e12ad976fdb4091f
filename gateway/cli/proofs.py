"""Receipts and checks: what an auditor runs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gateway import answers
from gateway.cli.context import DEFAULT_CONFIG, ConfigOption, JsonOption, err, office, out, print_json, say
from gateway.settings import Settings, load
from ledger_client import (
    Line,
    QuorumError,
    Signer,
    StoredLog,
    Verifier,
    WitnessVerifier,
    fsck,
    fsck_shipments,
    ledger_receipt,
    verify_receipt,
)
from metering import StoredBooks, balances, open_intents


def receipt(
    request_id: str,
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Write to a file instead of printing.")] = None,
    ledger: Annotated[str | None, typer.Option(help="The proof that this one of [[ledgers]] holds it too.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """The proof that an answer's newest entry is in the log; it verifies offline."""
    with office(config) as o, o.database.read() as connection:
        log_index = answers.find(connection, request_id).newest_index
        if ledger is None:
            text = o.log.receipt(connection, log_index)
        else:
            text = ledger_receipt(connection, o.log, _ledger_origin(o.settings, ledger), log_index)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        say(f"receipt of {request_id} in {output}")


def _ledger_origin(settings: Settings, name: str) -> str:
    for ledger in settings.ledgers:
        if ledger.name == name:
            return ledger.verifier.name
    raise typer.BadParameter(f"no [[ledgers]] is named {name!r}", param_hint="--ledger")


def log_key(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """The log's verifier key: all that a receipt is checked with."""
    typer.echo(Signer.load(load(config).log.signing_key_file).verifier_key)


def verify(
    file: Annotated[Path, typer.Argument(help="A receipt.", exists=True, dir_okay=False)],
    key: Annotated[str | None, typer.Option(envvar="TRIBUTARY_LOG_KEY", help="The log's verifier key.")] = None,
    claim: Annotated[
        str | None, typer.Option(metavar="ACCOUNT=NANO", help="Check also that the split gives an account this much.")
    ] = None,
    witness: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="The verifier key of a witness; repeat it for more.")
    ] = None,
    quorum: Annotated[
        int | None, typer.Option(min=1, help="How many of the witnesses must have cosigned; by itself, all of them.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Check a receipt offline, with the log's verifier key alone, and that a quorum of witnesses cosigned, if asked.

    Without --key, the configured log's key is used; --quorum without --witness asks the configured witnesses.
    """
    if key is None and not config.exists():
        raise typer.BadParameter("give the log's verifier key with --key; the operator publishes it at /log/key")
    verifier = Verifier.parse(key) if key else Signer.load(load(config).log.signing_key_file).verifier
    try:
        verified = verify_receipt(
            file.read_bytes(),
            verifier,
            claim=_line(claim) if claim else None,
            witnesses=_witnesses(witness, quorum, config),
            quorum=quorum,
        )
    except QuorumError as error:
        raise typer.BadParameter(str(error), param_hint="--quorum") from None
    if as_json:
        print_json({"ok": verified.ok, "index": verified.index, "steps": [vars(step) for step in verified.steps]})
    else:
        for step in verified.steps:
            mark = "[green]ok[/green]  " if step.ok else "[red]FAIL[/red]"
            out.print(f"  {mark} ({step.number}) {step.name}: {escape(step.detail)}")
        if verified.ok:
            out.print(f"[bold green]receipt verified[/bold green]: log index {verified.index}")
        else:
            out.print("[bold red]receipt NOT verified[/bold red]")
    raise typer.Exit(0 if verified.ok else 1)


def _witnesses(keys: list[str] | None, quorum: int | None, config: Path) -> list[WitnessVerifier]:
    if not keys and quorum is not None:
        if not config.exists():
            raise typer.BadParameter("name the witnesses with --witness", param_hint="--quorum")
        return [section.verifier for section in load(config).witnesses]
    return [WitnessVerifier.parse(key) for key in keys or ()]


def _line(claim: str) -> Line:
    account, _, amount = claim.rpartition("=")
    if not account or not re.fullmatch("0|[1-9][0-9]{0,18}", amount):
        raise typer.BadParameter(f"{claim!r} is not of the form contributor:someone=1200", param_hint="--claim")
    return Line(account=account, amount_nano=int(amount))


def run_fsck(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Check every invariant from the stored bytes: entries, tree, checkpoints, postings, balances, intents."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed}"), TimeElapsedColumn())
    progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    with office(config) as o, o.database.read() as connection, progress as bar:
        task = bar.add_task("entries checked")
        size = o.log.size(connection)
        stored = StoredLog(connection)
        findings = fsck(
            stored.entries(),
            o.log.checkpoints(connection),
            dict(balances(connection)),
            o.signer.verifier,
            open_intents={(intent.gateway, intent.gateway_seq) for intent in open_intents(connection)},
            read=partial(o.log.entry, connection),
            laws=(stored, StoredBooks(connection)),
            processes=1,
            total=size,
            progress=lambda now: bar.update(task, completed=now.done, total=now.total),
        )
        findings += fsck_shipments(connection, o.log)
    if as_json:
        print_json({"ok": not findings, "entries": size, "findings": [vars(finding) for finding in findings]})
    else:
        for finding in findings:
            where = "" if finding.log_index is None else f" at log index {finding.log_index}"
            out.print(f"[red]{finding.invariant}[/red]{where}: {escape(finding.message)}")
        out.print(f"fsck: ok, {size} entries" if not findings else f"fsck: {len(findings)} findings")
    raise typer.Exit(1 if findings else 0)
