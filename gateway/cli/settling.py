"""Closing months and paying for them: by an exported list, or through the distributor on a chain."""

from __future__ import annotations

import csv
import io
import os
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import sqlalchemy as sa
import typer

from gateway.cli.context import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    Office,
    office,
    out,
    print_json,
    print_rows,
    say,
    usd,
)
from gateway.payout_addresses import PayoutAddresses
from gateway.settings import Settings, SettingsError
from ledger_client import PeriodError, SettlementError, token_units
from metering import (
    Settlement,
    carried_forward,
    cell,
    closed_periods,
    due_period,
    payout_addresses,
)
from metering import settle as settle_period
from metering import settlement as settlement_of

if TYPE_CHECKING:
    from ledger_client.chain import Distributor, Sent

KEY_VARIABLE = "TRIBUTARY_CHAIN_KEY"

payouts = typer.Typer(no_args_is_help=True, help="What contributors are paid for closed months.")


class ExportFormat(StrEnum):
    """What `payouts export` writes."""

    CSV = "csv"
    PROOFS = "proofs"


def settle(
    period: Annotated[str | None, typer.Argument(help="A month in UTC, YYYY-MM; absent, the next to close.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Close a month that is over and pay what is due for it, as [settlement] says. Closing twice does it once."""
    with office(config) as o:
        with o.write() as transaction:
            chosen = period or due_period(transaction)
            done = settle_period(o.books, transaction, chosen, o.settings.settlement_terms)
        with o.database.read() as connection:
            carried = list(carried_forward(connection, done.period))
    if as_json:
        left = [{"contributor": contributor, "amount_nano": str(amount)} for contributor, amount in carried]
        print_json(done.as_json() | {"carried_forward": left})
        return
    print_rows(
        [payout.as_json() for payout in done.payouts],
        ["contributor", "amount_nano", "method", "address", "log_index"],
        as_json=False,
    )
    say(f"{done.period} is closed by log entry {done.log_index}, epoch {done.claims.epoch}")
    say(f"{len(done.payouts)} payouts of {usd(done.paid_nano)} USD, {done.statements} statements")
    say(f"{len(carried)} carried forward with {usd(sum(amount for _, amount in carried))} USD")
    if done.claims.root:
        say(f"payout root {done.claims.root.hex()}, {done.claims.cumulative_total} units in all")
        say(f"next: `tributary payouts post {done.period}`")


@payouts.command("export")
def export(
    period: str,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="csv: who gets what; proofs: the tree to claim from.")
    ] = ExportFormat.CSV,
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Write to a file instead of printing.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Write what a closed month pays, as CSV for whoever pays, or as the file that proofs are made from."""
    with office(config) as o, o.database.read() as connection:
        done = _closed(o, connection, period)
        names = {contributor.id: contributor.name for contributor in o.registry.contributors(connection)}
    text = done.claims.encode().decode() if form is ExportFormat.PROOFS else _csv(done, names)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8", newline="")
        say(f"{len(done.payouts)} payouts of {done.period} in {output}")


@payouts.command("bind")
def bind(
    contributor: str,
    address: Annotated[str, typer.Argument(help="As the wallet shows it, by EIP-55.")],
    signature: Annotated[
        str | None, typer.Option(help="Of the typed data, by that address; absent, the data to sign is printed.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Have a contributor paid at an address. Its wallet signs the typed data (eth_signTypedData_v4)."""
    with office(config) as o:
        addresses = PayoutAddresses.of(o.settings)
        with o.database.read() as connection:
            o.registry.contributor(connection, contributor)
            binding = addresses.next_binding(connection, contributor, address)
        if signature is None:
            print_json(binding.typed_data())
            return
        with o.write() as transaction:
            nonce = binding.nonce
            log_index = addresses.bind(o.books, transaction, contributor, address, nonce=nonce, signature=signature)
    say(f"{contributor} is paid at {address}, log index {log_index}")


@payouts.command("post")
def post(period: str, config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Post a closed month's root on chain, and those of earlier months that are not there; again is harmless."""
    # web3 takes a second to import, and comes with an extra.
    from ledger_client.chain import Epoch  # noqa: PLC0415

    with office(config) as o:
        distributor = _distributor(o.settings, writes=True)
        latest = distributor.standing().latest_epoch
        posted = []
        with o.database.read() as connection:
            last = _closed(o, connection, period)
            if last.distributor != o.settings.chain.distributor:
                raise SettlementError(f"{period} was settled for {last.distributor or 'a list'}, not for this [chain]")
            for each in closed_periods(connection, last.distributor)[: last.claims.epoch]:
                closed = _closed(o, connection, each)
                if closed.claims.epoch <= latest and each != period:
                    continue
                head = o.signer.verifier.open(o.log.checkpoint_over(connection, closed.log_index))
                epoch = Epoch(
                    number=closed.claims.epoch,
                    root=closed.claims.root,
                    cumulative_total=closed.claims.cumulative_total,
                    log_size=head.size,
                    log_root=head.root,
                )
                posted.append({"period": each, "epoch": epoch.number, "transaction": _hash(distributor.post(epoch))})
    print_rows(posted, ["period", "epoch", "transaction"], as_json=as_json)


@payouts.command("revoke")
def revoke(period: str, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Take a root back while its timelock runs. The log keeps what it says; post again when it is right."""
    with office(config) as o, o.database.read() as connection:
        done = _closed(o, connection, period)
    sent = _distributor(o.settings, writes=True).revoke(done.claims.epoch)
    say(f"epoch {done.claims.epoch} of {period}: {'revoked' if sent else 'it was not there'}")


@payouts.command("fund")
def fund(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Bring what the distributor holds up to all that was ever settled, from the key's own address."""
    with office(config) as o, o.database.read() as connection:
        closed = closed_periods(connection, o.settings.chain.distributor)
        if not closed:
            raise PeriodError("no period was settled for this contract yet, so nothing is due")
        due = _closed(o, connection, closed[-1]).claims.cumulative_total
    sent = _distributor(o.settings, writes=True).fund(due)
    say(f"funded up to {due} units" if sent else f"{due} units are funded already")


@payouts.command("claim")
def claim(
    contributor: str,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Have a contributor paid what the root in force on chain gives its address. Anyone may send it."""
    with office(config) as o:
        distributor = _distributor(o.settings, writes=True)
        with o.database.read() as connection:
            address = payout_addresses(connection).get(contributor)
            if address is None:
                raise SettlementError(f"{contributor} has bound no payout address; `tributary payouts bind` does it")
            current = distributor.standing().current_epoch
            if current == 0:
                raise SettlementError("no root is in force on chain yet; a posted one waits out its timelock first")
            period = closed_periods(connection, o.settings.chain.distributor)[current - 1]
            tree = _closed(o, connection, period).claims.tree
        if tree is None:
            raise SettlementError(f"epoch {current}, which is in force, pays nobody")
        found = tree.claim(address)
        before = distributor.claimed(address)
        sent = distributor.claim(found)
    row = {
        "contributor": contributor,
        "address": address,
        "epoch": current,
        "units": str(found.cumulative - before),
        "cumulative": str(found.cumulative),
        "transaction": _hash(sent),
    }
    print_rows([row], list(row), as_json=as_json)


@payouts.command("status")
def status(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """What is settled, funded and claimed, and where the contract stands."""
    with office(config) as o:
        standing = _distributor(o.settings, writes=False).standing()
        with o.database.read() as connection:
            closed = closed_periods(connection, o.settings.chain.distributor)
            due = _closed(o, connection, closed[-1]).claims.cumulative_total if closed else 0
    row: dict[str, Any] = vars(standing) | {
        "anchor": standing.anchor and {"size": standing.anchor.size, "root": standing.anchor.root.hex()},
        "settled": due,
        "closed_periods": closed,
    }
    if as_json:
        print_json(row)
        return
    for name, value in row.items():
        out.print(f"{name.replace('_', ' '):<16}{value}", markup=False)


@payouts.command("deploy")
def deploy(
    token: Annotated[str, typer.Option(help="The ERC-20 that is paid in, by EIP-55.")],
    rpc_url: Annotated[str, typer.Option(help="An EVM JSON-RPC endpoint.")],
    timelock: Annotated[int, typer.Option(min=3600, max=30 * 86400, help="Seconds that a root waits.")] = 86400,
    key_file: Annotated[Path | None, typer.Option(help=f"The owner's key; absent, {KEY_VARIABLE} is read.")] = None,
) -> None:
    """Create a distributor, and print the [chain] section that names it."""
    from ledger_client.chain import Distributor  # noqa: PLC0415

    made = Distributor.deploy(rpc_url, token=token, timelock_s=timelock, key=_key(key_file))
    for line in (
        "[chain]",
        f"rpc_url = {orjson.dumps(rpc_url).decode()}",
        f"chain_id = {made.chain.chain_id}",
        f'contract = "{made.address}"',
    ):
        typer.echo(line)


def anchor(
    every: Annotated[
        int | None, typer.Option(min=1, metavar="SECONDS", help="Go on, and anchor each time the log has grown.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Post the newest checkpoint, its size and root, on chain; what is there can then never be rewritten unseen."""
    from ledger_client.chain import Anchor, ChainError  # noqa: PLC0415

    with office(config) as o:
        distributor = _distributor(o.settings, writes=True)
        while True:
            with o.database.read() as connection:
                head = o.signer.verifier.open(o.log.checkpoint(connection))
            try:
                sent = distributor.anchor(Anchor(size=head.size, root=head.root)) if head.size else None
            except ChainError as error:
                if every is None or error.error is not None:  # what the contract refuses, it will refuse again
                    raise
                say(f"not anchored, trying again: {error}")
            else:
                say(f"size {head.size}, root {head.root.hex()}, {_hash(sent) or 'there already'}")
            if every is None:
                return
            time.sleep(every)


def _closed(o: Office, connection: sa.Connection, period: str) -> Settlement:
    found = settlement_of(connection, period, lambda index: o.log.entry(connection, index))
    if found is None:
        raise PeriodError(f"{period} is not closed; `tributary settle {period}` closes it")
    return found


def _csv(done: Settlement, names: dict[str, str]) -> str:
    """One row a payout: amounts in USD and in token units, both exact."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["period", "contributor", "name", "amount_usd", "token_units", "address", "log_index"])
    for payout in done.payouts:
        units = token_units(payout.amount_nano, done.claims.token_decimals)
        writer.writerow(
            [
                done.period,
                payout.contributor,
                cell(names.get(payout.contributor)),
                usd(payout.amount_nano),
                units,
                payout.address or "",
                payout.log_index,
            ]
        )
    return file.getvalue()


def _distributor(settings: Settings, *, writes: bool) -> Distributor:
    from ledger_client.chain import Distributor  # noqa: PLC0415

    chain = settings.chain
    if chain.rpc_url is None or chain.contract is None:
        raise SettingsError("[chain] names no contract; `tributary payouts deploy` makes one")
    key = _key(chain.key_file) if writes else None
    return Distributor.open(chain.rpc_url, chain.contract, key=key, chain_id=chain.chain_id)


def _key(file: Path | None) -> Any:
    from ledger_client.chain import ChainKey  # noqa: PLC0415

    if file is None and KEY_VARIABLE not in os.environ:
        raise SettingsError(f"no key to sign with: set [chain] key_file, or {KEY_VARIABLE}")
    return ChainKey.load(file) if file else ChainKey.from_environment(KEY_VARIABLE)


def _hash(sent: Sent | None) -> str | None:
    return sent.transaction if sent else None
