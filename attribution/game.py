"""The game: who plays, which coalitions exist, and what each coalition is worth.

A coalition is a row of booleans, one for each player, because a stack of rows is at once what a scorer walks over to
render prompts and the matrix that an estimator multiplies. Inside this package, where coalitions are counted and
looked up, the same row is an integer whose bit i is player i.

A coalition's value is a row too: log p of each answer token in nats, given what the coalition's players bring. Its sum
over tokens is v(S); keeping the tokens apart gives every score by token for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from attribution.errors import AttributionError

Kind = Literal["adapter", "document"]
Coalitions = NDArray[np.bool_]
Values = NDArray[np.float64]
Score = Callable[[Coalitions], Values]
"""Coalitions (n_coalitions, n_players) in, log p of each answer token (n_coalitions, n_tokens) out, in nats."""

DEFAULT_FLOOR_NATS = math.log(1e-3)

# Subtracting a log-sum-exp in float32 can leave a certain token a few of these above log 1.
_ROUNDING_NATS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Player:
    """Something that can be left out of an answer: an adapter, or a document with all its passages."""

    kind: Kind
    id: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise AttributionError(f"a player is an adapter or a document, not {self.kind!r}")
        if not self.id:
            raise AttributionError("a player needs an id")

    @property
    def key(self) -> bytes:
        """What names the player when a tie is broken."""
        return f"{self.kind}:{self.id}".encode()


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueTable:
    """The value of every coalition: the whole game, from which any estimator can be replayed without a model.

    values: (2^n_players, n_tokens) in nats; the row of a coalition is the sum of 2^i over its players i.
    """

    players: tuple[Player, ...]
    values: Values

    def __post_init__(self) -> None:
        check_players(self.players)
        object.__setattr__(self, "values", checked_values(self.values, 1 << len(self.players)))

    def score(self, coalitions: Coalitions) -> Values:
        """Look up what a scorer would have computed."""
        return self.values[coalitions @ (1 << np.arange(len(self.players)))]


def tabulate(score: Score, players: Sequence[Player]) -> ValueTable:
    """Score every coalition once."""
    return ValueTable(players=tuple(players), values=score(all_coalitions(len(players))))


def all_coalitions(n_players: int) -> Coalitions:
    """Every coalition, in the row order of `ValueTable`: the empty one first, the full one last."""
    return coalition_rows(range(1 << n_players), n_players)


def coalition_rows(masks: Sequence[int], n_players: int) -> Coalitions:
    """Turn integers whose bit i is player i into boolean rows (len(masks), n_players)."""
    return np.array([[bool(mask >> i & 1) for i in range(n_players)] for mask in masks], dtype=np.bool_)


def unions(players: Sequence[Player]) -> list[list[int]]:
    """Group player positions by kind: the unions of the Owen game. Kinds without a player are left out."""
    groups = [[i for i, player in enumerate(players) if player.kind == kind] for kind in get_args(Kind)]
    return [group for group in groups if group]


def check_players(players: Sequence[Player]) -> None:
    """Refuse a game that nobody plays, and one where somebody plays twice."""
    if not players:
        raise AttributionError("there are no players, so there is nothing to attribute")
    for i, player in enumerate(players):
        if player in players[:i]:
            raise AttributionError(f"{player.kind} {player.id} plays twice: give each document and adapter once")


def checked_values(values: Values, n_coalitions: int) -> Values:
    """Return a read-only float64 copy of what a scorer returned, (n_coalitions, n_tokens ≥ 1) log-probabilities.

    Raises AttributionError on another shape, an empty answer, NaN, infinity, or a probability above one.
    """
    checked = np.array(values, dtype=np.float64)
    if checked.ndim != 2 or len(checked) != n_coalitions:
        raise AttributionError(f"values must have shape ({n_coalitions}, tokens), not {checked.shape}")
    if checked.shape[1] == 0:
        raise AttributionError("the answer is empty, so it has no likelihood to attribute")
    if not np.isfinite(checked).all():
        raise AttributionError("the scorer returned NaN or infinity")
    if checked.max() > _ROUNDING_NATS:
        raise AttributionError(f"the scorer returned {checked.max():g}, but a log-probability is never above 0")
    checked.flags.writeable = False
    return checked


def clipped(values: Values, floor_nats: float) -> Values:
    """Bound each token's log p to [floor_nats, 0], so that one surprising token cannot carry an answer."""
    if not (math.isfinite(floor_nats) and floor_nats < 0):
        raise AttributionError(f"the floor must be a finite log-probability below 0, not {floor_nats}")
    return values.clip(floor_nats, 0.0)
