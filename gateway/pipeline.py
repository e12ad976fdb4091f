"""The life of an answer: route → ground → generate → meter → answer; then `attributing`: attribute → split → record.

`open` does everything that can refuse a request, before a token is generated. From there a task of its own carries the
answer to its end whatever becomes of the client, so that what was generated is always charged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import structlog

from gateway.admission import Admission
from gateway.answers import GroundedPassage, salted_digest
from gateway.attributing import Attributor
from gateway.auth import Principal
from gateway.charging import Charge
from gateway.engines import Delta, Engine, EngineUnavailable, GenerationRequest
from gateway.exchange import Answer, Question, TookTooLongError, within
from gateway.fairness import PRIORITIES
from gateway.grounding import ground
from gateway.idempotency import JSON_TYPE, Claim
from gateway.identifiers import new_request_id, random_bytes
from gateway.metrics import Metrics
from gateway.settings import Limits
from gateway.transactions import Transactions
from metering import (
    Books,
    CommitError,
    IntentError,
    Transaction,
    UsageRecord,
)
from retrieval import Retriever

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Pipeline:
    """Carries answers from a question to their last byte."""

    def __init__(
        self,
        *,
        transactions: Transactions,
        admission: Admission,
        books: Books,
        retriever: Retriever,
        engine: Engine,
        attributor: Attributor,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self._transactions = transactions
        self._admission = admission
        self._books = books
        self._retriever = retriever
        self._engine = engine
        self._attributor = attributor
        self._metrics = metrics
        self._limits = limits
        self._tasks: set[asyncio.Task[Any]] = set()
        self._answering: set[Answer] = set()

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
                    if answer.first_token_s is not None and not has_begun and answer.owes_early_token:
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

    def _in_time(self, answer: Answer) -> within:
        """The time that the engine has for the next of the answer."""
        if answer.first_token_s is not None:
            return within(answer.deadline_s)
        early = answer.owes_early_token
        return within(answer.first_deadline_s if early else answer.deadline_s, "first_token_s" if early else "answer_s")

    async def _release(self, answer: Answer) -> None:
        """Void a request whose usage did not commit. If the ledger is still gone, the sweeper does it."""
        with suppress(CommitError, IntentError):
            await self._admission.void(answer.intent, "the usage could not be recorded")

    async def _meter(self, answer: Answer) -> None:
        """Commit usage, charge and the attribution job in one transaction; attribute at once where that was asked.

        Where nothing took part that could be left out there is no job: the same transaction splits the charge.
        """
        model = answer.question.model
        salt = random_bytes()
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
            answer.attribution = await self._attributor.attribute(answer.request_id)
        else:
            self._attributor.wake()

    async def close(self) -> None:
        """Stop generating, meter what was generated, and return when it is committed. Attribution jobs keep."""
        for answer in self._answering:
            answer.abandon()
        await self._attributor.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that outlives its caller."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
