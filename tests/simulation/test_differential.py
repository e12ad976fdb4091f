"""What is stored against the same worked out in another way: the tree from RFC 6962, the sums by SQL and from bytes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import product
from typing import Any, get_args

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from gateway.database import Database
from ledger_client import Receipt
from metering import Grouping, balances, earnings, entries, statement
from tests.databases import NewDatabase

from .commands import CONTRIBUTORS
from .load import LOG, SIGNER
from .model import CONTRIBUTOR
from .world import World

SEED, STEPS = 3, 150
COLUMNS = {"answer.superseded": "corrected_nano", "payout.recorded": "paid_nano"}


@pytest.fixture
def connection(new_database: NewDatabase) -> Iterator[Connection]:
    """A read of a history in which everything happened."""
    with new_database() as url, closing(World(SEED, url)) as world:
        world.run(STEPS)
        with closing(Database(url)) as database, database.read() as connection:
            yield connection


# RFC 6962, section 2.1: D[n] is a list of n entries, and k the largest power of two smaller than n.


def split_at(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(d: Sequence[bytes]) -> bytes:
    if not d:
        return hashlib.sha256(b"").digest()
    if len(d) == 1:
        return hashlib.sha256(b"\0" + d[0]).digest()
    k = split_at(len(d))
    return hashlib.sha256(b"\1" + mth(d[:k]) + mth(d[k:])).digest()


def path(m: int, d: Sequence[bytes]) -> list[bytes]:
    if len(d) == 1:
        return []
    k = split_at(len(d))
    return [*path(m, d[:k]), mth(d[k:])] if m < k else [*path(m - k, d[k:]), mth(d[:k])]


def proof(m: int, d: Sequence[bytes]) -> list[bytes]:
    return subproof(m, d, complete=True) if 0 < m < len(d) else []


def subproof(m: int, d: Sequence[bytes], *, complete: bool) -> list[bytes]:
    if m == len(d):
        return [] if complete else [mth(d)]
    k = split_at(len(d))
    if m <= k:
        return [*subproof(m, d[:k], complete=complete), mth(d[k:])]
    return [*subproof(m - k, d[k:], complete=False), mth(d[:k])]


def test_the_log_is_the_tree_of_rfc_6962(connection: Connection) -> None:
    d = [raw for _, raw in LOG.entries(connection)]
    heads = [SIGNER.verifier.open(note) for note in LOG.checkpoints(connection)]
    assert len(heads) > 20
    for head in heads:
        assert head.root == mth(d[: head.size])
        assert LOG.consistency(connection, head.size, len(d)) == proof(head.size, d)
    for m in range(0, len(d), 5):
        receipt = Receipt.parse(LOG.receipt(connection, m))
        assert (list(receipt.path), receipt.entry) == (path(m, d), d[m])


# The sums, by the database itself, from the postings.


def rows(connection: Connection, query: str, **parameters: object) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(sa.text(query), parameters)]


def test_balances_are_what_the_database_sums_the_postings_to(connection: Connection) -> None:
    summed = "SELECT account, CAST(SUM(amount_nano) AS BIGINT) FROM posting GROUP BY account"
    assert dict(balances(connection)) == dict(rows(connection, summed))
    assert sum(dict(balances(connection)).values()) == 0
    pending = """
        SELECT account, CAST(SUM(maximum_nano) AS BIGINT) FROM intent WHERE ended_index IS NULL GROUP BY account
    """
    held = "SELECT account, pending_nano FROM account WHERE pending_nano <> 0"
    assert dict(rows(connection, held)) == dict(rows(connection, pending))


def test_sums_by_period_are_what_the_database_sums_the_postings_to(connection: Connection) -> None:
    summed = """
        SELECT account, period,
            CAST(SUM(CASE WHEN role IN ('correction', 'payout') THEN 0 ELSE amount_nano END) AS BIGINT),
            CAST(SUM(CASE WHEN role = 'correction' THEN amount_nano ELSE 0 END) AS BIGINT),
            CAST(SUM(CASE WHEN role = 'payout' THEN amount_nano ELSE 0 END) AS BIGINT),
            COUNT(*)
        FROM posting WHERE account LIKE 'contributor:%' GROUP BY account, period ORDER BY account, period
    """
    held = "SELECT account, period, earned_nano, corrected_nano, paid_nano, lines FROM account_period ORDER BY 1, 2"
    assert rows(connection, held) == rows(connection, summed) != []


def nonzero(sums: Mapping[Any, int]) -> dict[Any, int]:
    return {key: nano for key, nano in sums.items() if nano}


GROUPED = {
    "day": "SUBSTR(time, 1, 10)",
    "model": "served_model",
    "document": "CASE WHEN kind = 'document' THEN item END",
    "adapter": "CASE WHEN kind = 'adapter' THEN item END",
}


def test_earnings_are_what_the_database_groups_the_postings_into(connection: Connection) -> None:
    for grouping, contributor in product(get_args(Grouping), CONTRIBUTORS):
        query = f"""
            SELECT {GROUPED[grouping]}, CAST(SUM(amount_nano) AS BIGINT) FROM posting
            WHERE account = :account AND role <> 'payout' GROUP BY 1
        """  # noqa: S608 - of our own words
        said = earnings(connection, contributor, group_by=grouping)
        summed = dict(rows(connection, query, account=CONTRIBUTOR + contributor))
        assert nonzero(said.groups) == nonzero(summed)
        assert said.total_nano == sum(summed.values()) != 0


# The same from the entries' bytes alone.


def month_after(month: str) -> str:
    year, number = map(int, month.split("-"))
    return f"{year + number // 12}-{number % 12 + 1:02}"


def test_statements_and_pages_are_what_follows_from_the_entries(connection: Connection) -> None:
    lines: defaultdict[str, list[tuple[int, int, str, str]]] = defaultdict(list)  # log index, nano-USD, period, column
    closed = ""
    for log_index, raw in LOG.entries(connection):
        entry = json.loads(raw)
        month = entry["time"][:7]
        period = month if month > closed else month_after(closed)
        for posting in entry["data"].get("postings", ()):
            column = COLUMNS.get(entry["type"], "earned_nano")
            lines[posting["account"]].append((log_index, int(posting["amount_nano"]), period, column))
        if entry["type"] == "period.closed":
            closed = entry["data"]["period"]
    assert closed
    for contributor in CONTRIBUTORS:
        own = lines[CONTRIBUTOR + contributor]
        opening = 0
        for period in sorted({period for *_, period, _ in own}):
            said = statement(connection, contributor, period)
            due = [(log_index, nano) for log_index, nano, of, _ in own if of == period]
            assert [(line.log_index, line.amount_nano) for line in said.lines] == due
            sums = Counter(dict.fromkeys(("earned_nano", "corrected_nano", "paid_nano"), 0))
            for _, nano, of, column in own:
                sums[column] += nano if of == period else 0
            assert {name: getattr(said.summary, name) for name in sums} == sums
            assert (said.summary.opening_nano, said.summary.lines) == (opening, len(due))
            opening += sum(nano for _, nano in due)
            assert said.summary.closing_nano == opening
        listed, after = [], None
        while True:
            page = entries(connection, contributor, after, limit=7)
            listed += [(line.log_index, line.amount_nano) for line in page.lines]
            if (after := page.next_after) is None:
                break
        assert listed == [(log_index, nano) for log_index, nano, *_ in own]
