"""Who and what is known here: contributors, adapters, documents.

Each is a claim dated by an entry of the log. The claims about one subject form a chain, numbered from zero; a claim
equal to the newest one is not made again, so registering twice is harmless and a change is a new entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from gateway import tables
from gateway.adapters import AdapterClaim, Adapters
from gateway.claims import SLUG, RegistryError, chain_of, claim, contributor_row
from gateway.identifiers import now
from ledger_client import Entry, Log
from metering import SplitPolicy, Transaction

__all__ = ["Contributor", "Registry", "RegistryError", "Terms"]


@dataclass(frozen=True, kw_only=True)
class Contributor:
    """A party that is credited."""

    id: str
    name: str
    log_index: int
    created_at: str


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the attribution of an answer rests on, each dated in the log: the split policy, and the adapter if any."""

    policy: SplitPolicy
    policy_index: int
    adapter: AdapterClaim | None

    @property
    def adapter_index(self) -> int | None:
        """The log index of the adapter's registration."""
        return self.adapter.log_index if self.adapter else None


class Registry:
    """Registrations over one log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.adapters = Adapters(log)

    def add_contributor(self, transaction: Transaction, contributor: str, name: str) -> Contributor:
        """Register a contributor; the id is theirs for ever."""
        if not SLUG.fullmatch(contributor):
            raise RegistryError(
                f"contributor id {contributor!r} may hold lower-case letters, digits and hyphens, at most 63"
            )
        if not 0 < len(name) <= 200:
            raise RegistryError("a contributor's name has 1 to 200 characters")
        query = sa.select(tables.contributor).where(tables.contributor.c.id == contributor)
        known = transaction.connection.execute(query).one_or_none()
        if known is not None and known.name != name:
            raise RegistryError(f"contributor {contributor!r} is registered already, as {known.name!r}")
        if known is not None:
            return Contributor(**known._mapping)
        index = claim(
            transaction,
            f"contributor:{contributor}",
            "contributor.registered",
            {"contributor": contributor, "name": name},
        )
        row = Contributor(id=contributor, name=name, log_index=index, created_at=now())
        transaction.connection.execute(sa.insert(tables.contributor).values(**vars(row)))
        return row

    def contributors(self, connection: sa.Connection) -> list[Contributor]:
        """Every contributor, by id."""
        rows = connection.execute(sa.select(tables.contributor).order_by(tables.contributor.c.id))
        return [Contributor(**row._mapping) for row in rows]

    def contributor(self, connection: sa.Connection, contributor: str) -> Contributor:
        """One contributor; raises RegistryError when there is none."""
        return Contributor(**contributor_row(connection, contributor)._mapping)

    def register_document(
        self, transaction: Transaction, *, document: str, corpus: str, owner: str, licence: str, digest: str
    ) -> int:
        """Date the claim that a document with this digest is its owner's; returns the log index."""
        data = {"document": document, "corpus": corpus, "owner": owner, "licence": licence, "digest": digest}
        return claim(transaction, f"document:{document}", "document.registered", data)

    def withdraw_document(self, transaction: Transaction, document: str) -> int:
        """Date a document's withdrawal; returns the log index."""
        return claim(transaction, f"document:{document}", "document.withdrawn", {"document": document})

    def document_index(self, connection: sa.Connection, document: str, digest: str, owner: str) -> int:
        """The log index of the newest registration of a document with this digest by this owner."""
        find, read = partial(self._log.find, connection), partial(self._log.entry, connection)
        for index, entry in reversed(list(chain_of(find, read, f"document:{document}"))):
            if (entry.data.get("digest"), entry.data.get("owner")) == (digest, owner):
                return index
        raise RegistryError(f"document {document} with digest {digest} was never registered by {owner}")

    def terms(self, connection: sa.Connection, policy_index: int, adapter_index: int | None) -> Terms:
        """The terms of an answer as they were when it was given, whatever is configured by now."""
        published = self._entry(connection, policy_index)
        policy = SplitPolicy(
            name=published["policy"],
            version=published["version"],
            fixed_ppm=published["fixed_ppm"],
            residual=published["residual"],
            developer_ppm=published["developer_ppm"],
        )
        adapter = None if adapter_index is None else self.adapters.claim_at(connection, adapter_index)
        return Terms(policy=policy, policy_index=policy_index, adapter=adapter)

    def _entry(self, connection: sa.Connection, log_index: int) -> Mapping[str, Any]:
        return Entry.decode(self._log.entry(connection, log_index)).data
