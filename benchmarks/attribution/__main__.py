"""Replays every estimator over the recorded games and prints what each misplaces, at what cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from attribution import ESTIMATORS, TWO_END
from benchmarks.attribution.recording import Recording
from benchmarks.attribution.replay import Summary, idle_changes_nats, lead, replay, summarise

TABLE = Path(__file__).with_name("table.json")


def main() -> None:
    """Print the comparison and, last, the line that scripts read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attribution", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE, help="the recorded games (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="score everything again on the real model first")
    parser.add_argument("--questions", type=int, default=12, help="how many to record (default: %(default)s)")
    arguments = parser.parse_args()

    if arguments.record:
        from benchmarks.attribution.record import record  # noqa: PLC0415 - needs the engine, which replaying does not

        record(arguments.questions).write(arguments.table)
    recording = Recording.read(arguments.table)
    summaries = {name: summarise(replay(recording, estimator)) for name, estimator in ESTIMATORS.items()}
    print(f"{len(recording.answers)} answers, scored by {recording.engine}\n")
    print_table(summaries)
    print_documents(recording)
    print("RESULT " + json.dumps(result(summaries)))


def print_table(summaries: dict[str, Summary]) -> None:
    """Print a row for each estimator."""
    print("estimator      evaluations  TV [95 % of the mean]  TV max    LDS  of ceiling  rank corr.")
    for name, s in summaries.items():
        interval = f"{s.tv:.3f} [{s.tv_low:.3f}, {s.tv_high:.3f}]"
        print(
            f"{name:<14} {s.evaluations:>11.1f}  {interval:<21}  {s.tv_max:>6.3f}"
            f"  {s.lds:>5.3f}  {s.lds_ratio:>10.3f}  {s.rank:>10.3f}"
        )
    print("\nTV: fraction of the contributors' pool that goes elsewhere than under exact; LDS: over all coalitions.\n")


def print_documents(recording: Recording) -> None:
    """Print whether the document that holds an answer leads, and what documents of no share are worth."""
    found = [lead(answer, recording.noise_nats) for answer in recording.answers]
    idle = [change for answer in recording.answers for change in idle_changes_nats(answer, recording.noise_nats)]
    print(f"the document that holds the answer takes the largest document share: {sum(found)} of {len(found)}")
    if idle:
        print(
            f"leaving out a document under 1 % ({len(idle)} of them) moves log p of an answer by ≤ {max(idle):.2f} nats"
        )
    print()


def result(summaries: dict[str, Summary]) -> dict[str, float | None]:
    """Return the figures under their published names; null is what is not measured yet."""
    two_end = summaries[TWO_END.name]
    return {
        "tv_two_end": round(two_end.tv, 4),
        "lds_ratio_two_end": round(two_end.lds_ratio, 4),
        "tv_kv_mask": None,
        "kv_mask_over_generation": None,
        "copycat_exact": None,
        "copycat_paraphrase": None,
        "coverage_95": None,
    }


if __name__ == "__main__":
    main()
