"""Teacher forcing on a vLLM server, by whichever of two ways it allows.

The standard route gives the log-probability of each token of a prompt, and for that reads the whole prompt anew. The
other, there when the server was started with `--enable-scale-out`, reads only what its prefix cache does not hold. What
it then says of positions that it did not read is rubbish; so a position counts only where the token that the server
speaks of is the one that was sent, and a prompt with any other is scored again by the standard route. Each call has a
salt of its own, so that its prompts share with one another, but not with the answer's own generation, which would put
the positions that matter into the cache.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from gateway.engines.base import (
    AdapterNotLoaded,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    PromptTooLong,
    Scores,
)
from gateway.engines.vllm.bodies import COMPLETIONS
from gateway.engines.vllm.client import VllmClient

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHED = "/inference/v1/generate"
# Lower goes first; callers' requests have priorities near 0.
SCORING_PRIORITY = 1_000_000
# A log-probability is at most 0, up to the rounding of a softmax.
_ROUNDING_NATS = 1e-6

log = structlog.get_logger(__name__)


class Scorer:
    """Scores on one server. concurrency: prompts at once. priorities: whether the server sorts by them."""

    def __init__(self, client: VllmClient, *, context_tokens: int, concurrency: int, priorities: bool) -> None:
        self._client = client
        self._context_tokens = context_tokens
        self._slots = asyncio.Semaphore(concurrency)
        self._priorities = priorities
        self.cached = False
        self.open = 0

    async def probe(self, ids: Sequence[int], *, model: str, tolerance_nats: float) -> NDArray[np.float64]:
        """Find out which ways there are, with a text of a few tokens; returns its log-probabilities, sets `cached`.

        Raises EngineUnavailable when there is no way.
        """
        expected = await self.logprobs(ids, model=model, adapter=None)
        try:
            found, _ = await self._quick(ids[:1], ids[1:], model, None, secrets.token_hex(16))
        except EngineError as error:
            log.info("scoring_without_prefix_cache", reason=str(error))
            return expected
        self.cached = found is not None and float(np.abs(found - expected).max()) <= tolerance_nats
        if not self.cached:
            log.warning("scoring_without_prefix_cache", reason="the two ways of scoring disagree")
        return expected

    async def logprobs(self, ids: Sequence[int], *, model: str, adapter: str | None) -> NDArray[np.float64]:
        """Log-probability of each token after the first, by the standard route."""
        return await self._standard(ids[:1], ids[1:], model, adapter)

    async def score(
        self, prompts: Sequence[Sequence[int]], answer: Sequence[int], *, model: str, adapter: str | None
    ) -> Scores:
        """See Engine.score. model: the server's name for what scores. adapter: the same, None for the base."""
        # In sorted order, prompts that begin alike follow one another, and find their beginning in the cache.
        unique = sorted({tuple(prompt) for prompt in prompts})
        salt = secrets.token_hex(16)
        self.open += 1
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(prompt, answer, model, adapter, salt)) for prompt in unique]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self.open -= 1
        found = {prompt: task.result() for prompt, task in zip(unique, tasks, strict=True)}
        return Scores(
            logprobs=np.array([found[tuple(prompt)][0] for prompt in prompts], dtype=np.float64),
            tokens_processed=sum(tokens for _, tokens in found.values()),
        )

    async def _one(
        self, prompt: Sequence[int], answer: Sequence[int], model: str, adapter: str | None, salt: str
    ) -> tuple[NDArray[np.float64], int]:
        """Log-probabilities, and how many tokens the model was run on for them."""
        async with self._slots:
            tokens = 0
            if self.cached and len(prompt) + len(answer) < self._context_tokens:
                try:
                    found, tokens = await self._quick(prompt, answer, model, adapter, salt)
                except AdapterNotLoaded:
                    raise
                except EngineError:  # rubbish that is not even a number makes the server refuse
                    found = None
                if found is not None:
                    return found, tokens
            return await self._standard(prompt, answer, model, adapter), tokens + len(prompt) + len(answer)

    async def _quick(
        self, prompt: Sequence[int], answer: Sequence[int], model: str, adapter: str | None, salt: str
    ) -> tuple[NDArray[np.float64] | None, int]:
        """By way of the prefix cache: None where what came back is not of the answer; and the tokens that were read."""
        sent = [*prompt, *answer]
        body = {
            "model": model,
            "token_ids": sent,
            "cache_salt": salt,
            "sampling_params": {
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": 0,
                "skip_reading_prefix_cache": False,
                # Without this the request ends the engine, for it decodes rubbish.
                "detokenize": False,
            },
        }
        reply = await self._post(CACHED, body, adapter)
        positions = reply.get("prompt_logprobs")
        read = sum(1 for position, token in zip(positions or (), sent, strict=False) if _of(position, token))
        return accepted(positions, answer), read + 1

    async def _standard(
        self, prompt: Sequence[int], answer: Sequence[int], model: str, adapter: str | None
    ) -> NDArray[np.float64]:
        """By the standard route, which reads every token.

        The server generates a token after each prompt, and must have room for it. Where prompt and answer leave none,
        the answer's last token is not sent but asked for, as a candidate for the token that is generated.
        """
        asked = list(answer[-1:]) if len(prompt) + len(answer) >= self._context_tokens else []
        sent = list(answer[: len(answer) - len(asked)])
        body = {
            "model": model,
            "prompt": [*prompt, *sent],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        if asked:
            body |= {"logprobs": 1, "logprob_token_ids": asked, "return_tokens_as_token_ids": True}
        choice = _only_choice(await self._post(COMPLETIONS, body, adapter))
        found = accepted(choice.get("prompt_logprobs"), sent)
        last = accepted(_candidates(choice), asked)
        if found is None or last is None:
            raise EngineUnavailable("the vLLM server scored other tokens than it was sent")
        return np.concatenate([found, last])

    async def _post(self, path: str, body: dict[str, Any], adapter: str | None) -> dict[str, Any]:
        if self._priorities:
            body["priority"] = SCORING_PRIORITY
        try:
            reply = await self._client.post(path, body, adapter=adapter, context_tokens=self._context_tokens)
        except (EngineRefused, PromptTooLong) as error:  # what is asked here is ours, and no caller's
            raise EngineUnavailable(f"the vLLM server refuses to score: {error}") from error
        if not isinstance(reply, dict):
            raise EngineUnavailable("the vLLM server answered a scoring with something else")
        return reply


def accepted(positions: Any, tokens: Sequence[int]) -> NDArray[np.float64] | None:
    """Log-probabilities at the last positions, in nats; None unless each is a number, and of the token sent there.

    positions: for each position, an object that has the token's id as its key, as vLLM writes them.
    """
    if not tokens:
        return np.empty(0)
    if not isinstance(positions, list) or len(positions) < len(tokens):
        return None
    found = []
    for position, token in zip(positions[-len(tokens) :], tokens, strict=True):
        entry = _of(position, token)
        value = entry.get("logprob") if isinstance(entry, dict) else None
        if not isinstance(value, float | int) or not math.isfinite(value) or value > _ROUNDING_NATS:
            return None
        found.append(min(float(value), 0.0))
    return np.array(found)


def _of(position: Any, token: int) -> Any:
    """What a position says of a token; None where it says nothing."""
    return position.get(str(token)) if isinstance(position, dict) else None


def _only_choice(reply: dict[str, Any]) -> dict[str, Any]:
    match reply.get("choices"):
        case [dict(choice)]:
            return choice
    raise EngineUnavailable("the vLLM server answered a scoring with something else")


def _candidates(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates for the generated token, written as the positions of a prompt are."""
    match choice.get("logprobs"):
        case {"top_logprobs": [dict(candidates)]}:
            return [{name.removeprefix("token_id:"): {"logprob": value} for name, value in candidates.items()}]
    return []
