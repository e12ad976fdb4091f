from __future__ import annotations

import os
import subprocess
import sys
from itertools import dropwhile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import IndexDamagedError, VectorIndex, Vectors

DIMENSION = 4
CORPORA = ("harbour", "observatory", "railway")


def new_index() -> VectorIndex:
    return VectorIndex(embedder="bag-of-words", dimension=DIMENSION)


def load(path: Path, embedder: str = "bag-of-words") -> VectorIndex:
    return VectorIndex.load(path, embedder=embedder, dimension=DIMENSION)


def unit(*rows: list[int]) -> Vectors:
    vectors = np.array(rows, dtype=np.float32).reshape(len(rows), DIMENSION)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def index() -> VectorIndex:
    index = new_index()
    index.add(["harbour", "railway", "harbour"], [1, -2, 2**62], unit([1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]))
    return index


rows = st.lists(st.integers(-3, 3), min_size=DIMENSION, max_size=DIMENSION).filter(any)
entries = st.dictionaries(st.integers(-(2**63) + 1, 2**63 - 1), st.tuples(st.sampled_from(CORPORA), rows), max_size=12)


@given(entries, st.data())
def test_search_is_exact_among_the_allowed_corpora(held: dict[int, tuple[str, list[int]]], data: st.DataObject) -> None:
    index = new_index()
    index.add([corpus for corpus, _ in held.values()], [*held], unit(*(row for _, row in held.values())))
    gone = data.draw(st.sets(st.sampled_from([*held]))) if held else set()
    index.remove(gone)
    allowed = data.draw(st.sets(st.sampled_from(CORPORA)))
    k = data.draw(st.integers(1, 14))
    query = unit(data.draw(rows))[0]
    left = {key: entry for key, entry in held.items() if key not in gone}
    scores = {key: float(unit(row)[0] @ query) for key, (corpus, row) in left.items() if corpus in allowed}
    found = index.search(query, k, allowed)
    assert [score for _, score in found] == pytest.approx(sorted(scores.values(), reverse=True)[:k], abs=1e-6)
    assert all(score == pytest.approx(scores[key], abs=1e-6) for key, score in found)
    assert index.keys == {key: corpus for key, (corpus, _) in left.items()}
    assert index.corpora == set(index.keys.values())


def test_a_saved_index_is_the_same_when_loaded(tmp_path: Path, index: VectorIndex) -> None:
    index.save(tmp_path / "i.faiss")
    loaded = load(tmp_path / "i.faiss")
    assert loaded.keys == index.keys
    query = unit([1, 2, 3, 0])[0]
    assert loaded.search(query, 3, CORPORA) == index.search(query, 3, CORPORA)
    loaded.remove([1, 404])
    loaded.add(["railway"], [1], unit([0, 0, 0, 1]))
    assert loaded.keys == {1: "railway", -2: "railway", 2**62: "harbour"}
    assert [path.name for path in tmp_path.iterdir()] == ["i.faiss"]


def test_an_empty_index_is_saved_and_loaded(tmp_path: Path) -> None:
    new_index().save(tmp_path / "i.faiss")
    assert len(load(tmp_path / "i.faiss")) == 0


def test_every_damage_is_noticed(tmp_path: Path, index: VectorIndex) -> None:
    path = tmp_path / "i.faiss"
    index.save(path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(IndexDamagedError, match="checksum"):
            load(path)
        path.write_bytes(whole[:position])
        with pytest.raises(IndexDamagedError, match="checksum"):
            load(path)
    path.write_bytes(whole)
    with pytest.raises(IndexDamagedError, match="bag-of-words, not of other"):
        load(path, embedder="other")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, index: VectorIndex) -> None:
    path = tmp_path / "i.faiss"
    index.save(path)
    before = path.read_bytes()
    index.remove([1])
    with mock.patch("os.fsync", side_effect=OSError("no space")), pytest.raises(OSError, match="no space"):
        index.save(path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_keys_and_shapes_are_checked(index: VectorIndex) -> None:
    with pytest.raises(ValueError, match="twice"):
        index.add(["harbour"], [1], unit([1, 0, 0, 0]))
    with pytest.raises(ValueError, match="twice"):
        index.add(["harbour"] * 2, [8, 8], unit([1, 0, 0, 0], [1, 0, 0, 0]))
    with pytest.raises(ValueError, match="need vectors"):
        index.add(["harbour"], [8], np.ones((1, DIMENSION + 1), dtype=np.float32))
    assert len(index) == 3


def test_readers_see_the_old_file_or_the_new_while_another_process_writes(tmp_path: Path, index: VectorIndex) -> None:
    path = tmp_path / "i.faiss"
    index.save(path)
    writer = """
import sys
from pathlib import Path
import numpy as np
from retrieval import VectorIndex
index = VectorIndex(embedder="bag-of-words", dimension=4)
for key in range(30):
    index.add(["harbour"], [key], np.ones((1, 4), dtype=np.float32))
    index.save(Path(sys.argv[1]))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", writer, str(path)], env=environment) as process:
        sizes = [len(load(path))]
        while process.poll() is None:
            sizes.append(len(load(path)))
    assert process.returncode == 0
    sizes.append(len(load(path)))
    grown = [*dropwhile(lambda size: size == 3, sizes)]
    assert grown == sorted(grown)
    assert grown[-1] == 30
