"""The life of an answer: route → ground → generate → meter → answer; then attribute → split → record.

`open` does everything that can refuse a request, before a token is generated. From there a task of its own carries the
answer to its end whatever becomes of the client, so that what was generated is always charged. `attribute` runs off
the request path, from the sealed inputs alone.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa
import structlog

import attribution
from gateway import answers, scoring
from gateway.admission import Admission
from gateway.answers import GroundedPassage, SealedInputs, salted_digest
from gateway.auth import Principal
from gateway.charging import Charge
from gateway.engines import Delta, Engine, EngineUnavailable, GenerationRequest, PromptTooLong
from gateway.exchange import Answer, Question, TookTooLongError, within
from gateway.fairness import PRIORITIES
from gateway.grounding import ground
from gateway.idempotency import JSON_TYPE, Claim
from gateway.identifiers import new_request_id
from gateway.metrics import Metrics
from gateway.objects import attributed_object, attribution_record, failed_object, player_shares
from gateway.registry import Registry, RegistryError, Terms
from gateway.scoring import Scored
from gateway.settings import Limits
from gateway.transactions import Transactions
from metering import (
    SUSPENSE,
    Books,
    CommitError,
    Expected,
    IntentError,
    MeteringError,
    SplitLine,
    Transaction,
    UsageRecord,
    split,
)
from retrieval import Retriever

T = TypeVar("T")
ATTEMPTS_MAX = 3
RETRY_S = 5.0
log = structlog.get_logger(__name__)


def _reason(error: Exception) -> str:
    """What an attribution object says of a failure: our own errors in their words, others only by their kind."""
    said = isinstance(error, attribution.AttributionError | PromptTooLong | MeteringError | RegistryError)
    return f"{type(error).__name__}: {error}" if said else type(error).__name__


class Pipeline:
    """Carries answers from a question to a record in the log."""

    def __init__(
        self,
        *,
        transactions: Transactions,
        admission: Admission,
        books: Books,
        registry: Registry,
        retriever: Retriever,
        engine: Engine,
        metrics: Metrics,
        estimator: attribution.Estimator,
        limits: Limits,
        poll_s: float,
    ) -> None:
        self._transactions = transactions
        self._admission = admission
        self._books = books
        self._registry = registry
        self._retriever = retriever
        self._engine = engine
        self._metrics = metrics
        self._estimator = estimator
        self._limits = limits
        self._poll_s = poll_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._answering: set[Answer] = set()
        self._attributing: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._work_arrived = asyncio.Event()

    # On the request path.

    async def open(
        self, caller: str, question: Question, *, key: Principal | None = None, claim: Claim | None = None
    ) -> Answer:
        """Wait for a turn, admit and ground; on return the engine has read the prompt, and the answer is on its way.

        caller: its account. key: the API key whose turn it takes and whose budget it draws on. claim: of its
        idempotency key, looked up. Raises TooBusyError, InsufficientCredit, BudgetExceeded, RequestInProgressError,
        PromptTooLong, EngineRefused or EngineUnavailable, with nothing charged.
        """
        started_s = time.monotonic()
        request_id = question.resolved.request_id if question.resolved else new_request_id()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        context_tokens, max_tokens, n = self._engine.context_tokens, question.sampling.max_tokens, question.n_choices
        intent = await self._admission.admit(
            caller,
            request_id,
            maximum_nano=question.model.price.maximum_nano(context_tokens, max_tokens, n),
            maximum_tokens=context_tokens + (n - 1) * min(max_tokens, context_tokens),
            key=key,
            claim=claim,
        )
        now_s = asyncio.get_running_loop().time()
        answer = Answer(
            request_id=request_id,
            caller=caller,
            question=question,
            priority=key.priority if key else "normal",
            intent=intent,
            passages=(),
            claim=claim,
            started_s=started_s,
            deadline_s=now_s + self._limits.answer_s,
            # An engine may give a whole answer in one piece; only of a stream is an early token owed.
            first_deadline_s=now_s + (self._limits.first_token_s if question.stream else self._limits.answer_s),
        )
        try:
            async with self._in_time(answer):
                answer.passages = await self._ground(question)
                stream = self._generate(answer)
                answer.take(await anext(stream))
        except BaseException as error:
            await asyncio.shield(self._spawn(self._admission.void(intent, type(error).__name__)))
            raise
        self._answering.add(answer)
        self._spawn(self._carry(answer, stream))
        return answer

    async def _ground(self, question: Question) -> tuple[GroundedPassage, ...]:
        asked = question.asked
        if asked is None or not question.corpora:
            return ()
        found = await self._transactions.read(
            lambda c: self._retriever.search(
                c, asked, corpora=question.corpora, k=question.top_k, licences=question.model.licences
            )
        )
        return tuple(
            GroundedPassage(document=p.document_id, digest=p.digest, owner=p.owner, title=p.title, text=p.text)
            for p in found
        )

    def _generate(self, answer: Answer) -> AsyncGenerator[Delta, None]:
        question, model = answer.question, answer.question.model
        messages = question.messages
        if messages is not None and model.corpora:
            sources = [passage.source for passage in answer.passages]
            messages = tuple(ground(messages, sources, model.instruction))
        request = GenerationRequest(
            request_id=answer.request_id,
            model=model.name,
            messages=messages,
            prompt=question.prompt,
            adapter=model.resident_adapter,
            sampling=question.sampling,
            tools=question.tools,
            options=question.options,
            stream=question.stream,
            priority=PRIORITIES.index(answer.priority),
        )
        return self._engine.generate(request)

    async def _carry(self, answer: Answer, stream: AsyncGenerator[Delta, None]) -> None:
        """Take what is generated, meter it, and only then let the last byte go."""
        failure: Exception | None = None
        try:
            async with self._in_time(answer) as time_left, aclosing(stream):
                async for delta in stream:
                    has_begun = answer.first_token_s is not None
                    answer.take(delta)
                    if answer.abandoned:
                        answer.cut = "cancelled"
                        break
                    if not has_begun and answer.first_token_s is not None:
                        time_left.reschedule(answer.deadline_s)
        except TookTooLongError as error:
            answer.cut = "length"
            failure = None if answer.answer_ids else error
        except Exception as error:
            log.warning("generation_failed", error=repr(error))
            failure = error if answer.unfinished else None  # what fails after the answer fails nobody
        else:
            if answer.unfinished and answer.cut is None:
                failure = EngineUnavailable("the engine stopped before the answer had ended")
        try:
            if failure is None or answer.answer_ids:
                await self._meter(answer)
            else:
                await self._admission.void(answer.intent, "engine_error")
            answer.end(failure)
        except Exception as error:
            log.exception("metering_failed")
            answer.end(error)
            await self._release(answer)
        except asyncio.CancelledError:  # the gateway stops; the usage is committed, and the attribution job keeps
            answer.end(None)
            raise
        finally:
            self._answering.discard(answer)
            self._admission.ended(answer.request_id)

    def _in_time(self, answer: Answer) -> AbstractAsyncContextManager[asyncio.Timeout]:
        """The time that the engine has for the next of the answer."""
        if answer.first_token_s is not None:
            return within(answer.deadline_s)
        early = answer.first_deadline_s < answer.deadline_s
        return within(min(answer.first_deadline_s, answer.deadline_s), "first_token_s" if early else "answer_s")

    async def _release(self, answer: Answer) -> None:
        """Void a request whose usage did not commit. If the ledger is still gone, the sweeper does it."""
        with suppress(CommitError, IntentError):
            await self._admission.void(answer.intent, "the usage could not be recorded")

    async def _meter(self, answer: Answer) -> None:
        """Commit usage, charge and the attribution job in one transaction; attribute at once where that was asked.

        Where nothing took part that could be left out there is no job: the same transaction splits the charge.
        """
        model = answer.question.model
        salt = secrets.token_bytes(32)
        usage = UsageRecord(
            served_model=model.name,
            base_model=model.base,
            adapter=model.adapter_name,
            usage=answer.usage,
            finish_reason=answer.finish_reason,
            price=model.price,
            price_index=model.price_index,
            prompt_digest=salted_digest(salt, answer.prompt_ids),
            answer_digest=salted_digest(salt, answer.answer_ids),
        )
        charge = Charge.of(
            answer.intent,
            usage,
            salt=salt,
            inputs=answer.sealed(),
            terms=model.terms,
            resolved=answer.question.resolved,
        )

        def commit(transaction: Transaction) -> dict[str, Any]:
            shown = charge.write(self._books, transaction)
            if answer.claim is not None and self._limits.replay_hours:
                response = answer.said.encode()
                if len(response) <= self._limits.replay_bytes:
                    answer.claim.keep(transaction, JSON_TYPE, response)
            return shown

        answer.attribution = await self._transactions.commit("usage", commit, charge.touches)
        self._metrics.observe_answer(answer)
        if charge.at_once:
            self._metrics.observe_split(answer.attribution)
        elif answer.question.mode == "inline" and not answer.abandoned:
            answer.attribution = await self.attribute(answer.request_id)
        else:
            self._work_arrived.set()

    # Off the request path.

    async def attribute(self, request_id: str) -> dict[str, Any]:
        """Attribute, split and record one metered answer; returns its attribution object. Never done twice."""
        task = self._attributing.get(request_id)
        if task is None:
            task = self._attributing[request_id] = self._spawn(self._attribute(request_id))
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

    # Underneath.

    async def close(self) -> None:
        """Stop generating, meter what was generated, and return when it is committed. Attribution jobs keep."""
        for answer in self._answering:
            answer.abandon()
        for task in self._attributing.values():
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that outlives its caller."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
