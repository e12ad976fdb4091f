"""Adapters by version: nothing registered is lost or changed, and nothing descends from itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

import metering
from gateway.adapters import MAX_PARENTS, Adapter, Parent, Proposal
from gateway.claims import append
from gateway.database import Database
from gateway.registry import Registry, RegistryError
from gateway.transactions import ledger_write
from ledger_client import Entry, Log, Signer, fsck
from metering import AdapterTerms, MeteringError, SplitPolicy, Transaction

from ..databases import opened, sqlite_file  # noqa: TID252  the tests are no package of their own

LEGACY = {
    "base_model": "base",
    "base_digest": "b" * 64,
    "developer": "lab",
    "datasets": [{"contributor": "ada", "weight": 3}],
}


class Books:
    """A log with two contributors, and commands that run in a transaction each."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.migrate()
        self.signer = Signer.generate("example.com/log")
        self.log = Log(self.signer)
        self.registry = Registry(self.log)
        self.adapters = self.registry.adapters
        for who in ("lab", "ada"):
            self.write(lambda t, who=who: self.registry.add_contributor(t, who, who))

    def write(self, do: Callable[[Transaction], Any]) -> Any:
        with ledger_write(self.database, self.log) as transaction:
            return do(transaction)

    def read(self, query: Callable[[sa.Connection], Any]) -> Any:
        with self.database.read() as connection:
            return query(connection)

    def add(self, name: str, digest: str = "d1", **changes: Any) -> Adapter:
        proposal = Proposal(
            name=name, digest=digest, source="/somewhere", base_model="base", base_digest="b" * 64, developer="lab"
        )
        added: Adapter = self.write(lambda t: self.adapters.add(t, replace(proposal, **changes)))
        return added

    def add_as_before(self, name: str, digest: str, number: int) -> int:
        """Claim an adapter as it was claimed when claims said neither versions nor parents."""
        data = LEGACY | {"adapter": name, "digest": digest}
        index: int = self.write(lambda t: append(t, f"adapter:{name}", "adapter.registered", data, number=number))
        return index

    def find(self, reference: str, **options: bool) -> Adapter:
        found: Adapter = self.read(lambda c: self.adapters.find(c, reference, **options))
        return found

    def entries(self) -> int:
        size: int = self.read(self.log.size)
        return size

    def findings(self) -> list[str]:
        with self.database.read() as connection:
            notes, read = self.log.checkpoints(connection), partial(self.log.entry, connection)
            found = fsck(self.log.entries(connection), notes, {}, self.signer.verifier, read=read)
        return [str(finding) for finding in found]


@pytest.fixture
def books(database: Database) -> Books:
    return Books(database)


def test_other_files_or_terms_under_a_name_are_its_next_version(books: Books) -> None:
    first = books.add("qa", datasets=(("ada", 2),))
    assert books.add("qa", datasets=(("ada", 2),), source="/elsewhere") == replace(first, source="/elsewhere")
    second = books.add("qa", "d2", datasets=(("ada", 2),))
    third = books.add("qa", "d2", datasets=(("ada", 3),))
    assert [each.version for each in (first, second, third)] == [1, 2, 3]
    back = books.add("qa", datasets=(("ada", 2),))  # back to what the first was, which is news
    assert back.version == 4
    assert (books.find("qa"), books.find("qa@1")) == (back, replace(first, source="/elsewhere"))
    assert books.read(lambda c: books.adapters.all(c, "qa"))[1:] == [second, third, back]
    assert books.read(books.adapters.offered) == [back]
    assert books.findings() == []


def test_a_claim_says_all_that_money_may_follow(books: Books) -> None:
    base = books.add("base-qa", "d0")
    child = books.add("qa", "d1", datasets=(("ada", 2), ("lab", 1)), parents=("base-qa",))
    assert child.parents == (Parent(adapter="base-qa", version=1, digest="d0", log_index=base.log_index),)
    entry = Entry.decode(books.read(lambda c: books.log.entry(c, child.log_index)))
    assert (entry.type, entry.subject) == ("adapter.registered", "adapter:qa")
    assert entry.data == {
        "adapter": "qa",
        "version": 1,
        "digest": "d1",
        "base_model": "base",
        "base_digest": "b" * 64,
        "developer": "lab",
        "datasets": [{"contributor": "ada", "weight": 2}, {"contributor": "lab", "weight": 1}],
        "parents": [{"adapter": "base-qa", "version": 1, "digest": "d0", "log_index": base.log_index}],
    }


def test_an_adapter_that_no_engine_tried_says_so(books: Books) -> None:
    untried = books.add("qa", base_digest=None)
    assert (untried.proven_at, untried.base_digest) == (None, None)
    tried = books.add("qa")
    assert (tried.version, tried.proven_at) == (2, tried.created_at)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parents": ("other",)}, "adapter 'other' is not registered"),
        ({"parents": ("qa@2",)}, "adapter 'qa@2' is not registered"),
        ({"parents": ("qa@0",)}, "adapter 'qa@0' is not registered"),
        ({"parents": ("qa@1\n",)}, "is not registered"),
        ({"parents": ("qa", "qa@1")}, "each parent once"),
        ({"parents": ("qa",) * (MAX_PARENTS + 1)}, "may name 16 parents, not 17"),
        ({"developer": "nobody"}, "no contributor 'nobody'"),
        ({"datasets": (("nobody", 1),)}, "no contributor 'nobody'"),
        ({"datasets": (("ada", 1), ("ada", 1))}, "each dataset contributor once"),
        ({"datasets": (("ada", 0),)}, "weight of ada"),
        ({"name": "qa@1"}, "adapter name 'qa@1' may hold"),
        ({"name": "QA"}, "adapter name 'QA' may hold"),
    ],
)
def test_what_cannot_be_followed_is_not_registered(books: Books, changes: dict[str, Any], reason: str) -> None:
    books.add("qa")
    before = books.entries()
    with pytest.raises((RegistryError, MeteringError), match=reason):
        books.add(**{"name": "next", "digest": "d9"} | changes)
    assert books.entries() == before


def test_a_removed_version_is_offered_no_more_but_stays(books: Books) -> None:
    for digest in ("d1", "d2", "d3"):
        books.add("qa", digest)
    assert [each.version for each in books.write(lambda t: books.adapters.remove(t.connection, "qa@3"))] == [3]
    assert books.find("qa").version == 2
    with pytest.raises(RegistryError, match="'qa@3' was removed"):
        books.find("qa@3")
    assert books.find("qa@3", removed=True).removed_at
    assert books.add("child", "d9", parents=("qa@3",)).parents[0].version == 3  # it was made from that, all the same
    assert [each.version for each in books.write(lambda t: books.adapters.remove(t.connection, "qa"))] == [1, 2]
    with pytest.raises(RegistryError, match="'qa' was removed"):
        books.find("qa", removed=True)
    assert books.read(books.adapters.offered) == [books.find("child")]
    assert len(books.read(lambda c: books.adapters.all(c, "qa"))) == 3
    again = books.add("qa", "d3")
    assert (again.version, again.removed_at) == (3, None)
    assert books.findings() == []


def test_claims_of_before_there_were_versions_are_read_and_gone_on_from(books: Books) -> None:
    indexes = [books.add_as_before("qa", digest, number) for number, digest in enumerate(("d1", "d2"))]
    claims = [books.read(lambda c, index=index: books.adapters.claim_at(c, index)) for index in indexes]
    assert [(claim.version, claim.digest, claim.parents) for claim in claims] == [(1, "d1", ()), (2, "d2", ())]
    assert claims[1].terms == AdapterTerms(developer="lab", datasets=(("ada", 3),))
    assert books.add("qa", "d3").version == 3
    policy = SplitPolicy(name="p", version=1, fixed_ppm={}, residual="residual", developer_ppm=1)
    ruled = books.write(lambda t: metering.Books("g1", lambda: datetime.now(UTC)).publish_policy(t, policy))
    terms = books.read(lambda c: books.registry.terms(c, ruled, indexes[0]))
    assert (terms.policy, terms.adapter) == (policy, claims[0])
    assert books.findings() == []


_FAMILY = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=3)),
    max_size=12,
)


@settings(max_examples=40)
@given(family=_FAMILY)
def test_no_version_descends_from_itself_whatever_is_registered(
    family: list[tuple[str, list[tuple[str, int]]]],
) -> None:
    """Parents that are named at random, whether they exist by then or not; version 0 stands for none, the newest."""
    with opened(sqlite_file) as database:
        books = Books(database)
        digests = count()
        registered: dict[str, Adapter] = {}
        for name, parents in family:
            wanted = tuple(dict.fromkeys(f"{parent}@{version}" if version else parent for parent, version in parents))
            newest = {each.name: each.reference for each in registered.values()}
            meant = [newest.get(each, each) for each in wanted]
            possible = set(meant) <= registered.keys() and len(set(meant)) == len(meant)
            try:
                added = books.add(name, f"d{next(digests)}", parents=wanted)
            except RegistryError:
                assert not possible
                continue
            assert possible
            registered[added.reference] = added
        for adapter in registered.values():
            ancestors = list(books.read(lambda c, adapter=adapter: list(books.adapters.lineage(c, adapter))))
            indexes = [claim.log_index for claim in ancestors]
            assert indexes == sorted(set(indexes), reverse=True)
            assert indexes[0] == adapter.log_index
            assert set(indexes) == {parent.log_index for claim in ancestors for parent in claim.parents} | {indexes[0]}
        assert books.findings() == []
