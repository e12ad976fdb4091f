"""Teacher forcing over many prompts that share beginnings."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from gateway.engines.base import Scores
from gateway.engines.kv_cache import cut
from gateway.engines.language_model import PREFILL_TOKENS, LanguageModel, token_logprobs


def score(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answer: Sequence[int], *, adapter: str | None
) -> Generator[None, None, Scores]:
    """Score one answer after each prompt; yields wherever the model may do something else first.

    In sorted order the prompts walk the trie of their beginnings depth first, so that one cache, cut back to what the
    next prompt shares, runs the model once on each of the trie's nodes.
    """
    logprobs = np.empty((len(prompts), len(answer)), dtype=np.float64)
    cache = model.new_cache()
    cached: list[int] = []
    tokens_processed = 0
    for row in sorted(range(len(prompts)), key=lambda row: list(prompts[row])):
        # The answer's last token is predicted, and predicts nothing; the prompt's last token predicts the first.
        sequence = [*prompts[row], *answer[:-1]]
        shared = min(_common_length(cached, sequence), len(prompts[row]) - 1)
        cut(cache, shared)
        rest = sequence[shared:]
        tokens_processed += len(rest)
        while len(rest) > max(len(answer), PREFILL_TOKENS):
            piece = min(PREFILL_TOKENS, len(rest) - len(answer))
            model.extend(rest[:piece], cache, adapter=adapter)
            rest = rest[piece:]
            yield
        logits = model.extend(rest, cache, adapter=adapter, keep=len(answer))
        logprobs[row] = token_logprobs(logits, answer).cpu().numpy()
        cached = sequence
        yield
    return Scores(logprobs=logprobs, tokens_processed=tokens_processed)


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
