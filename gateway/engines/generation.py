"""One answer in the making, and the batch in which answers grow together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from gateway.engines.base import Delta, EngineError, FinishReason, SamplingParams
from gateway.engines.kv_cache import keep_rows, stack
from gateway.engines.language_model import LanguageModel
from gateway.engines.sampling import Sampler
from gateway.engines.tokenstream import TokenStream


class Generation:
    """The state of one answer outside the model: what may be sent of it, and whether it has ended.

    emit: takes each Delta, and the error if there is one; called on the engine's thread. Setting `cancelled` from any
    thread ends the answer within a step, without another word.
    """

    def __init__(
        self,
        *,
        prompt: Sequence[int],
        adapter: str | None,
        sampling: SamplingParams,
        end_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        emit: Callable[[Delta | EngineError], None],
    ) -> None:
        self.prompt = list(prompt)
        self.adapter = adapter
        self.cancelled = False
        self._sampler = Sampler(sampling)
        self._stream = TokenStream(decode, sampling.stop)
        self._left = sampling.max_tokens
        self._end_ids = end_ids
        self._emit = emit

    def advance(self, logits: torch.Tensor) -> int | None:
        """Choose the next token and send what that settles; return the token, or None when the answer has ended."""
        token_id = self._sampler.choose(logits)
        if token_id in self._end_ids:
            self._end(self._stream.finish(), "stop")
            return None
        self._left -= 1
        released = self._stream.push(token_id)
        if self._stream.stopped:
            self._end(released, "stop")
            return None
        if self._left == 0:
            ids, text = self._stream.finish()
            self._end((released[0] + ids, released[1] + text), "stop" if self._stream.stopped else "length")
            return None
        if released[0]:
            self._emit(Delta(token_ids=released[0], text=released[1]))
        return token_id

    def fail(self, error: EngineError) -> None:
        """End the answer with an error."""
        self._emit(error)

    def _end(self, released: tuple[tuple[int, ...], str], reason: FinishReason) -> None:
        self._emit(Delta(token_ids=released[0], text=released[1], finish_reason=reason))


@dataclass
class _Row:
    generation: Generation
    length: int  # tokens in the cache
    next_id: int  # chosen, not yet in the cache


class Batch:
    """Answers with the same adapter that take each step in one forward pass.

    One cache holds them all, each row padded on the left to the longest; the padding is masked, and positions are
    counted without it. Much of a step's time goes into reading the weights, which a batch reads once.
    """

    def __init__(self, adapter: str | None) -> None:
        self.adapter = adapter
        self._rows: list[_Row] = []
        self._cache: DynamicCache | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, generation: Generation, next_id: int, cache: DynamicCache) -> None:
        """Add an answer whose prompt is in `cache` and whose first token is chosen."""
        self._rows.append(_Row(generation, cache.get_seq_length(), next_id))
        if self._cache is None:
            self._cache = cache
        else:
            stack(self._cache, cache)

    def step(self, model: LanguageModel) -> None:
        """Advance every answer by a token; those that end, or were cancelled, leave."""
        self._keep([index for index, row in enumerate(self._rows) if not row.generation.cancelled])
        if self._cache is None:
            return
        ids, lengths = [row.next_id for row in self._rows], [row.length for row in self._rows]
        logits = model.step(ids, lengths, self._cache, adapter=self.adapter)
        going_on = []
        for index, row in enumerate(self._rows):
            row.length += 1
            next_id = row.generation.advance(logits[index])
            if next_id is not None:
                row.next_id = next_id
                going_on.append(index)
        self._keep(going_on)

    def fail(self, error: EngineError) -> None:
        """End every answer with an error."""
        for row in self._rows:
            row.generation.fail(error)
        self._keep([])

    def _keep(self, indexes: list[int]) -> None:
        if len(indexes) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in indexes]
        if not self._rows:
            self._cache = None
        elif self._cache is not None:
            keep_rows(self._cache, indexes, max(row.length for row in self._rows))
