"""How long the earnings query takes, and whether it grows with the postings that it sums up.

The postings are made by the database, oldest first, and what `metering` keeps of them is summed up from them: every
contributor earns every day of two years through twenty documents and two adapters, on four models, so that the answers
are as large with ten thousand postings as with ten million. A tenth of all postings is on one busy account.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import get_args

import sqlalchemy as sa

from benchmarks.ledger.commits import NewDatabase, settled
from gateway.database import Database
from metering import Grouping, earnings, statement
from metering.tables import posting_table

BYTES_A_POSTING = 800  # of disk, with indexes, sums and PostgreSQL's log of writes
BUSY = "owner-0"

_POSTINGS_A_CONTRIBUTOR = 3_000
_MONTHS, _DAYS_A_MONTH = 24, 28
_WARM_UP = 300  # queries of each kind that are not counted, of a server that has run for a while

# One month of postings: those numbered from :first up to :last. `own` numbers those of one contributor.
_POSTINGS = """
    INSERT INTO posting (
        log_index, position, time, period, account, amount_nano, role, kind, item, served_model, request_id
    )
    WITH RECURSIVE numbered (n) AS (
        SELECT CAST(:first AS BIGINT) UNION ALL SELECT n + 1 FROM numbered WHERE n + 1 < :last
    ), owned AS (
        SELECT
            n,
            CASE WHEN n % 10 = 0 THEN 0 ELSE 1 + (n - n / 10 - 1) % :ordinary END AS contributor,
            CASE WHEN n % 10 = 0 THEN n / 10 ELSE (n - n / 10 - 1) / :ordinary END AS own,
            substr(CAST(100 + 1 + (n - :first) * :days / (:last - :first) AS VARCHAR(3)), 2, 2) AS day
        FROM numbered
    )
    SELECT
        n,
        1,
        :period || '-' || day || 'T12:00:00.000000Z',
        :period,
        'contributor:owner-' || contributor,
        1000 + n % 9973,
        CASE WHEN own % 5 = 4 THEN 'developer' ELSE 'owner' END,
        CASE WHEN own % 5 = 4 THEN 'adapter' ELSE 'document' END,
        CASE WHEN own % 5 = 4 THEN 'adapter-' || contributor || '-' || own / 5 % 2
             ELSE 'doc-' || contributor || '-' || (own / 5 * 4 + own % 5) % 20 END,
        'model-' || own % 4,
        'req_' || substr('aaaaaaaaaaaaaaaaaaaaaaaaaa', 1, 26 - length(CAST(n AS VARCHAR(20)))) || n
    FROM owned
"""
_PERIODS = """
    INSERT INTO account_period (account, period, earned_nano, corrected_nano, paid_nano, lines)
    SELECT account, period, sum(amount_nano), 0, 0, count(*) FROM posting
    WHERE log_index >= :first AND log_index < :last GROUP BY account, period ORDER BY min(log_index)
"""
_EARNINGS = """
    INSERT INTO earning (account, dimension, period, key, amount_nano)
    SELECT account, {dimension} AS dimension, period, {key} AS key, sum(amount_nano) FROM posting
    WHERE log_index >= :first AND log_index < :last
    GROUP BY {groups} ORDER BY min(log_index)
"""
_SUMS = (
    _PERIODS,
    _EARNINGS.format(dimension="'day'", key="substr(time, 1, 10)", groups="1, 3, 4"),
    _EARNINGS.format(dimension="'model'", key="served_model", groups="1, 3, 4"),
    _EARNINGS.format(dimension="kind", key="item", groups="1, 2, 3, 4"),
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a load and its queries come to: times in milliseconds, the shortest first.

    earnings_ms: by grouping (None: the total alone), ever and of a month. statement_ms: a month's statement of an
    ordinary contributor with its lines. busy_ms: what the busy account earned ever; sum_ms: the same as a sum over its
    postings.
    """

    postings: int
    contributors: int
    load_s: float
    earnings_ms: dict[tuple[Grouping | None, str], list[float]]
    statement_ms: list[float]
    busy_ms: list[float]
    sum_ms: list[float]

    @property
    def p99_ms(self) -> float:
        """The p99 of the kind of earnings query that is slowest by it."""
        return max(part_ms(times_ms, 0.99) for times_ms in self.earnings_ms.values())

    def rows_ms(self) -> dict[str, tuple[float, float]]:
        """The p50 and p99 of every kind of query, for a table."""
        named = {
            f"earnings {when}" + (f" by {group_by}" if group_by else ""): times_ms
            for (group_by, when), times_ms in self.earnings_ms.items()
        }
        named |= {
            "statement of a month": self.statement_ms,
            "earnings ever, busy account": self.busy_ms,
            "its postings added up": self.sum_ms,
        }
        return {what: (part_ms(times_ms, 0.5), part_ms(times_ms, 0.99)) for what, times_ms in named.items()}


def part_ms(times_ms: Sequence[float], part: float) -> float:
    """The time that this part of the times, in order, does not pass."""
    return times_ms[min(int(part * len(times_ms)), len(times_ms) - 1)]


def room_for(postings: int) -> bool:
    """Whether the disk that databases are made on has room for them twice over."""
    return shutil.disk_usage(tempfile.gettempdir()).free > 2 * postings * BYTES_A_POSTING


def measure(new_database: NewDatabase, postings: int, queries: int) -> Figures:
    """Load an empty database and run this many queries of each kind, one after the other."""
    with new_database() as url, closing(Database(url)) as database:
        ordinary = max(postings // _POSTINGS_A_CONTRIBUTOR, 1)
        began_s = time.perf_counter()
        load(database, postings, ordinary)
        load_s = time.perf_counter() - began_s
        dice = random.Random(postings)  # noqa: S311 - a benchmark that is the same each time

        def contributor() -> str:
            return f"owner-{dice.randrange(1, ordinary + 1)}"

        def month() -> str:
            return _month(dice.randrange(_MONTHS))

        def timed(query: Callable[[sa.Connection], object], repeats: int = queries) -> list[float]:
            return sorted(_times_ms(database, query, repeats))

        earned: dict[tuple[Grouping | None, str], list[float]] = {}
        for group_by in (None, *get_args(Grouping)):
            earned[group_by, "ever"] = timed(lambda c: earnings(c, contributor(), None, group_by))  # noqa: B023
            earned[group_by, "of a month"] = timed(lambda c: earnings(c, contributor(), month(), group_by))  # noqa: B023
        of_busy = posting_table.c.account == f"contributor:{BUSY}"
        total = sa.select(sa.func.sum(posting_table.c.amount_nano)).where(of_busy)
        return Figures(
            postings=postings,
            contributors=ordinary + 1,
            load_s=load_s,
            earnings_ms=earned,
            statement_ms=timed(lambda c: statement(c, contributor(), month())),
            busy_ms=timed(lambda c: earnings(c, BUSY)),
            sum_ms=timed(lambda c: c.scalar(total), 3),
        )


def load(database: Database, postings: int, ordinary: int) -> None:
    """Make the postings month by month, and the sums that the books would have kept of them."""
    server = database.engine.dialect.name == "postgresql"
    database.migrate()
    with database.write() as connection:
        for index in posting_table.indexes:  # filling them afterwards takes half the time
            index.drop(connection)
    for number in range(_MONTHS):
        first, last = (postings * (number + step) // _MONTHS for step in (0, 1))
        parameters = {"first": first, "last": last, "ordinary": ordinary, "days": _DAYS_A_MONTH}
        with database.write() as connection:
            connection.execute(sa.text(_POSTINGS), parameters | {"period": _month(number)})
            if server:
                connection.execute(sa.text("ANALYZE posting"))
            for sums in _SUMS:
                connection.execute(sa.text(sums), {"first": first, "last": last})
        print(f"\r{last:,} of {postings:,} postings loaded", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    with database.write() as connection:
        for index in posting_table.indexes:
            index.create(connection)
    settled(database)


def _times_ms(database: Database, query: Callable[[sa.Connection], object], repeats: int) -> Iterator[float]:
    """Time a query in transactions of its own, as a gateway reads."""
    for number in range(-min(_WARM_UP, repeats), repeats):
        began_s = time.perf_counter()
        with database.read() as connection:
            query(connection)
        if number >= 0:
            yield (time.perf_counter() - began_s) * 1000


def _month(number: int) -> str:
    return f"{2024 + number // 12}-{number % 12 + 1:02}"
