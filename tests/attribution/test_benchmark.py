from __future__ import annotations

import json
import math

import numpy as np
import pytest

from attribution import EXACT, LEAVE_ONE_OUT, TWO_END, ValueTable, all_coalitions
from benchmarks.attribution import __main__ as benchmark
from benchmarks.attribution.recording import RecordedAnswer, Recording
from benchmarks.attribution.replay import replay, summarise

from .games import documents


def recording(*worths):
    """Answers of one token to games given by the worth of each coalition."""
    answers = []
    for i, worth in enumerate(worths):
        players = tuple(documents(len(worth).bit_length() - 1))
        game = ValueTable(players=players, values=np.array(worth, dtype=float)[:, None])
        answers.append(RecordedAnswer(question=f"question {i}?", answer="yes", holders=(), game=game))
    return Recording(engine="by hand", noise_nats=0.001, answers=tuple(answers))


additive = all_coalitions(3) @ [1.0, 2.0, 0.5] - 5
# Two documents say the same, a third adds a little: leaving one out sees only the third.
redundant = [-3, -1, -1, -1, -2.5, -0.5, -0.5, -0.5]


def test_a_recording_reads_back_as_written(tmp_path):
    written = recording(additive, redundant)
    written.write(tmp_path / "table.json")
    read = Recording.read(tmp_path / "table.json")
    assert (read.engine, read.noise_nats) == ("by hand", 0.001)
    for before, after in zip(written.answers, read.answers, strict=True):
        assert (after.question, after.answer, after.game.players) == (
            before.question,
            before.answer,
            before.game.players,
        )
        np.testing.assert_allclose(after.game.values, before.game.values, atol=1e-4)


def test_exact_and_two_end_misplace_nothing_and_leave_one_out_much():
    games = recording(additive, redundant)
    for estimator in (EXACT, TWO_END):
        summary = summarise(replay(games, estimator))
        assert summary.tv == pytest.approx(0, abs=1e-6)
        assert summary.rank == pytest.approx(1)
    # Exact pays the redundant pair 1 each and the third .5; leave-one-out pays all to the third.
    misplaced = [comparison.tv for comparison in replay(games, LEAVE_ONE_OUT)]
    assert misplaced == pytest.approx([0, 0.8], abs=1e-5)


def test_scores_that_predict_every_coalition_reach_the_ceiling():
    (comparison,) = replay(recording(additive), TWO_END)
    assert comparison.lds == comparison.lds_ceiling == pytest.approx(1)


def test_a_single_player_has_no_rank():
    (comparison,) = replay(recording([-3, -1]), TWO_END)
    assert math.isnan(comparison.rank)
    assert comparison.tv == 0


def test_the_last_line_is_for_scripts(tmp_path, monkeypatch, capsys):
    recording(additive, redundant).write(tmp_path / "table.json")
    monkeypatch.setattr("sys.argv", ["benchmark", "--table", str(tmp_path / "table.json")])
    benchmark.main()
    *table, last = capsys.readouterr().out.splitlines()
    assert any(line.startswith("two-end") for line in table)
    assert last.startswith("RESULT ")
    result = json.loads(last.removeprefix("RESULT "))
    assert result["tv_two_end"] == 0
    assert result["tv_kv_mask"] is None
