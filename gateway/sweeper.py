"""What is left over, swept up again and again: requests nobody answers, expired responses, old budget windows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

import sqlalchemy as sa
import structlog

from gateway import idempotency
from gateway.admission import Admission
from gateway.metrics import Metrics
from gateway.settings import Limits
from gateway.transactions import Transactions
from metering import Books, Expected, Intent, Transaction, forget_draws, open_intents

MAX_INTENTS = 1000  # of one sweep; what is over waits for the next
MINUTES_KEPT = timedelta(days=1)
MONTHS_KEPT = timedelta(days=62)
_HOUR = len("2025-01-31T23")
log = structlog.get_logger(__name__)


class Sweeper:
    """Sweeps for one gateway process. Several may sweep one database; what one has ended the others leave alone."""

    def __init__(
        self,
        *,
        transactions: Transactions,
        admission: Admission,
        books: Books,
        metrics: Metrics,
        gateway_id: str,
        limits: Limits,
    ) -> None:
        self._transactions = transactions
        self._admission = admission
        self._books = books
        self._metrics = metrics
        self._gateway_id = gateway_id
        self._limits = limits
        self._forgotten = ""

    async def run(self) -> None:
        """Sweep for as long as the gateway runs."""
        while True:
            try:
                await self.sweep()
            except Exception:
                log.exception("sweep_failed")  # the database is gone, say; the next sweep finds the same
            await asyncio.sleep(self._limits.sweep_s)

    async def sweep(self) -> None:
        """Sweep once."""
        if left := await self._transactions.read(self._left):
            accounts, requests = {i.account for i in left}, {i.request_id for i in left}
            expected = Expected(accounts=tuple(accounts), requests=tuple(requests))
            voided = await self._transactions.commit("void", lambda t: self._void(t, left), expected)
            self._metrics.swept_intents.inc(voided)
            log.warning("intents_swept", voided=voided)
        expired = _ago(timedelta(hours=self._limits.replay_hours))
        if await self._transactions.read(lambda c: idempotency.is_kept_from_before(c, expired)):
            await self._transactions.commit("sweep", lambda t: idempotency.erase_from_before(t.connection, expired))
        month, minute = _ago(MONTHS_KEPT)[:7], _ago(MINUTES_KEPT)[:16]
        if minute[:_HOUR] != self._forgotten:
            await self._transactions.commit("sweep", lambda t: forget_draws(t.connection, month=month, minute=minute))
            self._forgotten = minute[:_HOUR]

    def _left(self, connection: sa.Connection) -> list[Intent]:
        """The intents to void: too old, of any gateway, and those of this one that it does not answer any more."""
        old = open_intents(connection, admitted_before=_ago(timedelta(seconds=self._limits.intent_s)))
        found = {intent.request_id: intent for intent in islice(old, MAX_INTENTS)}
        ours = open_intents(connection, self._gateway_id)
        found |= {intent.request_id: intent for intent in islice(ours, MAX_INTENTS)}
        return [intent for intent in found.values() if not self._admission.is_answering(intent.request_id)]

    def _void(self, transaction: Transaction, left: Sequence[Intent]) -> int:
        voided = 0
        for intent in left:
            state = transaction.request(intent.request_id)
            if state is not None and state.ended_index is None:
                self._books.void(transaction, intent, "the gateway that admitted it did not end it")
                voided += 1
        return voided


def _ago(period: timedelta) -> str:
    """The time that long ago, as the books write times."""
    return (datetime.now(UTC) - period).isoformat(timespec="microseconds").replace("+00:00", "Z")
