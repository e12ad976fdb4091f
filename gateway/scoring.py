"""The game of one answer: its players, and what each coalition's prompt is worth to the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

import attribution
from gateway.adapters import AdapterClaim
from gateway.answers import SealedInputs
from gateway.engines import Engine
from gateway.grounding import ground


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """An explanation and what it took. tokens_scored: tokens that the engine processed for it."""

    explanation: attribution.Explanation
    tokens_scored: int


def players_of(inputs: SealedInputs, adapter: AdapterClaim | None) -> tuple[attribution.Player, ...]:
    """The players of an answer: its documents in the order they were read, each once, then the adapter."""
    documents = dict.fromkeys(passage.document for passage in inputs.passages)
    players = [attribution.Player(kind="document", id=document) for document in documents]
    if adapter is not None:
        players.append(attribution.Player(kind="adapter", id=adapter.name))
    return tuple(players)


def is_game(inputs: SealedInputs, adapter: AdapterClaim | None) -> bool:
    """Whether there is something to find out: a token was emitted, and something took part that could be left out."""
    return bool((adapter or inputs.passages) and any(inputs.choices))


def choose(estimator: attribution.Estimator, n_players: int) -> attribution.Estimator:
    """The configured estimator, or `two-end` where `exact` would need too many coalitions."""
    too_many = estimator is attribution.EXACT and n_players > attribution.EXACT_PLAYERS_MAX
    return attribution.TWO_END if too_many else estimator


async def explain(
    engine: Engine, inputs: SealedInputs, adapter: AdapterClaim | None, estimator: attribution.Estimator, tie_key: bytes
) -> Scored | None:
    """Score the coalitions that the estimator asks for, by teacher forcing on the emitted token ids.

    Returns None when there is no game: no token was emitted, or nothing took part that could be left out.
    Raises AttributionError on values that are no log-probabilities, EngineUnavailable when the engine is gone.
    """
    if not is_game(inputs, adapter):
        return None
    players = players_of(inputs, adapter)
    plan = attribution.plan(players, choose(estimator, len(players)))
    values = np.empty((len(plan.coalitions), len(inputs.answer_ids)))
    said = [answer for answer in inputs.choices if answer]
    tokens_scored = 0
    with_adapter = plan.coalitions[:, [player.kind == "adapter" for player in players]].any(axis=1)
    for present in (False, True):
        rows = np.flatnonzero(with_adapter == present)
        if not len(rows):
            continue
        prompts = [await _prompt(engine, inputs, players, plan.coalitions[row]) for row in rows]
        resident = adapter.resident_name if adapter and present else None
        scores = [await engine.score(prompts, answer, adapter=resident) for answer in said]
        values[rows] = np.hstack([score.logprobs for score in scores])
        tokens_scored += sum(score.tokens_processed for score in scores)
    explanation = attribution.conclude(plan, values, noise_nats=engine.noise_nats, tie_key=tie_key)
    return Scored(explanation=explanation, tokens_scored=tokens_scored)


async def _prompt(
    engine: Engine,
    inputs: SealedInputs,
    players: Sequence[attribution.Player],
    coalition: np.ndarray[Any, np.dtype[np.bool_]],
) -> list[int]:
    """The conversation rendered with only the coalition's documents, in their original order."""
    if inputs.messages is None or not inputs.passages:
        return list(inputs.prompt_ids)
    present = {player.id for player, is_in in zip(players, coalition, strict=True) if is_in}
    sources = [passage.source for passage in inputs.passages if passage.document in present]
    return await engine.render(ground(inputs.messages, sources, inputs.instruction), inputs.tools)


def table_digest(token_scores_nats: Sequence[Sequence[float]]) -> str:
    """SHA-256, in hex, of the per-token scores as the attribution object prints them."""
    return hashlib.sha256(orjson.dumps(token_scores_nats)).hexdigest()
