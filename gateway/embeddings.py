"""The life of an embedding: admit → embed → meter and record → reply. No contributor plays a part in it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from gateway.admission import Admission
from gateway.answers import SealedInputs, salted_digest
from gateway.auth import Principal
from gateway.charging import Charge
from gateway.engines import PromptTooLong
from gateway.exchange import within
from gateway.idempotency import VECTORS_TYPE, Claim, Replay
from gateway.identifiers import random_bytes
from gateway.metrics import Metrics
from gateway.routing.names import Resolved
from gateway.settings import Limits
from gateway.transactions import Transactions
from metering import Books, Intent, Transaction, Usage, UsageRecord
from retrieval import Embedder


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """model: the served model's name. vectors: float32 (n_texts, dimension), unit rows."""

    request_id: str
    model: str
    vectors: NDArray[np.float32]
    usage: Usage

    @classmethod
    def again(cls, replay: Replay, n_texts: int) -> Self:
        """What was embedded before, as it was kept."""
        counts = replay.attribution["usage"]
        return cls(
            request_id=replay.request_id,
            model=replay.attribution["served_model"],
            vectors=np.frombuffer(replay.response, dtype="<f4").reshape(n_texts, -1),
            usage=Usage(prompt_tokens=counts["prompt_tokens"], completion_tokens=counts["completion_tokens"]),
        )


class Embeddings:
    """Embeds, and charges for it."""

    def __init__(
        self,
        *,
        transactions: Transactions,
        admission: Admission,
        books: Books,
        embedder: Embedder,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self._transactions = transactions
        self._admission = admission
        self._books = books
        self._embedder = embedder
        self._metrics = metrics
        self._limits = limits

    async def embed(
        self,
        caller: str,
        resolved: Resolved,
        texts: list[str],
        *,
        key: Principal | None = None,
        claim: Claim | None = None,
    ) -> Embedded:
        """Embed texts; their charge is committed and split before the vectors go out.

        caller: its account. key: the API key whose turn it takes and whose budget it draws on. claim: of its
        idempotency key, looked up. Raises TooBusyError, PromptTooLong, InsufficientCredit, BudgetExceeded or
        RequestInProgressError before any work that costs more than counting tokens.
        """
        model, request_id = resolved.model, resolved.request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        usage = Usage(prompt_tokens=await asyncio.to_thread(self._count, texts), completion_tokens=0)
        intent = await self._admission.admit(
            caller,
            request_id,
            maximum_nano=model.price.charge_nano(usage),
            maximum_tokens=usage.prompt_tokens,
            key=key,
            claim=claim,
        )
        try:
            try:
                async with within(asyncio.get_running_loop().time() + self._limits.answer_s):
                    vectors = await asyncio.to_thread(self._embedder.embed, texts)
            except Exception as error:
                await self._admission.void(intent, type(error).__name__)
                raise
            attributed = await self._record(intent, resolved, texts, usage, vectors, claim)
        finally:
            self._admission.ended(request_id)
        self._metrics.observe_usage(model, usage)
        self._metrics.observe_split(attributed)
        return Embedded(request_id=request_id, model=model.name, vectors=vectors, usage=usage)

    async def _record(
        self,
        intent: Intent,
        resolved: Resolved,
        texts: list[str],
        usage: Usage,
        vectors: NDArray[np.float32],
        claim: Claim | None,
    ) -> dict[str, Any]:
        """Commit usage, charge, split and what a repeat will be given; returns the attribution object."""
        model = resolved.model
        salt = random_bytes()
        record = UsageRecord(
            served_model=model.name,
            base_model=model.base,
            adapter=None,
            usage=usage,
            finish_reason="stop",
            price=model.price,
            price_index=model.price_index,
            prompt_digest=salted_digest(salt, texts),
            answer_digest=salted_digest(salt, []),
        )
        inputs = SealedInputs(
            instruction="",
            policy_index=model.terms.policy_index,
            adapter_index=None,
            messages=None,
            prompt_ids=(),
            passages=(),
            choices=(),
        )
        charge = Charge.of(intent, record, salt=salt, inputs=inputs, terms=model.terms, resolved=resolved)

        def commit(transaction: Transaction) -> dict[str, Any]:
            attributed = charge.write(self._books, transaction)
            if claim is not None and self._limits.replay_hours:
                claim.keep(transaction, VECTORS_TYPE, vectors.astype("<f4").tobytes())
            return attributed

        return await self._transactions.commit("usage", commit, charge.touches)

    def _count(self, texts: list[str]) -> int:
        """Tokens of all texts together; raises PromptTooLong when one of them would not be seen whole."""
        counts = [self._embedder.count_tokens([text]) for text in texts]
        if max(counts) > self._embedder.max_tokens:
            raise PromptTooLong(tokens=max(counts), limit_tokens=self._embedder.max_tokens)
        return sum(counts)
