from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa

from gateway.auth import (
    KEPT_S,
    KeyRefusedError,
    KeyRing,
    RoleRefusedError,
    UnknownKeyError,
    authenticate,
    create_key,
    find_key,
    list_keys,
    revoke_key,
)
from gateway.database import Database
from gateway.tables import api_key

T = TypeVar("T")


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    database = Database(f"sqlite:///{tmp_path / 't.db'}")
    database.migrate()
    with database.write() as connection:
        yield connection
    database.close()


def test_a_key_authenticates_whom_it_was_made_for(connection: sa.Connection) -> None:
    made = create_key(connection, role="contributor", name="Orla's", contributor="orla")
    found = authenticate(connection, f"Bearer {made.secret}")
    assert (found.role, found.subject, found.name) == ("contributor", "orla", "Orla's")


def test_each_callers_key_has_an_opaque_account_of_its_own(connection: sa.Connection) -> None:
    one, two = (create_key(connection, role="caller", name="same name").principal for _ in range(2))
    assert one.subject.startswith("caller:acct_")
    assert one.subject != two.subject
    assert "same" not in one.subject


def test_the_secret_is_stored_nowhere(connection: sa.Connection) -> None:
    made = create_key(connection, role="operator", name="root")
    stored = " ".join(map(str, connection.execute(sa.select(api_key)).one()))
    assert made.secret not in stored
    assert made.secret.removeprefix("trib-operator-") not in stored


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer trib-caller-nobody"])
def test_no_key_or_an_unknown_one_is_refused(connection: sa.Connection, header: str | None) -> None:
    create_key(connection, role="caller", name="somebody")
    with pytest.raises(KeyRefusedError):
        authenticate(connection, header)


def test_a_revoked_key_says_since_when(connection: sa.Connection) -> None:
    made = create_key(connection, role="caller", name="old")
    assert revoke_key(connection, "old") == made.principal
    with pytest.raises(KeyRefusedError, match="was revoked on 20"):
        authenticate(connection, f"Bearer {made.secret}")


def test_a_name_finds_a_key_only_while_it_is_the_only_one(connection: sa.Connection) -> None:
    first = create_key(connection, role="caller", name="app").principal
    assert find_key(connection, "app") == find_key(connection, first.key_id) == first
    create_key(connection, role="caller", name="app")
    with pytest.raises(UnknownKeyError, match="use an id"):
        find_key(connection, "app")
    with pytest.raises(UnknownKeyError, match="tributary key list"):
        find_key(connection, "nobody")


def test_the_list_shows_no_digests(connection: sa.Connection) -> None:
    create_key(connection, role="caller", name="app")
    assert "digest" not in list_keys(connection)[0]._mapping


def test_a_role_that_is_not_enough_is_named(connection: sa.Connection) -> None:
    principal = create_key(connection, role="caller", name="app").principal
    principal.require("operator", "caller")
    with pytest.raises(RoleRefusedError, match="role contributor or operator; yours has role caller"):
        principal.require("contributor", "operator")


class _Counted:
    """Reads on one connection, counted, at a time that is set by hand."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.reads = 0
        self.now_s = 100.0

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        self.reads += 1
        return query(self.connection)

    def ring(self, kept: int = 8) -> KeyRing:
        return KeyRing(self, clock=lambda: self.now_s, kept=kept)


async def test_a_key_is_looked_up_once_a_second(connection: sa.Connection) -> None:
    made, reads = create_key(connection, role="caller", name="app"), _Counted(connection)
    ring = reads.ring()
    for _ in range(3):
        assert await ring.principal(f"Bearer {made.secret}") == made.principal
    assert reads.reads == 1
    reads.now_s += KEPT_S
    assert await ring.principal(f"bearer  {made.secret}") == made.principal
    assert reads.reads == 2


async def test_a_revoked_key_is_refused_within_a_second(connection: sa.Connection) -> None:
    made, reads = create_key(connection, role="caller", name="app"), _Counted(connection)
    ring = reads.ring()
    await ring.principal(f"Bearer {made.secret}")
    reads.now_s += 0.9
    await ring.principal(f"Bearer {made.secret}")  # does not lengthen the time
    revoke_key(connection, "app")
    reads.now_s += 0.1
    with pytest.raises(KeyRefusedError, match="was revoked"):
        await ring.principal(f"Bearer {made.secret}")


async def test_a_refusal_is_not_remembered(connection: sa.Connection) -> None:
    reads = _Counted(connection)
    ring = reads.ring()
    for header in (None, "Basic abc", "Bearer "):
        with pytest.raises(KeyRefusedError, match="no API key"):
            await ring.principal(header)
    assert reads.reads == 0
    for _ in range(2):
        with pytest.raises(KeyRefusedError, match="not known here"):
            await ring.principal("Bearer trib-caller-nobody")
    assert reads.reads == 2


async def test_no_more_keys_are_remembered_than_are_to_be(connection: sa.Connection) -> None:
    secrets = [create_key(connection, role="caller", name=f"app {n}").secret for n in range(3)]
    reads = _Counted(connection)
    ring = reads.ring(kept=2)
    for secret in (*secrets, secrets[2], secrets[1]):
        await ring.principal(f"Bearer {secret}")
    assert reads.reads == 3
    await ring.principal(f"Bearer {secrets[0]}")
    assert reads.reads == 4
