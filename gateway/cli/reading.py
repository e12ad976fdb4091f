"""What was earned, and for which answers."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer

from gateway import answers
from gateway.cli.asking import draw_attribution
from gateway.cli.context import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    office,
    print_json,
    print_rows,
    say,
    usd,
)
from metering import Grouping
from metering import earnings as earnings_of
from metering import statement as statement_of

attributions = typer.Typer(no_args_is_help=True, help="What each player contributed to an answer.")


def earnings(
    contributor: str,
    period: Annotated[str | None, typer.Option(help="A month in UTC, YYYY-MM; absent, ever.")] = None,
    by: Annotated[Grouping | None, typer.Option(help="Group by.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """What a contributor earned."""
    with office(config) as o, o.database.read() as connection:
        o.registry.contributor(connection, contributor)
        found = earnings_of(connection, contributor, period, by)
    if as_json:
        print_json(found.as_json())
        return
    if found.groups:
        rows = [{by or "": key or "(other)", "amount_nano": amount} for key, amount in found.groups.items()]
        print_rows(rows, [by or "", "amount_nano"], as_json=False)
    say(f"{contributor} earned {found.total_nano} nano-USD ({usd(found.total_nano)} USD)")


def statement(
    contributor: str,
    period: Annotated[str, typer.Argument(help="A month in UTC, YYYY-MM.")],
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """A contributor's account statement for a month; each line names its log index."""
    with office(config) as o, o.database.read() as connection:
        o.registry.contributor(connection, contributor)
        found = statement_of(connection, contributor, period)
    if as_csv:
        typer.echo(found.as_csv(), nl=False)
        return
    if as_json:
        print_json(found.as_json())
        return
    lines = [vars(line) for line in found.lines]
    print_rows(lines, ["log_index", "time", "role", "kind", "item", "served_model", "amount_nano"], as_json=False)
    head = found.summary
    say(
        f"opening {head.opening_nano}  earned {head.earned_nano}  corrected {head.corrected_nano}  "
        f"paid {head.paid_nano}  closing {head.closing_nano}  (nano-USD)"
    )
    say("the period is open" if found.closed_index is None else f"closed by log entry {found.closed_index}")


@attributions.command("show")
def show_attribution(request_id: str, config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Players, shares and split of one answer."""
    with office(config) as o, o.database.read() as connection:
        found = orjson.loads(answers.find(connection, request_id).attribution)
    if as_json:
        print_json(found)
    else:
        draw_attribution(found)


@attributions.command("retry")
def retry_attribution(request_id: str, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Queue an attribution that was given up once more; a running gateway takes it up within a minute."""
    with office(config) as o, o.write() as transaction:
        answers.retry(transaction.connection, request_id)
    say(f"{request_id} waits for attribution again")
