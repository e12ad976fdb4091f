"""From a metered answer to a record in the log: attribute → split → record, off the request path.

A job is an answer whose status is `pending`; it runs from the sealed inputs alone, so any process that has the database
and an engine can do it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import sqlalchemy as sa
import structlog

import attribution
from gateway import answers, scoring
from gateway.answers import SealedInputs
from gateway.engines import Engine, PromptTooLong
from gateway.metrics import Metrics
from gateway.objects import attributed_object, attribution_record, failed_object, player_shares
from gateway.registry import Registry, RegistryError, Terms
from gateway.scoring import Scored
from gateway.transactions import Transactions
from metering import SUSPENSE, Books, Expected, MeteringError, SplitLine, Transaction, split

ATTEMPTS_MAX = 3
RETRY_S = 5.0
log = structlog.get_logger(__name__)


def _reason(error: Exception) -> str:
    """What an attribution object says of a failure: our own errors in their words, others only by their kind."""
    said = isinstance(error, attribution.AttributionError | PromptTooLong | MeteringError | RegistryError)
    return f"{type(error).__name__}: {error}" if said else type(error).__name__


class Attributor:
    """Works out what players contributed to metered answers, and pays them."""

    def __init__(
        self,
        *,
        transactions: Transactions,
        books: Books,
        registry: Registry,
        engine: Engine,
        metrics: Metrics,
        estimator: attribution.Estimator,
        poll_s: float,
    ) -> None:
        """poll_s: how often the queue is looked into when nobody woke this process."""
        self._transactions = transactions
        self._books = books
        self._registry = registry
        self._engine = engine
        self._metrics = metrics
        self._estimator = estimator
        self._poll_s = poll_s
        self._attributing: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._work_arrived = asyncio.Event()

    def wake(self) -> None:
        """Say that a job has come."""
        self._work_arrived.set()

    async def attribute(self, request_id: str) -> dict[str, Any]:
        """Attribute, split and record one metered answer; returns its attribution object. Never done twice."""
        task = self._attributing.get(request_id)
        if task is None:
            task = self._attributing[request_id] = asyncio.create_task(self._attribute(request_id))
            task.add_done_callback(lambda _: self._attributing.pop(request_id))
        return await asyncio.shield(task)

    async def _attribute(self, request_id: str) -> dict[str, Any]:
        row = await self._transactions.read(lambda c: answers.find(c, request_id))
        current: dict[str, Any] = orjson.loads(row.attribution)
        if row.status != "pending" or row.inputs is None:
            return current
        inputs = SealedInputs.decode(row.inputs)
        started_s = time.monotonic()
        try:
            terms = await self._transactions.read(
                lambda c: self._registry.terms(c, inputs.policy_index, inputs.adapter_index)
            )
            scored = await scoring.explain(self._engine, inputs, terms.adapter, self._estimator, request_id.encode())
            documents = await self._transactions.read(lambda c: self._documents(c, inputs))
            lines = split(int(current["charge_nano"]), terms.policy, player_shares(inputs, terms, scored), request_id)
            finished = await self._transactions.commit(
                "attribution",
                lambda t: self._record(t, current, inputs, terms, scored, lines, documents),
                Expected(accounts=(SUSPENSE, *(line.account for line in lines)), requests=(request_id,)),
            )
        except Exception as error:
            return await self._retry_or_fail(request_id, current, error)
        self._metrics.observe_attribution(finished, time.monotonic() - started_s)
        return finished

    def _record(
        self,
        transaction: Transaction,
        current: dict[str, Any],
        inputs: SealedInputs,
        terms: Terms,
        scored: Scored | None,
        lines: Sequence[SplitLine],
        documents: Mapping[str, int],
    ) -> dict[str, Any]:
        """Post the split, log the record that it follows from, end the job; returns the attribution object."""
        request_id = current["id"]
        record = attribution_record(request_id, inputs, terms, scored, lines, documents)
        index = self._books.record_attribution(transaction, record)
        finished = attributed_object(current, inputs, terms, scored, lines, index)
        answers.finish(transaction, request_id, finished["status"], finished, index)
        return finished

    def _documents(self, connection: sa.Connection, inputs: SealedInputs) -> dict[str, int]:
        """The log index of the claim that each document's credit rests on."""
        return {
            p.document: self._registry.document_index(connection, p.document, p.digest, p.owner)
            for p in inputs.passages
        }

    async def _retry_or_fail(self, request_id: str, current: dict[str, Any], error: Exception) -> dict[str, Any]:
        """Leave the job in the queue, or after the last attempt record why it failed; the money stays in suspense."""
        log.warning("attribution_attempt_failed", request_id=request_id, error=repr(error))

        def note(transaction: Transaction) -> dict[str, Any]:
            connection = transaction.connection
            row = answers.find(connection, request_id)
            if row.status != "pending":  # the attempt was recorded, and only the news of it was lost
                recorded: dict[str, Any] = orjson.loads(row.attribution)
                return recorded
            if answers.count_attempt(connection, request_id) < ATTEMPTS_MAX:
                return current
            failed = failed_object(current, _reason(error))
            answers.give_up(connection, request_id, failed)
            return failed

        outcome = await self._transactions.commit("attribution", note)
        if outcome["status"] == "failed":
            self._metrics.attributions.labels("failed").inc()
        return outcome

    async def work(self) -> None:
        """Attribute what waits, oldest first, for as long as the gateway runs."""
        while True:
            self._work_arrived.clear()
            try:
                waiting = await self._transactions.read(answers.pending)
                outcomes = [(await self.attribute(request_id))["status"] for request_id in waiting]
            except Exception:
                log.exception("attribution_stalled")  # the database is gone, say; the queue in it is not
                outcomes = ["pending"]
            if "pending" in outcomes:
                await asyncio.sleep(RETRY_S)
            elif not outcomes:
                with suppress(TimeoutError):  # what comes from another process wakes nobody here
                    async with asyncio.timeout(self._poll_s):
                        await self._work_arrived.wait()

    async def close(self) -> None:
        """Stop; what was not recorded stays in the queue."""
        attributing = list(self._attributing.values())
        for task in attributing:
            task.cancel()
        await asyncio.gather(*attributing, return_exceptions=True)
