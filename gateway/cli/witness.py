"""Being a witness: a program of its own, beside no gateway and without its configuration."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.context import say
from gateway.cli.server import bind, run
from gateway.observe import configure_logging
from ledger_client import KeyFileError, Verifier, Witness, WitnessSigner, WitnessState
from ledger_client.witness_app import create_witness_app

witness = typer.Typer(no_args_is_help=True, help="Cosign the checkpoints of logs that only grow.")

KeyFile = Annotated[Path, typer.Option(help="The file of the witness's signing key.")]
StateFile = Annotated[Path, typer.Option(help="The file of what was cosigned last.")]
DEFAULT_KEY = Path("witness.key")
DEFAULT_STATE = Path("witness.db")


@witness.command("init")
def init(
    name: Annotated[
        str, typer.Argument(help="The witness's name: an address without its scheme, as witness.example/w1.")
    ],
    key: KeyFile = DEFAULT_KEY,
    state: StateFile = DEFAULT_STATE,
) -> None:
    """Make a key and an empty state, and print the verifier key to hand out. Overwrites nothing."""
    try:
        signer = WitnessSigner.generate(name)
    except KeyFileError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    for file in (key, state):
        if file.exists():
            raise typer.BadParameter(f"{file} exists; a witness keeps its key and its state together, and for good")
    # The state first: a key without it would look like a witness that has forgotten everything.
    WitnessState.create(state).close()
    signer.save(key)
    say(signer.verifier_key)


@witness.command("key")
def show_key(key: KeyFile = DEFAULT_KEY) -> None:
    """The witness's verifier key: what logs and those who check receipts are configured with."""
    typer.echo(WitnessSigner.load(key).verifier_key)


@witness.command("serve")
def serve(
    log: Annotated[list[str], typer.Option(help="The verifier key of a log to witness; repeat it for more.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Port 0 takes any free one.")] = "127.0.0.1:7070",
    key: KeyFile = DEFAULT_KEY,
    state: StateFile = DEFAULT_STATE,
) -> None:
    """Cosign for whoever asks, until told to stop: checkpoints of these logs alone, each extending the one before."""
    host, port = _address(listen)
    signer = WitnessSigner.load(key)
    opened = WitnessState.open(state)
    try:
        app = create_witness_app(Witness(signer=signer, logs=[Verifier.parse(text) for text in log], state=opened))
        with bind(host, port) as listener:
            configure_logging()
            asyncio.run(run(app, listener))
    finally:
        opened.close()


def _address(listen: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(0|[1-9][0-9]{0,4})", listen)
    if match is None or int(match[2]) > 65_535:
        raise typer.BadParameter(f"{listen!r} is not of the form 127.0.0.1:7070 or [::1]:7070", param_hint="--listen")
    return match[1].strip("[]"), int(match[2])
