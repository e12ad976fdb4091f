"""Contributors, and the keys that people call with."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer

from gateway.auth import Principal, Role, create_key, find_key, list_keys, revoke_key, share_key
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
from gateway.fairness import Priority
from gateway.identifiers import new_id, now
from metering import Budget, Draw, Transaction, balance, budgets, contributor_account, draws

contributors = typer.Typer(no_args_is_help=True, help="Parties that are credited.")
keys = typer.Typer(no_args_is_help=True, help="API keys: shown once, stored hashed.")

MonthlyOption = Annotated[str | None, typer.Option(help="USD that a calendar month (UTC) may cost.")]
RequestsOption = Annotated[int | None, typer.Option(min=0, help="Requests that a minute may take.")]
TokensOption = Annotated[
    int | None,
    typer.Option(min=0, help="Tokens that a minute may take; until a chat answer has ended, it counts a full context."),
]


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
    account_of: Annotated[str | None, typer.Option(help="Id or name of a key whose account it shares.")] = None,
    monthly_usd: MonthlyOption = None,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once. The limits are the key's own; an account's are set by `key limit`."""
    if (role == "contributor") != (contributor is not None):
        raise typer.BadParameter("--contributor goes with --role contributor, and only with it")
    limits = _limits(monthly_usd, requests_per_minute, tokens_per_minute)
    if role != "caller" and (credit is not None or account_of is not None or limits):
        raise typer.BadParameter("--credit, --account-of and limits go with --role caller")
    with office(config) as o, o.write() as transaction:
        if contributor is not None:
            o.registry.contributor(transaction.connection, contributor)
        shared = _caller(transaction, account_of).subject if account_of is not None else None
        made = create_key(transaction.connection, role=role, name=name, contributor=contributor, account=shared)
        if limits:
            o.books.set_budget(transaction, Budget(subject=made.principal.key_id, **limits))
        if credit is not None:
            _credit(o, transaction, made.principal.subject, credit)
    if as_json:
        print_json({"id": made.principal.key_id, "role": role, "name": name, "key": made.secret})
    else:
        typer.echo(made.secret)
        err.print(f"[dim]{made.principal.key_id}, role {role}; it is not shown again[/dim]")


@keys.command("list")
def list_all(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Every key, without its secret; of a caller's, what is left, its limits and its account's.

    A month's spending is counted where a budget is set, from when it was.
    """
    month = now()[:7]
    with office(config) as o, o.database.read() as connection:
        limited, drawn = budgets(connection), draws(connection, month)
        rows = []
        for row in list_keys(connection):
            fields = {str(name): value for name, value in row._mapping.items()}
            if fields["role"] == "caller":
                fields["available_usd"] = usd(balance(connection, fields["subject"]).available_nano)
                fields["limits"] = _shown(limited.get(fields["id"]), drawn.get(fields["id"]))
                fields["account_limits"] = _shown(limited.get(fields["subject"]), drawn.get(fields["subject"]))
            else:
                fields |= {"available_usd": None, "limits": None, "account_limits": None}
            rows.append(fields)
    if not as_json:
        rows = [row | {name: _told(row[name]) for name in ("limits", "account_limits")} for row in rows]
    columns = ["id", "role", "name", "available_usd", "limits", "account_limits", "priority"]
    print_rows(rows, [*columns, "created_at", "revoked_at"], as_json=as_json)


@keys.command("limit")
def limit(
    key: Annotated[str, typer.Argument(help="Id or name of a caller's key.")],
    monthly_usd: MonthlyOption = None,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    none: Annotated[bool, typer.Option("--none", help="Lift every limit.")] = False,
    account: Annotated[bool, typer.Option("--account", help="Of the key's whole account, with all its keys.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Limit what a caller's key, or its account, may take from the next request on. Limits not named stay."""
    limits = _limits(monthly_usd, requests_per_minute, tokens_per_minute)
    if none == bool(limits):
        raise typer.BadParameter("give limits, or --none to lift them all")
    with office(config) as o, o.write() as transaction:
        principal = _caller(transaction, key)
        subject = principal.subject if account else principal.key_id
        known = None if none else transaction.budget(subject)
        budget = Budget(**vars(known or Budget(subject=subject)) | limits)
        o.books.set_budget(transaction, budget)
    whose = f"the account of {principal.name}" if account else principal.name
    if as_json:
        print_json(_shown(budget, None))
    else:
        say(f"{whose}: {_told(_shown(budget, None)) or 'no limits'}")


@keys.command("share")
def share(
    key: Annotated[str, typer.Argument(help="Id or name of a caller's key.")],
    priority: Annotated[Priority | None, typer.Option(help="Of two keys that wait, which gets more turns.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Its requests that are answered at once.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Say how a caller's key shares the gateway with others. What is not named stays."""
    given = {"priority": priority, "concurrency": concurrency}
    shares = {name: value for name, value in given.items() if value is not None}
    if not shares:
        raise typer.BadParameter("give --priority or --concurrency")
    with office(config) as o, o.write() as transaction:
        found = _caller(transaction, key)
        share_key(transaction.connection, found.key_id, **shares)
        found = find_key(transaction.connection, found.key_id)
    if as_json:
        print_json({"id": found.key_id, "priority": found.priority, "concurrency": found.concurrency})
    else:
        most = "no limit of its own" if found.concurrency is None else f"at most {found.concurrency}"
        say(f"{found.name}: priority {found.priority}, {most} at once")


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
        principal = _caller(transaction, key)
        _credit(o, transaction, principal.subject, amount)
        left = transaction.balance(principal.subject)
    say(f"{principal.name}: {usd(left.available_nano)} USD available")


def _caller(transaction: Transaction, key: str) -> Principal:
    principal = find_key(transaction.connection, key)
    if principal.role != "caller":
        raise typer.BadParameter(f"{key} has role {principal.role}; only callers hold credit and have limits")
    return principal


def _limits(monthly_usd: str | None, requests: int | None, tokens: int | None) -> dict[str, int]:
    """The limits that were given, by their names in a budget."""
    monthly_nano = None if monthly_usd is None else _nano(monthly_usd)
    given = {"monthly_nano": monthly_nano, "requests_per_minute": requests, "tokens_per_minute": tokens}
    return {name: value for name, value in given.items() if value is not None}


def _shown(budget: Budget | None, drawn: Draw | None) -> dict[str, Any] | None:
    """A budget as programs read it."""
    if budget is None or budget.unlimited:
        return None
    return {
        "monthly_usd": None if budget.monthly_nano is None else usd(budget.monthly_nano),
        "spent_this_month_usd": usd(drawn.spent_nano if drawn else 0),
        "requests_per_minute": budget.requests_per_minute,
        "tokens_per_minute": budget.tokens_per_minute,
    }


def _told(shown: dict[str, Any] | None) -> str | None:
    """A budget in a few words."""
    if shown is None:
        return None
    words = []
    if shown["monthly_usd"] is not None:
        words.append(f"{shown['spent_this_month_usd']} of {shown['monthly_usd']} USD this month")
    words += [
        f"{shown[f'{what}_per_minute']} {what}/min"
        for what in ("requests", "tokens")
        if shown[f"{what}_per_minute"] is not None
    ]
    return ", ".join(words)


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
