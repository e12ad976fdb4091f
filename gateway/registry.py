"""Who and what is known here: contributors, adapters, documents.

Each is a claim dated by an entry of the log. The claims about one subject form a chain, numbered from zero; a claim
equal to the newest one is not made again, so registering twice is harmless and a change is a new entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway import tables
from gateway.engines import resident_name
from gateway.identifiers import now
from ledger_client import Entry, Log, entry_id
from metering import AdapterTerms, SplitPolicy, Transaction

SOURCE = "registry"
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class RegistryError(ValueError):
    """The registration is refused; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Contributor:
    """A party that is credited."""

    id: str
    name: str
    log_index: int
    created_at: str


@dataclass(frozen=True, kw_only=True)
class AdapterClaim:
    """A LoRA as the log dates it. datasets: (contributor id, weight), weights relative to one another."""

    name: str
    digest: str
    base_model: str
    developer: str
    datasets: tuple[tuple[str, int], ...]
    log_index: int

    @property
    def resident_name(self) -> str:
        """The content-addressed name under which an engine holds it."""
        return resident_name(self.digest)

    @property
    def terms(self) -> AdapterTerms:
        """How its part of a split is divided."""
        return AdapterTerms(developer=self.developer, datasets=self.datasets)


@dataclass(frozen=True, kw_only=True)
class Adapter(AdapterClaim):
    """An adapter on offer. path: the folder of its files."""

    path: Path
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

    def add_contributor(self, transaction: Transaction, contributor: str, name: str) -> Contributor:
        """Register a contributor; the id is theirs for ever."""
        if not SLUG.fullmatch(contributor):
            raise RegistryError(
                f"contributor id {contributor!r} may hold lower-case letters, digits and hyphens, at most 63"
            )
        if not 0 < len(name) <= 200:
            raise RegistryError("a contributor's name has 1 to 200 characters")
        known = _one(transaction.connection, tables.contributor, tables.contributor.c.id == contributor)
        if known is not None and known.name != name:
            raise RegistryError(f"contributor {contributor!r} is registered already, as {known.name!r}")
        if known is not None:
            return Contributor(**known._mapping)
        index = _claim(
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
        row = None
        if SLUG.fullmatch(contributor):  # a database may refuse what an address can hold, as PostgreSQL does a NUL
            row = _one(connection, tables.contributor, tables.contributor.c.id == contributor)
        if row is None:
            raise RegistryError(f"there is no contributor {contributor!r}; `tributary contributor add` registers one")
        return Contributor(**row._mapping)

    def add_adapter(
        self,
        transaction: Transaction,
        *,
        name: str,
        digest: str,
        path: Path,
        base_model: str,
        base_digest: str,
        developer: str,
        datasets: Sequence[tuple[str, int]],
    ) -> Adapter:
        """Register a verified adapter; its developer and dataset contributors must be registered."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
            raise RegistryError(
                f"adapter name {name!r} may hold lower-case letters, digits, dots, '_' and '-', at most 63"
            )
        AdapterTerms(developer=developer, datasets=tuple(datasets))  # what a split would refuse is refused here
        for contributor in (developer, *(contributor for contributor, _ in datasets)):
            self.contributor(transaction.connection, contributor)
        data = {
            "adapter": name,
            "digest": digest,
            "base_model": base_model,
            "base_digest": base_digest,
            "developer": developer,
            "datasets": [{"contributor": contributor, "weight": weight} for contributor, weight in datasets],
        }
        index = _claim(transaction, f"adapter:{name}", "adapter.registered", data)
        transaction.connection.execute(sa.delete(tables.adapter).where(tables.adapter.c.name == name))
        adapter = Adapter(
            name=name,
            digest=digest,
            path=path,
            base_model=base_model,
            developer=developer,
            datasets=tuple(datasets),
            log_index=index,
            created_at=now(),
        )
        transaction.connection.execute(
            sa.insert(tables.adapter).values(**vars(adapter) | {"path": str(path), "datasets": list(datasets)})
        )
        return adapter

    def adapters(self, connection: sa.Connection) -> list[Adapter]:
        """Every adapter that was not removed, by name."""
        present = tables.adapter.c.removed_at.is_(None)
        rows = connection.execute(sa.select(tables.adapter).where(present).order_by(tables.adapter.c.name))
        return [_adapter(row) for row in rows]

    def adapter(self, connection: sa.Connection, name: str) -> Adapter:
        """One adapter; raises RegistryError when there is none."""
        present = sa.and_(tables.adapter.c.name == name, tables.adapter.c.removed_at.is_(None))
        row = _one(connection, tables.adapter, present)
        if row is None:
            raise RegistryError(f"there is no adapter {name!r}; `tributary adapter add` registers one")
        return _adapter(row)

    def remove_adapter(self, connection: sa.Connection, name: str) -> Adapter:
        """Stop offering an adapter; what it earned stays."""
        adapter = self.adapter(connection, name)
        connection.execute(sa.update(tables.adapter).where(tables.adapter.c.name == name).values(removed_at=now()))
        return adapter

    def register_document(
        self, transaction: Transaction, *, document: str, corpus: str, owner: str, licence: str, digest: str
    ) -> int:
        """Date the claim that a document with this digest is its owner's; returns the log index."""
        data = {"document": document, "corpus": corpus, "owner": owner, "licence": licence, "digest": digest}
        return _claim(transaction, f"document:{document}", "document.registered", data)

    def withdraw_document(self, transaction: Transaction, document: str) -> int:
        """Date a document's withdrawal; returns the log index."""
        return _claim(transaction, f"document:{document}", "document.withdrawn", {"document": document})

    def document_index(self, connection: sa.Connection, document: str, digest: str, owner: str) -> int:
        """The log index of the newest registration of a document with this digest by this owner."""
        find, read = partial(self._log.find, connection), partial(self._log.entry, connection)
        for index, entry in reversed(list(_chain(find, read, f"document:{document}"))):
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
        adapter = None
        if adapter_index is not None:
            registered = self._entry(connection, adapter_index)
            adapter = AdapterClaim(
                name=registered["adapter"],
                digest=registered["digest"],
                base_model=registered["base_model"],
                developer=registered["developer"],
                datasets=tuple((dataset["contributor"], dataset["weight"]) for dataset in registered["datasets"]),
                log_index=adapter_index,
            )
        return Terms(policy=policy, policy_index=policy_index, adapter=adapter)

    def _entry(self, connection: sa.Connection, log_index: int) -> Mapping[str, Any]:
        return Entry.decode(self._log.entry(connection, log_index)).data


def _claim(transaction: Transaction, subject: str, kind: str, data: Mapping[str, Any]) -> int:
    """Append a claim unless the newest one about the subject says the same."""
    log = transaction.log
    chain = list(_chain(log.find, log.entry, subject))
    if chain and chain[-1][1].type == kind and chain[-1][1].data == data:
        return chain[-1][0]
    entry = Entry(
        id=entry_id(SOURCE, subject, len(chain)),
        source=SOURCE,
        type=kind,
        time=now(),
        subject=subject,
        data=dict(data),
    )
    return log.append(entry).log_index


def _chain(
    find: Callable[[str], int | None], read: Callable[[int], bytes], subject: str
) -> Iterator[tuple[int, Entry]]:
    """Yield the claims about a subject with their log indexes, oldest first."""
    attempt = 0
    while (index := find(entry_id(SOURCE, subject, attempt))) is not None:
        yield index, Entry.decode(read(index))
        attempt += 1


def _one(connection: sa.Connection, table: sa.Table, condition: sa.ColumnElement[bool]) -> sa.Row[Any] | None:
    return connection.execute(sa.select(table).where(condition)).one_or_none()


def _adapter(row: sa.Row[Any]) -> Adapter:
    fields = dict(row._mapping)
    del fields["removed_at"]
    datasets = tuple((contributor, weight) for contributor, weight in fields["datasets"])
    return Adapter(**fields | {"path": Path(fields["path"]), "datasets": datasets})
