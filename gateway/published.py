"""A log as anyone may read it, whichever process serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar

import sqlalchemy as sa
from fastapi import Depends, Request

from gateway.database import Database
from ledger_client import Log

T = TypeVar("T")


class Reads(Protocol):
    """How asynchronous code reads a database."""

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query in a read transaction of its own."""
        ...


class DatabaseReads:
    """Reads in threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query in a read transaction of its own."""

        def run() -> T:
            with self._database.read() as connection:
                return query(connection)

        return await asyncio.to_thread(run)


@dataclass(frozen=True, kw_only=True, eq=False)
class Published:
    """What the routes of the transparency log use; an application keeps it as `app.state.published`."""

    log: Log
    verifier_key: str
    reads: Reads


async def _published(request: Request) -> Published:  # a function that is not async would be run in a thread
    published: Published = request.app.state.published
    return published


PublishedLog = Annotated[Published, Depends(_published)]
