"""The tasks that ship this gateway's log to ledgers elsewhere. No request ever waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Literal, TypeAlias, get_args

import httpx
import structlog

from gateway.metrics import Metrics
from gateway.settings import LedgerSection
from gateway.transactions import Transactions
from ledger_client import (
    ADD_SHIPMENT,
    Backoff,
    BatchFault,
    BatchRefused,
    Ledger,
    LedgerInconsistent,
    LedgerUnavailable,
    Log,
    RemoteLedger,
    Shipment,
    Verifier,
    entries_of,
    next_batch,
    verify_accepted,
)

log = structlog.get_logger(__name__)

POLL_S = 1.0  # between looks at a log of which all is shipped
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 60.0

Failure: TypeAlias = Literal["unavailable", "refused", "inconsistent", "internal"]
"""Why a batch is not shipped, a label of the metric."""

_CONTRADICTIONS = {BatchFault.AHEAD, BatchFault.FORKED, BatchFault.INCONSISTENT}


class Shipper:
    """Ships one log to one ledger in order, a batch at a time, each when the one before has been acknowledged.

    name: of the ledger, a label of the metrics. verifier: its key. It may be stopped at any point and lose nothing:
    what was acknowledged and not noted here is sent again, and acknowledged the same.
    """

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        verifier: Verifier,
        *,
        log: Log,
        transactions: Transactions,
        metrics: Metrics,
        first_retry_s: float = FIRST_RETRY_S,
        longest_retry_s: float = LONGEST_RETRY_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._name = name
        self._ledger = ledger
        self._verifier = verifier
        self._log = log
        self._transactions = transactions
        self._metrics = metrics
        self._backoff = Backoff(first_s=first_retry_s, limit_s=longest_retry_s)
        self._poll_s = poll_s
        for failure in get_args(Failure):  # so that each series is there before it is needed
            metrics.shipping_failures.labels(name, failure)
        metrics.shipping_contradicted.labels(name).set(0)
        metrics.shipping_success.labels(name).set_to_current_time()

    async def ship(self) -> bool:
        """Ship the next batch and keep the ledger's receipt of it; False when there was none to ship.

        Raises what `Ledger.accept` raises, or LedgerInconsistent.
        """
        found = await self._transactions.read(lambda c: next_batch(c, self._log, self._verifier.name))
        if found is None:
            return False
        batch, seen = found
        accepted = await self._ledger.accept(batch)
        entries: Sequence[bytes] = batch.entries
        if accepted.end != batch.end:  # of an earlier try, whose reply was lost
            entries = await self._transactions.read(lambda c: entries_of(c, accepted))
        shipment = await asyncio.to_thread(verify_accepted, accepted, batch, entries, seen, self._verifier)
        await self._keep(shipment)
        return True

    async def run(self) -> None:
        """Ship for ever; or until the ledger contradicts what it has signed."""
        while True:
            failure, error, wait_s = await self._try()
            if failure is None:
                await asyncio.sleep(wait_s)
                continue
            self._metrics.shipping_failures.labels(self._name, failure).inc()
            told = {"ledger": self._name, "error": str(error)}
            if failure == "inconsistent":
                log.error("shipping_stopped", **told)
                return
            if failure == "internal":
                log.error("shipping_failed", **told, retry_s=round(wait_s, 1), exc_info=error)
            else:
                log.warning("shipping_failed", **told, retry_s=round(wait_s, 1))
            await asyncio.sleep(wait_s)

    async def _try(self) -> tuple[Failure | None, Exception | None, float]:
        """Ship one batch; say what went wrong, if something did, and how many seconds to wait before the next."""
        try:
            shipped = await self.ship()
        except LedgerUnavailable as error:
            return "unavailable", error, max(self._backoff.failed(), error.retry_after_s or 0)
        except BatchRefused as error:
            if error.fault in _CONTRADICTIONS:
                # Its word alone: something between may say so. It is an alarm, and one more try now and then.
                self._metrics.shipping_contradicted.labels(self._name).set(1)
            return "refused", error, self._backoff.failed()
        except LedgerInconsistent as error:
            self._metrics.shipping_contradicted.labels(self._name).set(1)
            return "inconsistent", error, 0
        except Exception as error:
            return "internal", error, self._backoff.failed()
        self._backoff.succeeded()
        self._metrics.shipping_success.labels(self._name).set_to_current_time()
        if shipped:
            self._metrics.shipping_contradicted.labels(self._name).set(0)
        return None, None, 0 if shipped else self._poll_s

    async def _keep(self, shipment: Shipment) -> None:
        row = shipment.row()
        await self._transactions.commit("shipment", lambda t: t.defer(ADD_SHIPMENT[self._transactions.dialect], row))


@asynccontextmanager
async def shipping(
    ledgers: Sequence[LedgerSection], log: Log, transactions: Transactions, metrics: Metrics
) -> AsyncIterator[None]:
    """Ship to each ledger of the settings until the block ends."""
    async with httpx.AsyncClient() as http:
        tasks = [
            asyncio.create_task(
                Shipper(
                    ledger.name,
                    RemoteLedger(ledger.url, http),
                    ledger.verifier,
                    log=log,
                    transactions=transactions,
                    metrics=metrics,
                ).run()
            )
            for ledger in ledgers
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
