"""Games recorded from a real model: every coalition of some answers scored once, so that estimators replay for free."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attribution import Player, ValueTable

# A ten-thousandth of a nat is a tenth of the embedded engine's scoring noise.
_DECIMALS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedAnswer:
    """One answer: what was asked, the text that was emitted, and the value of every coalition.

    holders: ids of the documents that hold what was asked for, retrieved or not.
    """

    question: str
    answer: str
    holders: tuple[str, ...]
    game: ValueTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """Answers scored by one engine, and the standard error in nats that it declares for an evaluation."""

    engine: str
    noise_nats: float
    answers: tuple[RecordedAnswer, ...]

    def write(self, path: Path) -> None:
        """Write JSON with a line for each answer."""
        lines = ",\n".join(json.dumps(_answer_to_json(answer), ensure_ascii=False) for answer in self.answers)
        head = json.dumps({"engine": self.engine, "noise_nats": self.noise_nats})
        path.write_text(f'{head[:-1]}, "answers": [\n{lines}\n]}}\n', encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read what `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        answers = tuple(_answer_from_json(answer) for answer in data["answers"])
        return cls(engine=data["engine"], noise_nats=data["noise_nats"], answers=answers)


def _answer_to_json(answer: RecordedAnswer) -> dict[str, Any]:
    return {
        "question": answer.question,
        "answer": answer.answer,
        "holders": list(answer.holders),
        "players": [asdict(player) for player in answer.game.players],
        "values_nats": answer.game.values.round(_DECIMALS).tolist(),
    }


def _answer_from_json(data: dict[str, Any]) -> RecordedAnswer:
    players = tuple(Player(**player) for player in data["players"])
    game = ValueTable(players=players, values=np.array(data["values_nats"]))
    return RecordedAnswer(question=data["question"], answer=data["answer"], holders=tuple(data["holders"]), game=game)
