"""Receipts and checks: what an auditor runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gateway import answers
from gateway.cli.context import DEFAULT_CONFIG, ConfigOption, JsonOption, office, out, print_json, say
from gateway.settings import Settings, load
from ledger_client import (
    Line,
    QuorumError,
    Signer,
    Verifier,
    WitnessVerifier,
    ledger_receipt,
    verify_receipt,
)


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
