"""Laws that must hold on answers of the real model, from the table that was recorded with it."""

from __future__ import annotations

import pytest

from attribution import TWO_END
from benchmarks.attribution.__main__ import TABLE
from benchmarks.attribution.recording import Recording
from benchmarks.attribution.replay import idle_changes_nats, lead, replay, summarise


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.read(TABLE)


def test_the_table_holds_whole_games_of_the_demos_questions(recording: Recording) -> None:
    assert len(recording.answers) >= 10
    for answer in recording.answers:
        assert [player.kind for player in answer.game.players] == ["document"] * 4 + ["adapter"]
        assert answer.game.values.shape[0] == 2**5


def test_two_end_misplaces_on_average_at_most_a_twentieth_of_the_money(recording: Recording) -> None:
    assert summarise(replay(recording, TWO_END)).tv <= 0.05


def test_the_document_that_holds_the_answer_leads_in_eight_of_ten(recording: Recording) -> None:
    assert sum(lead(answer, recording.noise_nats) for answer in recording.answers[:10]) >= 8


def test_leaving_out_a_document_of_no_share_moves_an_answer_by_a_nat_at_most(recording: Recording) -> None:
    changes = [change for answer in recording.answers for change in idle_changes_nats(answer, recording.noise_nats)]
    assert changes
    assert max(changes) < 1.0
