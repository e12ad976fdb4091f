"""Adapters by name and version: who made them, of what, and out of which others.

A version is a claim in the log and never changes: other files, terms or parents under a name are its next version. A
parent must be registered before its child, and is named in the child's claim by the log index of its own. So lineage
has no cycles, and can be followed in the log alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from gateway.claims import RegistryError, append, chain_of, contributor_row
from gateway.engines import resident_name
from gateway.identifiers import ADAPTER_NAME, ADAPTER_VERSION, now
from gateway.tables import adapter_version
from ledger_client import Entry, Log
from metering import AdapterTerms, Transaction

MAX_PARENTS = 16
_REFERENCE = re.compile(f"(?P<name>{ADAPTER_NAME})(?:@(?P<version>{ADAPTER_VERSION}))?")


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A version that another was made from, as the child's claim names it."""

    adapter: str
    version: int
    digest: str
    log_index: int


@dataclass(frozen=True, kw_only=True)
class AdapterClaim:
    """A version of an adapter as the log dates it.

    digest: see AdapterFiles. base_digest: SHA-256 hex of the weights that it was tried on, None where no engine was at
    hand. datasets: (contributor id, weight), weights relative to one another.
    """

    name: str
    version: int
    digest: str
    base_model: str
    base_digest: str | None
    developer: str
    datasets: tuple[tuple[str, int], ...]
    parents: tuple[Parent, ...]
    log_index: int

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, version: int, log_index: int) -> AdapterClaim:
        """Read an entry's data. version: of an entry that does not say it; the first did not, and had no parents."""
        return cls(
            name=data["adapter"],
            version=data.get("version", version),
            digest=data["digest"],
            base_model=data["base_model"],
            base_digest=data["base_digest"],
            developer=data["developer"],
            datasets=tuple((dataset["contributor"], dataset["weight"]) for dataset in data["datasets"]),
            parents=tuple(Parent(**parent) for parent in data.get("parents", ())),
            log_index=log_index,
        )

    def data(self) -> dict[str, Any]:
        """What the entry says."""
        return {
            "adapter": self.name,
            "version": self.version,
            "digest": self.digest,
            "base_model": self.base_model,
            "base_digest": self.base_digest,
            "developer": self.developer,
            "datasets": [{"contributor": contributor, "weight": weight} for contributor, weight in self.datasets],
            "parents": [asdict(parent) for parent in self.parents],
        }

    @property
    def reference(self) -> str:
        """The name that means this version for ever."""
        return f"{self.name}@{self.version}"

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
    """A version with what the log need not know of it.

    source: where its files can be pulled from again; empty where nobody knows. proven_at: when an engine saw it change
    what its base says; None leaves that to the engine that first loads it. removed_at: None while it is on offer.
    """

    source: str
    created_at: str
    proven_at: str | None
    removed_at: str | None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """An adapter to register. parents: as people name them; the other fields are as in Adapter."""

    name: str
    digest: str
    source: str
    base_model: str
    base_digest: str | None
    developer: str
    datasets: tuple[tuple[str, int], ...] = ()
    parents: tuple[str, ...] = ()


class Adapters:
    """The registered adapters over one log."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def add(self, transaction: Transaction, proposal: Proposal) -> Adapter:
        """Register a verified adapter as the next version of its name; the newest one, said again, stays what it is.

        Its developer, dataset contributors and parents must be registered. Raises RegistryError, MeteringError.
        """
        connection = transaction.connection
        parents = self.check(connection, proposal)
        chain = list(chain_of(transaction.log.find, transaction.log.entry, f"adapter:{proposal.name}"))
        proposed = AdapterClaim(
            name=proposal.name,
            version=len(chain) + 1,
            digest=proposal.digest,
            base_model=proposal.base_model,
            base_digest=proposal.base_digest,
            developer=proposal.developer,
            datasets=proposal.datasets,
            parents=parents,
            log_index=-1,
        )
        at = now()
        proven_at = at if proposal.base_digest else None
        if chain:
            index, entry = chain[-1]
            newest = AdapterClaim.parse(entry.data, version=len(chain), log_index=index)
            if newest.data() | {"version": proposed.version} == proposed.data():
                return self._again(connection, newest, proposal.source, proven_at)
        index = append(
            transaction, f"adapter:{proposal.name}", "adapter.registered", proposed.data(), number=len(chain)
        )
        row = proposed.data() | {"log_index": index, "source": proposal.source}
        row |= {"name": row.pop("adapter"), "created_at": at, "proven_at": proven_at, "removed_at": None}
        row["datasets"] = list(proposal.datasets)
        connection.execute(sa.insert(adapter_version).values(row))
        return self.find(connection, proposed.reference)

    def check(self, connection: sa.Connection, proposal: Proposal) -> tuple[Parent, ...]:
        """Raise what `add` would, but for what only files and engines can tell; returns the parents."""
        if not re.fullmatch(ADAPTER_NAME, proposal.name):
            raise RegistryError(
                f"adapter name {proposal.name!r} may hold lower-case letters, digits, dots, '_' and '-', at most 63"
            )
        # What a split would refuse is refused here.
        AdapterTerms(developer=proposal.developer, datasets=proposal.datasets)
        for contributor in (proposal.developer, *(contributor for contributor, _ in proposal.datasets)):
            contributor_row(connection, contributor)
        if len(proposal.parents) > MAX_PARENTS:
            raise RegistryError(f"an adapter may name {MAX_PARENTS} parents, not {len(proposal.parents)}")
        parents = [self._parent(connection, reference) for reference in proposal.parents]
        if len(set(parents)) != len(parents):
            raise RegistryError("an adapter names each parent once")
        return tuple(parents)

    def all(self, connection: sa.Connection, name: str | None = None) -> list[Adapter]:
        """Every version of every adapter or of one, removed ones too, by name and version."""
        query = sa.select(adapter_version).order_by(adapter_version.c.name, adapter_version.c.version)
        if name is not None:
            query = query.where(adapter_version.c.name == name)
        return [_adapter(row) for row in connection.execute(query)]

    def offered(self, connection: sa.Connection) -> list[Adapter]:
        """The newest version on offer of each adapter, by name."""
        present = {each.name: each for each in self.all(connection) if each.removed_at is None}
        return list(present.values())

    def find(self, connection: sa.Connection, reference: str, *, removed: bool = False) -> Adapter:
        """The version that `name@version` means, or the newest of `name`; raises RegistryError when there is none.

        removed: whether `name@version` may have been removed.
        """
        match = _REFERENCE.fullmatch(reference)
        versions = self.all(connection, match["name"]) if match else []
        if match and match["version"]:
            versions = [each for each in versions if each.version == int(match["version"])]
        gone = bool(versions)
        if not (removed and match and match["version"]):
            versions = [each for each in versions if each.removed_at is None]
        if not versions:
            told = "was removed; register it again with" if gone else "is not registered; register it with"
            raise RegistryError(f"adapter {reference!r} {told} `tributary adapter add`")
        return versions[-1]

    def remove(self, connection: sa.Connection, reference: str) -> list[Adapter]:
        """Offer a version no more, or all of a name's; returns them. What they earned and were made into stays."""
        newest = self.find(connection, reference)
        table = adapter_version.c
        condition = sa.and_(table.name == newest.name, table.removed_at.is_(None))
        if "@" in reference:
            condition = sa.and_(condition, table.version == newest.version)
        gone = [_adapter(row) for row in connection.execute(sa.select(adapter_version).where(condition))]
        connection.execute(sa.update(adapter_version).where(condition).values(removed_at=now()))
        return gone

    def claim_at(self, connection: sa.Connection, log_index: int) -> AdapterClaim:
        """The version that an entry of the log registered."""
        entry = Entry.decode(self._log.entry(connection, log_index))
        place = 1 if "version" in entry.data else self._place(connection, entry.subject, log_index)
        return AdapterClaim.parse(entry.data, version=place, log_index=log_index)

    def lineage(self, connection: sa.Connection, adapter: AdapterClaim) -> Iterator[AdapterClaim]:
        """Yield a version and all that it descends from, each once and before its parents, newest first."""
        waiting = {adapter.log_index}
        while waiting:
            claim = self.claim_at(connection, max(waiting))  # parents have lower indexes than their children
            waiting.remove(claim.log_index)
            waiting |= {parent.log_index for parent in claim.parents}
            yield claim

    def _place(self, connection: sa.Connection, subject: str, log_index: int) -> int:
        """The version of a claim that was made before claims said it: its place among those about the subject."""
        chain = chain_of(partial(self._log.find, connection), partial(self._log.entry, connection), subject)
        return next(number for number, (index, _) in enumerate(chain, start=1) if index == log_index)

    def _parent(self, connection: sa.Connection, reference: str) -> Parent:
        found = self.find(connection, reference, removed=True)
        return Parent(adapter=found.name, version=found.version, digest=found.digest, log_index=found.log_index)

    def _again(self, connection: sa.Connection, newest: AdapterClaim, source: str, proven_at: str | None) -> Adapter:
        """Offer the newest version once more, if it was removed, and keep where it came from last."""
        table = adapter_version.c
        changes: dict[str, Any] = {"removed_at": None, "source": source}
        if proven_at is not None:
            changes["proven_at"] = sa.func.coalesce(table.proven_at, proven_at)
        same = sa.and_(table.name == newest.name, table.version == newest.version)
        connection.execute(sa.update(adapter_version).where(same).values(changes))
        return self.find(connection, newest.reference)


def _adapter(row: sa.Row[Any]) -> Adapter:
    fields = dict(row._mapping)
    datasets = tuple((contributor, weight) for contributor, weight in fields["datasets"])
    parents = tuple(Parent(**parent) for parent in fields["parents"])
    return Adapter(**fields | {"datasets": datasets, "parents": parents})
