"""What every registration is: a claim about a subject, dated by an entry of the log.

The claims about one subject form a chain, numbered from zero. Whoever makes them decides which are worth making.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from gateway import tables
from gateway.identifiers import now
from ledger_client import Entry, entry_id
from metering import Transaction

SOURCE = "registry"
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class RegistryError(ValueError):
    """The registration is refused; the message says what to change."""


def chain_of(
    find: Callable[[str], int | None], read: Callable[[int], bytes], subject: str
) -> Iterator[tuple[int, Entry]]:
    """Yield the claims about a subject with their log indexes, oldest first."""
    attempt = 0
    while (index := find(entry_id(SOURCE, subject, attempt))) is not None:
        yield index, Entry.decode(read(index))
        attempt += 1


def append(transaction: Transaction, subject: str, kind: str, data: Mapping[str, Any], *, number: int) -> int:
    """Log a claim as the one of that number in its subject's chain; returns its log index."""
    entry = Entry(
        id=entry_id(SOURCE, subject, number),
        source=SOURCE,
        type=kind,
        time=now(),
        subject=subject,
        data=dict(data),
    )
    return transaction.log.append(entry).log_index


def claim(transaction: Transaction, subject: str, kind: str, data: Mapping[str, Any]) -> int:
    """Log a claim unless the newest one about the subject says the same; returns its log index."""
    chain = list(chain_of(transaction.log.find, transaction.log.entry, subject))
    if chain and chain[-1][1].type == kind and chain[-1][1].data == data:
        return chain[-1][0]
    return append(transaction, subject, kind, data, number=len(chain))


def contributor_row(connection: sa.Connection, contributor: str) -> sa.Row[Any]:
    """The row of a registered contributor; raises RegistryError when there is none."""
    row = None
    if SLUG.fullmatch(contributor):  # a database may refuse what an address can hold, as PostgreSQL does a NUL
        query = sa.select(tables.contributor).where(tables.contributor.c.id == contributor)
        row = connection.execute(query).one_or_none()
    if row is None:
        raise RegistryError(f"there is no contributor {contributor!r}; `tributary contributor add` registers one")
    return row
