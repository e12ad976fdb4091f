"""The game of one answer: its players, and what each coalition's prompt is worth to the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

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
    Raises AttributionError on values that are no log-probabilities or prompts that the engine did not read, and
    EngineUnavailable when it is gone.
    """
    if not is_game(inputs, adapter):
        return None
    players = players_of(inputs, adapter)
    plan = attribution.plan(players, choose(estimator, len(players)))
    values = np.empty((len(plan.coalitions), len(inputs.answer_ids)))
    said = [answer for answer in inputs.choices if answer]
    prompts = await _prompts(engine, inputs, players, plan.coalitions)
    tokens_scored = 0
    with_adapter = plan.coalitions[:, [player.kind == "adapter" for player in players]].any(axis=1)
    for present in (False, True):
        rows = np.flatnonzero(with_adapter == present)
        if not len(rows):
            continue
        resident = adapter.resident_name if adapter and present else None
        scores = [await engine.score([prompts[row] for row in rows], answer, adapter=resident) for answer in said]
        values[rows] = np.hstack([score.logprobs for score in scores])
        tokens_scored += sum(score.tokens_processed for score in scores)
    explanation = attribution.conclude(plan, values, noise_nats=engine.noise_nats, tie_key=tie_key)
    return Scored(explanation=explanation, tokens_scored=tokens_scored)


async def _prompts(
    engine: Engine, inputs: SealedInputs, players: Sequence[attribution.Player], coalitions: NDArray[np.bool_]
) -> list[list[int]]:
    """The conversation rendered with only each coalition's documents, in their original order.

    Raises AttributionError when with all of them it is not what the engine read: what is compared must differ in the
    players alone.
    """
    if inputs.messages is None or not inputs.passages:
        return [list(inputs.prompt_ids)] * len(coalitions)
    everyone = frozenset(passage.document for passage in inputs.passages)
    asked = [everyone.intersection(p.id for p, is_in in zip(players, row, strict=True) if is_in) for row in coalitions]
    rendered = {}
    for documents in {everyone, *asked}:  # each once: coalitions may differ in the adapter alone
        sources = [passage.source for passage in inputs.passages if passage.document in documents]
        rendered[documents] = await engine.render(ground(inputs.messages, sources, inputs.instruction), inputs.tools)
    if tuple(rendered[everyone]) != inputs.prompt_ids:
        raise attribution.AttributionError("the engine does not render the conversation as it was when it answered")
    return [rendered[documents] for documents in asked]


def table_digest(token_scores_nats: Sequence[Sequence[float]]) -> str:
    """SHA-256, in hex, of the per-token scores as the attribution object prints them."""
    return hashlib.sha256(orjson.dumps(token_scores_nats)).hexdigest()
