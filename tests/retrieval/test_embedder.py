from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from retrieval import EmbedderError, MiniLM, Retriever, Terms, ingest

FACTS = {
    "mole.md": "# The Old Mole\n\nThe breakwater was finished in 1874 and is nine hundred paces long.",
    "ferry.md": "# The Ferry\n\nThe boat to the island leaves at seven each morning but Sunday.",
    "lamp.md": "# The Lighthouse\n\nUntil 1911 the lamp burned whale oil; since then it has burned gas.",
}


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM(batch_size=4)


def test_nothing_heavy_is_imported_before_the_first_use() -> None:
    program = (
        "import sys, retrieval; retrieval.MiniLM(); sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_missing_weights_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbedderError, match="install tributary-gateway"):
        MiniLM().count_tokens(["text"])


def test_a_batch_holds_something() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        MiniLM(batch_size=0)


@pytest.mark.model
def test_rows_are_unit_vectors_that_no_neighbour_in_the_batch_changes(minilm: MiniLM) -> None:
    texts = ["high water", "", "a much longer sentence about the tides of the harbour " * 9, "mole", "lamp oil", "x"]
    calls: list[tuple[int, int]] = []
    vectors = minilm.embed(texts, lambda done, total: calls.append((done, total)))
    assert vectors.shape == (6, minilm.dimension)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert calls == [(4, 6), (6, 6)]
    alone = np.concatenate([minilm.embed([text]) for text in texts])
    assert np.abs(vectors - alone).max() < 1e-5
    assert minilm.embed([]).shape == (0, minilm.dimension)


@pytest.mark.model
def test_only_the_first_256_word_pieces_are_seen(minilm: MiniLM) -> None:
    words = " ".join(["tide"] * 254)
    assert minilm.count_tokens([words]) == 254
    assert minilm.count_tokens([words, "high water"]) == 256
    seen, same, other = minilm.embed([words, words + " lamp" * 50, "lamp " + words])
    assert seen @ same == pytest.approx(1, abs=1e-5)
    assert seen @ other < 1 - 1e-4


@pytest.mark.model
def test_threads_share_one_model(minilm: MiniLM) -> None:
    fresh, expected = MiniLM(), minilm.embed(["high water at noon"])
    results: list[float] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(float(np.abs(fresh.embed(["high water at noon"]) - expected).max()))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert max(results) < 1e-5


@pytest.mark.model
@pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)  # the model is slow, and the database not the point
@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("When was the pier completed?", "The Old Mole"),
        ("What time does the ship sail?", "The Ferry"),
        ("Which fuel did the beacon use?", "The Lighthouse"),
    ],
)
def test_questions_find_their_answers_by_meaning(
    engine: Engine, tmp_path: Path, minilm: MiniLM, question: str, title: str
) -> None:
    folder = tmp_path / "town"
    folder.mkdir()
    for name, text in FACTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    terms = Terms(corpus="harbour", owner="ann", licence="CC0-1.0")
    assert [outcome.passages for outcome in ingest(engine.begin, [folder], terms=terms, embedder=minilm)] == [1, 1, 1]
    with engine.begin() as connection:
        found = Retriever(tmp_path / "i.faiss", minilm).search(connection, question, corpora=["harbour"], k=1)
    assert [passage.title for passage in found] == [title]
