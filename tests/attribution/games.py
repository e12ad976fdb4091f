"""Games to play in tests, and slow definitions to hold the estimators to."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
from hypothesis import strategies as st

from attribution import Player, ValueTable, all_coalitions


def documents(count: int) -> list[Player]:
    return [Player(kind="document", id=f"doc_{i}") for i in range(count)]


@st.composite
def player_lists(draw, most=5):
    """Adapters and documents in any order, at least one player in all."""
    kinds = draw(st.lists(st.sampled_from(["adapter", "document"]), min_size=1, max_size=most))
    return tuple(Player(kind=kind, id=f"{i}") for i, kind in enumerate(kinds))


@st.composite
def any_games(draw, most=5):
    """Every coalition worth anything, over an answer of one to three tokens."""
    players = draw(player_lists(most))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return ValueTable(players=players, values=random.uniform(-6, 0, (1 << len(players), draw(st.integers(1, 3)))))


@st.composite
def pairwise_games(draw, most=7):
    """Worth the sum of what the players, and the pairs among them, are worth."""
    players = draw(player_lists(most))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    interactions = random.uniform(-1, 1, (len(players), len(players)))
    rows = all_coalitions(len(players)).astype(float)
    values = np.einsum("mi,ij,mj->m", rows, interactions, rows)
    return ValueTable(players=players, values=(values - values.max())[:, None])


def mean_over_orders(table: ValueTable, keep_unions_together: bool) -> np.ndarray:
    """What each player adds on arrival, averaged over arrival orders: Shapley's definition, or Owen's."""
    players = table.players
    worth = table.values.sum(axis=1)
    added, orders = np.zeros(len(players)), 0
    for order in permutations(range(len(players))):
        switches = sum(players[a].kind != players[b].kind for a, b in pairwise(order))
        if keep_unions_together and switches > 1:
            continue
        orders += 1
        mask = 0
        for player in order:
            added[player] += worth[mask | 1 << player] - worth[mask]
            mask |= 1 << player
    return added / orders
