"""The life of an embedding: admit → embed → meter and record → reply. No contributor plays a part in it."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import structlog
from numpy.typing import NDArray

from gateway import answers
from gateway.answers import AnswerRow, SealedInputs, salted_digest
from gateway.catalogue import ServedModel
from gateway.engines import PromptTooLong
from gateway.identifiers import new_id, now
from gateway.metrics import Metrics
from gateway.objects import attributed_object, attribution_record, pending_object
from gateway.transactions import Transactions
from metering import Books, Transaction, Usage, UsageRecord, split
from retrieval import Embedder


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """vectors: float32 (n_texts, dimension), unit rows."""

    request_id: str
    vectors: NDArray[np.float32]
    usage: Usage


class Embeddings:
    """Embeds, and charges for it."""

    def __init__(self, *, transactions: Transactions, books: Books, embedder: Embedder, metrics: Metrics) -> None:
        self._transactions = transactions
        self._books = books
        self._embedder = embedder
        self._metrics = metrics

    async def embed(self, caller: str, model: ServedModel, texts: list[str]) -> Embedded:
        """Embed texts; their charge is committed and split before the vectors go out.

        Raises PromptTooLong or InsufficientCredit before any work that costs more than counting tokens.
        """
        request_id = new_id("req")
        structlog.contextvars.bind_contextvars(request_id=request_id)
        usage = Usage(prompt_tokens=await asyncio.to_thread(self._count, texts), completion_tokens=0)
        charge_nano = model.price.charge_nano(usage)
        intent = await self._transactions.commit(
            "intent", lambda t: self._books.admit(t, caller, charge_nano, request_id)
        )
        try:
            vectors = await asyncio.to_thread(self._embedder.embed, texts)
        except Exception as error:
            reason = type(error).__name__
            await self._transactions.commit("void", lambda t: self._books.void(t, intent, reason))
            raise
        salt = secrets.token_bytes(32)
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
        terms = model.terms
        inputs = SealedInputs(
            instruction="",
            policy_index=terms.policy_index,
            adapter_index=None,
            messages=None,
            prompt_ids=(),
            passages=(),
            answer_ids=(),
        )
        lines = split(charge_nano, model.policy, (), request_id)

        def commit(transaction: Transaction) -> dict[str, Any]:
            usage_index = self._books.record_usage(transaction, intent, record)
            credit = attribution_record(request_id, inputs, terms, None, lines, {})
            record_index = self._books.record_attribution(transaction, credit)
            attributed = attributed_object(pending_object(request_id, record), inputs, terms, None, lines, record_index)
            row = AnswerRow(
                request_id=request_id,
                caller=caller,
                status="not_applicable",
                created_at=now(),
                usage_index=usage_index,
                record_index=record_index,
                attempts=0,
                salt=salt,
                inputs=None,
                attribution=orjson.dumps(attributed),
            )
            answers.insert(transaction, row)
            return attributed

        attributed = await self._transactions.commit("usage", commit)
        self._metrics.observe_usage(model, usage)
        self._metrics.observe_credit(attributed)
        return Embedded(request_id=request_id, vectors=vectors, usage=usage)

    def _count(self, texts: list[str]) -> int:
        """Tokens of all texts together; raises PromptTooLong when one of them would not be seen whole."""
        counts = [self._embedder.count_tokens([text]) for text in texts]
        if max(counts) > self._embedder.max_tokens:
            raise PromptTooLong(tokens=max(counts), limit_tokens=self._embedder.max_tokens)
        return sum(counts)
