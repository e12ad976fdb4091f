"""What the mean cosine finds, beside the cosine of the nearest text, on the demo's models and on its three corpora.

Each question should go to one model, or to none. The mean is what the gateway takes, here at its default threshold; the
nearest text has in each row the threshold that serves it best there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gateway.settings import RoutingSection, load
from retrieval import MiniLM

EXAMPLES = Path("examples")
NOBODY = -1
WISHES = ("Answer in telegram style.", "Wire the answer STOP", "Keep it as short as a telegram.")
FOR_NOBODY = (
    "Write a haiku about autumn.",
    "What is the capital of France?",
    "How do I sort a list in Python?",
    "Translate 'good morning' into Spanish.",
    "What is 17 times 23?",
    "Explain photosynthesis to a child.",
    "Give me a recipe for lentil soup.",
    "Who wrote Pride and Prejudice?",
    "Suggest a name for my new cat.",
    "What are the symptoms of the flu?",
    "How does a bill become a law?",
    "Write an email asking my boss for a day off.",
    "What is the difference between TCP and UDP?",
    "How many planets are in the solar system?",
    "Recommend three books about the Roman Empire.",
    "What should I pack for a beach holiday?",
    "How do vaccines work?",
    "Tell me a joke.",
    "Plan a workout for beginners.",
    "How do I remove a red wine stain?",
    "Who won the World Cup in 1998?",
    "Convert 5 miles to kilometres.",
    "Write a SQL query that counts orders by month.",
    "How can I sleep better?",
    "Why is the sky blue?",
    "What year did the Berlin Wall fall?",
    "How do I change a bicycle tyre?",
    "What is inflation in economics?",
    "Which is the largest ocean?",
    # These are near the corpora without being about them.
    "How do trains stay on their tracks?",
    "When was the telescope invented?",
    "How are lighthouses powered?",
    "What is a comet made of?",
    "Who invented the steam engine?",
)

Vectors: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """Questions, each with the position of the model that it is for, or NOBODY. texts: of each model."""

    name: str
    texts: Sequence[Sequence[str]]
    questions: Sequence[str]
    meant: NDArray[np.int64]


def trials() -> Iterator[Trial]:
    """The demo's models, and one model for each of its corpora with that corpus's part of the guide's examples."""
    models = {model.name: model for model in load(EXAMPLES / "tributary.toml").models}
    guide = models["guide"]
    material = json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8"))
    asked = [each for part in material.values() for each in part]
    plain = [each["question"] for each in asked]
    wired = [f"{text} {WISHES[position % len(WISHES)]}" for position, text in enumerate(plain)]
    yield Trial(
        name="guide, telegram",
        texts=[guide.said_of_it, models["telegram"].said_of_it],
        questions=[*plain, *wired, *FOR_NOBODY],
        meant=np.array([0] * len(plain) + [1] * len(wired) + [NOBODY] * len(FOR_NOBODY)),
    )
    corpora = list(guide.corpora)
    share = len(guide.examples) // len(corpora)
    yield Trial(
        name="three corpora",
        texts=[guide.examples[share * position : share * (position + 1)] for position in range(len(corpora))],
        questions=[*plain, *FOR_NOBODY],
        meant=np.array([corpora.index(each["corpus"]) for each in asked] + [NOBODY] * len(FOR_NOBODY)),
    )


def right(similarities: Vectors, meant: NDArray[np.int64], threshold: float) -> tuple[float, float]:
    """The parts of the questions for a model that it gets, and of those for nobody that nobody gets."""
    found = np.where(similarities.max(axis=1) >= threshold, similarities.argmax(axis=1), NOBODY)
    is_meant = meant != NOBODY
    return float((found == meant)[is_meant].mean()), float((found == meant)[~is_meant].mean())


def main() -> None:
    """Print the table, and one line that a program can read."""
    embedder, default = MiniLM(), RoutingSection().auto_threshold
    result: dict[str, Any] = {}
    print(f"{'models':<18}{'rule':<10}{'threshold':>9}{'its own':>10}{'nobody':>10}")
    for trial in trials():
        asked = embedder.embed(list(trial.questions))
        cosines = [asked @ embedder.embed(list(texts)).T for texts in trial.texts]
        mean = np.stack([each.mean(axis=1) for each in cosines], axis=1)
        nearest = np.stack([each.max(axis=1) for each in cosines], axis=1)
        best = max(np.arange(0, 0.6, 0.01).tolist(), key=lambda t: sum(right(nearest, trial.meant, t)))
        for rule, similarities, threshold in (("mean", mean, default), ("nearest", nearest, best)):
            own, nobody = right(similarities, trial.meant, threshold)
            print(f"{trial.name:<18}{rule:<10}{threshold:>9.2f}{own:>10.0%}{nobody:>10.0%}")
            result[f"{trial.name}, {rule}"] = {"threshold": threshold, "own": own, "nobody": nobody}
    print(f"RESULT {json.dumps(result)}")


if __name__ == "__main__":
    main()
