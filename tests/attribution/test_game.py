from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution import AttributionError, Player, ValueTable, all_coalitions, tabulate

from .games import any_games, documents


@given(st.integers(1, 7))
def test_every_coalition_once(n_players):
    coalitions = all_coalitions(n_players)
    assert coalitions.shape == (2**n_players, n_players)
    assert len(np.unique(coalitions, axis=0)) == 2**n_players


@given(any_games())
def test_a_table_gives_back_what_was_scored(table):
    again = tabulate(table.score, table.players)
    np.testing.assert_array_equal(again.values, table.values)
    reverse = all_coalitions(len(table.players))[::-1]
    np.testing.assert_array_equal(again.score(reverse), table.values[::-1])


def test_an_adapter_and_a_document_may_share_a_name():
    players = (Player(kind="adapter", id="x"), Player(kind="document", id="x"))
    assert ValueTable(players=players, values=np.zeros((4, 1))).players == players
    assert players[0].key != players[1].key


@pytest.mark.parametrize(("kind", "player_id"), [("base", "x"), ("document", "")])
def test_what_is_not_a_player_is_refused(kind, player_id):
    with pytest.raises(AttributionError):
        Player(kind=kind, id=player_id)


def test_a_table_with_missing_rows_is_refused():
    with pytest.raises(AttributionError, match=r"shape \(8, tokens\)"):
        ValueTable(players=tuple(documents(3)), values=np.zeros((7, 2)))
