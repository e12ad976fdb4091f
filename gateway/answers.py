"""Answers as rows: the queue of attribution jobs, and the attribution object that clients read.

An answer waits with its sealed inputs, from which any coalition's prompt can be rendered again. They are erased in the
transaction that records the attribution.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import orjson
import sqlalchemy as sa

from gateway.grounding import Message, Source
from gateway.tables import answer, is_pending
from ledger_client import Rows
from metering import Transaction

Status = Literal["pending", "attributed", "not_applicable", "failed"]

_REQUEST_ID = re.compile("req_[a-z2-7]{26}")


class UnknownRequestError(LookupError):
    """There is no answer with this request id, or it is not this caller's to see."""


@dataclass(frozen=True, kw_only=True)
class GroundedPassage:
    """A passage as the model read it, and the document and owner that it is credited to."""

    document: str
    digest: str
    owner: str
    title: str
    text: str

    @property
    def source(self) -> Source:
        """What of it the model reads."""
        return Source(title=self.title, text=self.text)


@dataclass(frozen=True, kw_only=True)
class SealedInputs:
    """Everything that scoring an answer again needs.

    messages, tools: the conversation, None where prompt_ids are all there was. choices: the token ids of each answer
    that was given. policy_index, adapter_index: log indexes of the terms. A configuration that changes meanwhile
    changes nothing here.
    """

    instruction: str
    policy_index: int
    adapter_index: int | None
    messages: tuple[Message, ...] | None
    prompt_ids: tuple[int, ...]
    passages: tuple[GroundedPassage, ...]
    choices: tuple[tuple[int, ...], ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The token ids of every choice, one after another."""
        return tuple(chain.from_iterable(self.choices))

    def encode(self) -> bytes:
        """As JSON."""
        return orjson.dumps(self)

    @classmethod
    def decode(cls, raw: bytes) -> SealedInputs:
        """The inverse of encode."""
        fields = orjson.loads(raw)
        messages = fields["messages"]
        choices = [fields.pop("answer_ids")] if "answer_ids" in fields else fields["choices"]  # as 0.1 kept them
        restored = {
            "messages": None if messages is None else tuple(Message(**message) for message in messages),
            "prompt_ids": tuple(fields["prompt_ids"]),
            "passages": tuple(GroundedPassage(**passage) for passage in fields["passages"]),
            "choices": tuple(tuple(answer) for answer in choices),
            "tools": tuple(fields.get("tools", ())),
        }
        return cls(**fields | restored)


@dataclass(frozen=True, kw_only=True)
class AnswerRow:
    """An answer that was metered. The fields are the columns of its table, in its order."""

    request_id: str
    caller: str
    status: Status
    created_at: str
    usage_index: int
    record_index: int | None
    attempts: int
    salt: bytes
    inputs: bytes | None
    attribution: bytes

    @property
    def newest_index(self) -> int:
        """The log index of the newest entry about it: the attribution, or the usage until there is one."""
        return self.usage_index if self.record_index is None else self.record_index


def salted_digest(salt: bytes, content: Sequence[int | str]) -> str:
    """What the log holds of a prompt or an answer: SHA-256, in hex, over a secret salt and the token ids or texts."""
    return hashlib.sha256(salt + orjson.dumps(list(content))).hexdigest()


_ROWS = Rows(answer)
_CHANGE = sa.update(answer).where(answer.c.request_id == sa.bindparam("key"))


def insert(transaction: Transaction, row: AnswerRow) -> None:
    """Keep a metered answer."""
    transaction.store(_ROWS, tuple(vars(row).values()))


def find(connection: sa.Connection, request_id: str, caller: str | None = None) -> AnswerRow:
    """One answer, if it is this caller's; raises UnknownRequestError."""
    row = None
    if _REQUEST_ID.fullmatch(request_id):  # a database may refuse what an address can hold, as PostgreSQL does a NUL
        condition = answer.c.request_id == request_id
        if caller is not None:
            condition = sa.and_(condition, answer.c.caller == caller)
        row = connection.execute(sa.select(answer).where(condition)).one_or_none()
    if row is None:
        raise UnknownRequestError(f"there is no answer {request_id!r} that this key may see")
    return AnswerRow(**row._mapping)


def pending(connection: sa.Connection, limit: int = 64) -> list[str]:
    """The request ids that wait for attribution, oldest first."""
    query = sa.select(answer.c.request_id).where(is_pending)
    return list(connection.scalars(query.order_by(answer.c.created_at, answer.c.request_id).limit(limit)))


def backlog(connection: sa.Connection) -> int:
    """How many answers wait for attribution."""
    query = sa.select(sa.func.count()).select_from(answer).where(is_pending)
    return connection.execute(query).scalar_one()


def finish(
    transaction: Transaction, request_id: str, status: Status, attribution: dict[str, Any], record_index: int
) -> None:
    """End an answer's job and erase its inputs."""
    ending = {"status": status, "attribution": orjson.dumps(attribution), "record_index": record_index, "inputs": None}
    transaction.defer(_CHANGE, {"key": request_id, **ending})


def correct(transaction: Transaction, request_id: str, attribution: dict[str, Any], record_index: int) -> None:
    """Show an answer as a later record has it."""
    changed = {"attribution": orjson.dumps(attribution), "record_index": record_index}
    transaction.defer(_CHANGE, {"key": request_id, **changed})


def give_up(connection: sa.Connection, request_id: str, attribution: dict[str, Any]) -> None:
    """Take a job out of the queue. Its inputs stay, and with them the means to try again."""
    changed = sa.update(answer).where(answer.c.request_id == request_id, answer.c.status == "pending")
    connection.execute(changed.values(status="failed", attribution=orjson.dumps(attribution)))


def retry(connection: sa.Connection, request_id: str) -> None:
    """Put a job that was given up back into the queue; raises UnknownRequestError when there is none."""
    row = find(connection, request_id)
    if row.status != "failed":
        raise UnknownRequestError(f"there is nothing to retry: the attribution of {request_id} is {row.status}")
    current = orjson.loads(row.attribution)
    del current["reason"]
    connection.execute(
        sa.update(answer)
        .where(answer.c.request_id == request_id)
        .values(status="pending", attempts=0, attribution=orjson.dumps(current | {"status": "pending"}))
    )


def count_attempt(connection: sa.Connection, request_id: str) -> int:
    """Note a failed attempt; returns how many there were."""
    query = sa.update(answer).where(answer.c.request_id == request_id).values(attempts=answer.c.attempts + 1)
    attempts: int = connection.execute(query.returning(answer.c.attempts)).scalar_one()
    return attempts
