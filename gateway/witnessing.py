"""Getting the log's checkpoints cosigned, beside everything else: no request waits for a witness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import httpx
import sqlalchemy as sa
import structlog

from gateway.database import Database
from gateway.metrics import Metrics
from gateway.settings import Settings, WitnessSection
from ledger_client import Checkpoint, Cosignature, Log, Note, WitnessVerifier
from ledger_client.backoff import Backoff
from ledger_client.witness_client import WitnessAhead, WitnessClient, WitnessError

log = structlog.get_logger(__name__)

RETRY_LIMIT_S = 300.0


@dataclass(eq=False, kw_only=True)
class _Asked:
    """A witness, and how it has answered of late. name: the one in the settings. size: of the tree it cosigned last."""

    name: str
    client: WitnessClient
    backoff: Backoff
    size: int = 0
    not_before_s: float = 0.0
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def is_due(self, size: int) -> bool:
        free = self.task is None or self.task.done()
        return free and self.size < size and time.monotonic() >= self.not_before_s


class Witnessing:
    """Asks every witness about the newest checkpoint, again and again.

    All that are due are asked about the same one, because a quorum is of one checkpoint; a witness that is slow or down
    is passed over until it is due again, and then joins the others. Several gateways on one log may do this at a time.
    """

    def __init__(
        self,
        *,
        witnesses: Sequence[WitnessSection],
        interval_s: float,
        database: Database,
        ledger: Log,
        metrics: Metrics,
    ) -> None:
        self._interval_s = interval_s
        self._database = database
        self._ledger = ledger
        self._metrics = metrics
        self._http = httpx.AsyncClient()
        self._asked = [
            _Asked(
                name=witness.name,
                client=WitnessClient(witness.url, witness.verifier, self._http),
                backoff=Backoff(first_s=interval_s, limit_s=max(interval_s, RETRY_LIMIT_S)),
            )
            for witness in witnesses
        ]
        for witness in witnesses:
            metrics.witness_failures.labels(witness.name)

    @classmethod
    def of(cls, settings: Settings, *, database: Database, ledger: Log, metrics: Metrics) -> Self:
        """Build it as the settings say."""
        return cls(
            witnesses=settings.witnesses,
            interval_s=settings.log.cosign_interval_s,
            database=database,
            ledger=ledger,
            metrics=metrics,
        )

    async def run(self) -> None:
        """Ask until cancelled."""
        try:
            while self._asked:
                try:
                    await self._ask_who_is_due()
                except Exception:  # the database may be gone for a while
                    log.exception("witnessing_failed")
                await asyncio.sleep(self._interval_s)
        finally:
            tasks = [asked.task for asked in self._asked if asked.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._http.aclose()

    async def _ask_who_is_due(self) -> None:
        note, size = await asyncio.to_thread(self._newest)
        for asked in self._asked:
            if asked.is_due(size):
                asked.task = asyncio.create_task(self._ask(asked, note, size))

    async def _ask(self, asked: _Asked, note: str, size: int) -> None:
        try:
            cosignature = await asked.client.cosign(note, size, self._prove)
            await asyncio.to_thread(self._keep, size, asked.client.verifier, cosignature)
        except WitnessAhead as error:
            _, newest = await asyncio.to_thread(self._newest)
            if error.size > newest:
                self._failed(asked, error, "the log has lost entries that it had published")
            # Else another gateway has asked about a later checkpoint meanwhile, and so will this one.
        except WitnessError as error:
            self._failed(asked, error)
        except Exception as error:
            log.exception("witnessing_failed", witness=asked.name)
            self._failed(asked, error)
        else:
            asked.size = size
            asked.backoff.succeeded()

    def _failed(self, asked: _Asked, error: Exception, meaning: str = "") -> None:
        self._metrics.witness_failures.labels(asked.name).inc()
        delay_s = asked.backoff.failed()
        asked.not_before_s = time.monotonic() + delay_s
        told = {"meaning": meaning} if meaning else {}
        log.warning("witness_failed", witness=asked.name, error=str(error), retry_s=round(delay_s, 1), **told)

    async def _prove(self, old_size: int, size: int) -> list[bytes]:
        def prove() -> list[bytes]:
            with self._database.read() as connection:
                return self._ledger.consistency(connection, old_size, size)

        return await asyncio.to_thread(prove)

    def _newest(self) -> tuple[str, int]:
        with self._database.read() as connection:
            note = self._ledger.checkpoint(connection)
        return note, Checkpoint.parse(Note.parse(note).text).size

    def _keep(self, size: int, witness: WitnessVerifier, cosignature: Cosignature) -> None:
        with self._database.write() as connection:
            self._ledger.add_cosignature(connection, size, witness, cosignature)


def lag_entries(connection: sa.Connection, ledger: Log, witnesses: Iterable[WitnessSection]) -> dict[str, int]:
    """Return how many entries each witness has not cosigned yet, by its name in the settings."""
    size = ledger.size(connection)
    return {witness.name: size - ledger.cosigned_size(connection, witness.verifier) for witness in witnesses}
