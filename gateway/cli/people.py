"""Contributors, and the keys that people call with."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from gateway.auth import Role, create_key, find_key, list_keys, revoke_key
from gateway.cli.context import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    Office,
    err,
    office,
    print_json,
    print_rows,
    say,
    usd,
)
from gateway.identifiers import new_id
from metering import Transaction, balance, contributor_account

contributors = typer.Typer(no_args_is_help=True, help="Parties that are credited.")
keys = typer.Typer(no_args_is_help=True, help="API keys: shown once, stored hashed.")


@contributors.command("add")
def add_contributor(
    contributor: Annotated[str, typer.Argument(help="Id: lower-case letters, digits, hyphens.")],
    name: Annotated[str, typer.Option(help="Name for people.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Register a contributor in the log. Registering twice is harmless."""
    with office(config) as o, o.write() as transaction:
        added = o.registry.add_contributor(transaction, contributor, name or contributor)
    if as_json:
        print_json(vars(added))
    else:
        say(f"contributor {added.id} ({added.name}), log index {added.log_index}")


@contributors.command("list")
def list_contributors(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Every contributor and what stands on its account."""
    with office(config) as o, o.database.read() as connection:
        rows = [
            vars(found) | {"balance_nano": str(balance(connection, contributor_account(found.id)).posted_nano)}
            for found in o.registry.contributors(connection)
        ]
    print_rows(rows, ["id", "name", "balance_nano", "log_index", "created_at"], as_json=as_json)


@contributors.command("show")
def show_contributor(contributor: str, config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """One contributor."""
    with office(config) as o, o.database.read() as connection:
        found = o.registry.contributor(connection, contributor)
        posted_nano = balance(connection, contributor_account(found.id)).posted_nano
    row = vars(found) | {"balance_nano": str(posted_nano)}
    print_rows([row], ["id", "name", "balance_nano", "log_index", "created_at"], as_json=as_json)


@keys.command("create")
def create(
    role: Annotated[Role, typer.Option(help="What the key may do.")],
    name: Annotated[str, typer.Option(help="What you call it.")],
    contributor: Annotated[str | None, typer.Option(help="Whose earnings a contributor's key reads.")] = None,
    credit: Annotated[str | None, typer.Option(help="USD that a caller's key starts with, such as 5.00.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once."""
    if (role == "contributor") != (contributor is not None):
        raise typer.BadParameter("--contributor goes with --role contributor, and only with it")
    if credit is not None and role != "caller":
        raise typer.BadParameter("--credit goes with --role caller")
    with office(config) as o, o.write() as transaction:
        if contributor is not None:
            o.registry.contributor(transaction.connection, contributor)
        made = create_key(transaction.connection, role=role, name=name, contributor=contributor)
        if credit is not None:
            _credit(o, transaction, made.principal.subject, credit)
    if as_json:
        print_json({"id": made.principal.key_id, "role": role, "name": name, "key": made.secret})
    else:
        typer.echo(made.secret)
        err.print(f"[dim]{made.principal.key_id}, role {role}; it is not shown again[/dim]")


@keys.command("list")
def list_all(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Every key, without its secret, and what a caller's key has left."""
    with office(config) as o, o.database.read() as connection:
        rows = []
        for row in list_keys(connection):
            fields = {str(name): value for name, value in row._mapping.items()}
            caller = fields["role"] == "caller"
            available = balance(connection, fields["subject"]).available_nano if caller else None
            rows.append(fields | {"available_usd": None if available is None else usd(available)})
    print_rows(rows, ["id", "role", "name", "available_usd", "created_at", "revoked_at"], as_json=as_json)


@keys.command("revoke")
def revoke(key: Annotated[str, typer.Argument(help="Id or name.")], config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Make a key useless from now on."""
    with office(config) as o, o.write() as transaction:
        revoked = revoke_key(transaction.connection, key)
    say(f"revoked {revoked.key_id} ({revoked.name})")


@keys.command("credit")
def credit_key(
    key: Annotated[str, typer.Argument(help="Id or name of a caller's key.")],
    amount: Annotated[str, typer.Argument(help="USD, such as 5.00.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Add credit to a caller's account."""
    with office(config) as o, o.write() as transaction:
        principal = find_key(transaction.connection, key)
        if principal.role != "caller":
            raise typer.BadParameter(f"{key} has role {principal.role}; only callers hold credit")
        _credit(o, transaction, principal.subject, amount)
        left = transaction.balance(principal.subject)
    say(f"{principal.name}: {usd(left.available_nano)} USD available")


def _credit(o: Office, transaction: Transaction, account: str, amount: str) -> None:
    o.books.grant_credit(transaction, account, _nano(amount), "credit granted by the operator", new_id("grant"))


def _nano(amount: str) -> int:
    """USD as whole nano-USD."""
    try:
        nano = Decimal(amount).scaleb(9)
    except InvalidOperation:
        raise typer.BadParameter(f"{amount!r} is not an amount in USD, such as 5.00") from None
    if not nano.is_finite() or nano != nano.to_integral_value() or nano <= 0:
        raise typer.BadParameter(f"{amount!r} must be above 0 USD, with at most 9 decimals")
    return int(nano)
