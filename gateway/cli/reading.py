"""What was earned, and for which answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer

from gateway import answers, feedback
from gateway.cli.asking import draw_attribution
from gateway.cli.context import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    json_text,
    office,
    print_json,
    print_rows,
    say,
    usd,
)
from gateway.corrections import correct_owners
from metering import Grouping, Statement
from metering import earnings as earnings_of
from metering import statement as statement_of

attributions = typer.Typer(no_args_is_help=True, help="What each player contributed to an answer.")
ratings = typer.Typer(no_args_is_help=True, help="What callers said of answers.")


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
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
    as_html: Annotated[bool, typer.Option("--html", help="As a page to print.")] = False,
    as_json: JsonOption = False,
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Write to a file instead of printing.")] = None,
) -> None:
    """A contributor's account statement for a month; each line names its log index."""
    if as_csv + as_html + as_json > 1:
        raise typer.BadParameter("a statement has one form: give --csv, --html or --json")
    if output is not None and not as_csv + as_html + as_json:
        raise typer.BadParameter("--out goes with --csv, --html or --json")
    with office(config) as o, o.database.read() as connection:
        name = o.registry.contributor(connection, contributor).name
        found = statement_of(connection, contributor, period)
    if as_csv + as_html + as_json:
        document = json_text(found.as_json()) + "\n"
        if as_csv:
            document = found.as_csv()
        elif as_html:
            document = found.as_html(name)
        if output is None:
            typer.echo(document, nl=False)
        else:
            output.write_bytes(document.encode())  # as it is: CSV ends its lines with CR LF
            say(f"statement of {contributor} for {period} in {output}")
        return
    _print_statement(found)


def _print_statement(found: Statement) -> None:
    columns = ["log_index", "time", "role", "kind", "item", "served_model", "amount_nano"]
    print_rows([{name: getattr(line, name) for name in columns} for line in found.lines], columns, as_json=False)
    head = found.summary
    say(
        f"opening {head.opening_nano}  earned {head.earned_nano}  corrected {head.corrected_nano}  "
        f"paid {head.paid_nano}  closing {head.closing_nano}  (nano-USD)"
    )
    say("the period is open" if found.closed_index is None else f"closed by log entry {found.closed_index}")


@ratings.command("list")
def list_feedback(
    request: Annotated[str | None, typer.Option(help="Of this request alone.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Every rating with its comment, in log order; the newest of a request counts."""
    with office(config) as o, o.database.read() as connection:
        rows = list(feedback.given(connection, request))
    print_rows(rows, ["log_index", "time", "request_id", "rating", "comment"], as_json=as_json)


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


@attributions.command("supersede")
def supersede_attribution(
    request_id: str,
    owner: Annotated[list[str], typer.Option(metavar="DOCUMENT=CONTRIBUTOR", help="Who owns it; may be repeated.")],
    reason: Annotated[str, typer.Option(help="One line; it is public in the log.")],
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    as_json: JsonOption = False,
) -> None:
    """Correct who owns documents of an answer: its shares stay, the difference is posted by a new entry of the log."""
    owners = dict(_owner(text) for text in owner)
    if len(owners) != len(owner):
        raise typer.BadParameter("a document is named twice", param_hint="--owner")
    with office(config) as o, o.write() as transaction:
        done = correct_owners(transaction, o.books, o.registry, request_id, owners, reason)
    changes = [{"account": account, "amount_nano": str(nano)} for account, nano in done.changes_nano.items()]
    if as_json:
        written = {"request_id": request_id, "supersedes": done.supersedes, "log_index": done.log_index}
        print_json(written | {"changes": changes})
        return
    if done.log_index == done.supersedes:
        say(f"{request_id} is credited so already, by log entry {done.log_index}; nothing was written")
        return
    print_rows(changes, ["account", "amount_nano"], as_json=False)
    say(f"log entry {done.log_index} supersedes {done.supersedes}")


def _owner(text: str) -> tuple[str, str]:
    document, _, contributor = text.partition("=")
    if not document or not contributor:
        raise typer.BadParameter(f"{text!r} is not of the form doc_…=contributor", param_hint="--owner")
    return document, contributor
