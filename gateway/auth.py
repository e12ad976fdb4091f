"""API keys: shown once, stored as a digest, one role each.

A key holds 256 random bits, so a plain SHA-256 of it is as strong as a slow hash and costs a request nothing. Whom a
key speaks for is asked again a second later at the latest: a key that is revoked is refused from then on.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import sqlalchemy as sa

from gateway.fairness import Priority, Tenant
from gateway.identifiers import new_id, now
from gateway.published import Reads
from gateway.tables import api_key
from metering import caller_account

Role = Literal["caller", "contributor", "operator", "auditor"]
ROLES: tuple[Role, ...] = get_args(Role)

KEPT_S = 1.0
KEPT_MAX = 4096
_BY_DIGEST = sa.select(api_key).where(api_key.c.digest == sa.bindparam("digest"))


class KeyRefusedError(Exception):
    """The key is missing, unknown or revoked."""


class RoleRefusedError(Exception):
    """The key is good but may not do this."""


class UnknownKeyError(LookupError):
    """There is no key with this id or name."""


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who a key speaks for: a caller's account, a contributor's id, or the operator.

    priority, concurrency: how a caller's key shares the gateway with others; see `gateway.fairness`.
    """

    key_id: str
    role: Role
    subject: str
    name: str
    priority: Priority = "normal"
    concurrency: int | None = None

    @property
    def tenant(self) -> Tenant:
        """Whose turn its requests take."""
        return Tenant(name=self.key_id, priority=self.priority, concurrency=self.concurrency)

    def require(self, *roles: Role) -> None:
        """Raise RoleRefusedError unless the key has one of the roles."""
        if self.role not in roles:
            raise RoleRefusedError(f"this needs a key with role {' or '.join(roles)}; yours has role {self.role}")


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key as it is shown, once."""

    principal: Principal
    secret: str


def create_key(
    connection: sa.Connection, *, role: Role, name: str, contributor: str | None = None, account: str | None = None
) -> NewKey:
    """Make a key; a contributor's names the contributor, a caller's is of an account, by default one of its own."""
    secret = f"trib-{role}-{secrets.token_urlsafe(32)}"
    subject = {
        "caller": account or caller_account(new_id("acct")),
        "contributor": contributor or "",
        "operator": "operator",
    }.get(role, role)
    principal = Principal(key_id=new_id("key"), role=role, subject=subject, name=name)
    connection.execute(
        sa.insert(api_key).values(
            id=principal.key_id, digest=_digest(secret), role=role, subject=subject, name=name, created_at=now()
        )
    )
    return NewKey(principal=principal, secret=secret)


def authenticate(connection: sa.Connection, authorization: str | None) -> Principal:
    """The principal of an `Authorization: Bearer` header; raises KeyRefusedError."""
    return _find(connection, _digest(_secret(authorization)))


class KeyRing:
    """Whom keys speak for, as the database said within the last KEPT_S.

    What an operator does to a key counts from its next request after that time. Refusals are not kept. kept: how many
    keys are remembered, the ones asked for last.
    """

    def __init__(self, reads: Reads, *, clock: Callable[[], float] = time.monotonic, kept: int = KEPT_MAX) -> None:
        self._reads = reads
        self._clock = clock
        self._kept = kept
        self._known: dict[str, tuple[float, Principal]] = {}  # digest → until when, whom; the oldest first

    async def principal(self, authorization: str | None) -> Principal:
        """The principal of an `Authorization: Bearer` header; raises KeyRefusedError or DatabaseUnavailableError."""
        digest = _digest(_secret(authorization))
        asked_s = self._clock()
        known = self._known.get(digest)
        if known is not None and asked_s < known[0]:
            return known[1]
        found = await self._reads.read(lambda connection: _find(connection, digest))
        self._known.pop(digest, None)
        if len(self._known) >= self._kept:
            del self._known[next(iter(self._known))]
        self._known[digest] = (asked_s + KEPT_S, found)
        return found


def _secret(authorization: str | None) -> str:
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise KeyRefusedError("no API key given; send it as `Authorization: Bearer <key>`")
    return secret.strip()


def _find(connection: sa.Connection, digest: str) -> Principal:
    row = connection.execute(_BY_DIGEST, {"digest": digest}).one_or_none()
    if row is None:
        raise KeyRefusedError("this API key is not known here; check it, or ask the operator for one")
    if row.revoked_at is not None:
        raise KeyRefusedError(f"this API key was revoked on {row.revoked_at[:10]}; ask the operator for another")
    return _principal(row)


def find_key(connection: sa.Connection, name_or_id: str) -> Principal:
    """The one key with this id or name that is not revoked; raises UnknownKeyError."""
    named = sa.or_(api_key.c.id == name_or_id, api_key.c.name == name_or_id)
    rows = connection.execute(sa.select(api_key).where(named, api_key.c.revoked_at.is_(None))).all()
    if len(rows) != 1:
        problem = "there is no key" if not rows else f"{len(rows)} keys share the name; use an id instead of"
        raise UnknownKeyError(f"{problem} {name_or_id!r}; `tributary key list` shows them")
    return _principal(rows[0])


def list_keys(connection: sa.Connection) -> list[sa.Row[tuple[object, ...]]]:
    """Every key, oldest first, without its digest."""
    columns = [column for column in api_key.c if column.name != "digest"]
    return list(connection.execute(sa.select(*columns).order_by(api_key.c.created_at, api_key.c.id)))


def share_key(connection: sa.Connection, key_id: str, **shares: str | int | None) -> None:
    """Set the `priority` or the `concurrency` of a key, from its next request on."""
    connection.execute(sa.update(api_key).where(api_key.c.id == key_id).values(**shares))


def revoke_key(connection: sa.Connection, name_or_id: str) -> Principal:
    """Make a key useless from now on."""
    principal = find_key(connection, name_or_id)
    connection.execute(sa.update(api_key).where(api_key.c.id == principal.key_id).values(revoked_at=now()))
    return principal


def _principal(row: sa.Row[tuple[object, ...]]) -> Principal:
    return Principal(
        key_id=row.id,
        role=row.role,
        subject=row.subject,
        name=row.name,
        priority=row.priority,
        concurrency=row.concurrency,
    )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
