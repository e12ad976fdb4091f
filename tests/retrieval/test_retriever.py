from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from retrieval import (
    EmbedderMismatchError,
    Passage,
    Retriever,
    Synced,
    Terms,
    VectorIndex,
    prepare,
    put_document,
    store,
    withdraw,
)

from .kit import NOON, HashingEmbedder, open_sqlite, prepared

TOWN = {
    "mole.txt": "the mole is nine hundred paces long",
    "tide.txt": "high water stands at noon on sundays",
    "lamp.txt": "the lamp burns whale oil until dawn",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "passages.faiss"


@pytest.fixture
def retriever(engine: Engine, embedder: HashingEmbedder, path: Path) -> Retriever:
    put(engine, TOWN)
    return Retriever(path, embedder)


def put(engine: Engine, files: dict[str, str], *, corpus: str = "harbour") -> None:
    with engine.begin() as connection:
        for source, text in files.items():
            put_document(connection, prepared(HashingEmbedder(), source, text, corpus=corpus), at=NOON)


def take_back(engine: Engine, source: str, *, corpus: str = "harbour") -> None:
    with engine.begin() as connection:
        withdraw(connection, store.document_id(corpus, source), at=NOON)


def search(
    retriever: Retriever, engine: Engine, query: str, *, corpora: Sequence[str] = ("harbour",), k: int = 1
) -> list[Passage]:
    with engine.execution_options(write=False).begin() as connection:
        return retriever.search(connection, query, corpora=corpora, k=k)


def sync(retriever: Retriever, engine: Engine) -> Synced:
    with engine.begin() as connection:
        return retriever.sync(connection)


def titles(passages: list[Passage]) -> list[str]:
    return [passage.title for passage in passages]


def test_the_passage_that_answers_comes_first(retriever: Retriever, engine: Engine) -> None:
    (found,) = search(retriever, engine, "when is high water?")
    with engine.begin() as connection:
        document = store.find_document(connection, found.document_id)
    assert document
    assert found.text == TOWN["tide.txt"]
    assert (found.title, found.corpus, found.owner, found.licence, found.digest) == (
        "tide",
        "harbour",
        document.owner,
        document.licence,
        document.digest,
    )
    assert (found.start, found.end) == (0, len(found.text))
    assert 0 < found.score <= 1


def test_results_are_ranked_and_no_more_than_there_are(retriever: Retriever, engine: Engine) -> None:
    found = search(retriever, engine, "how long is the mole", k=10)
    assert titles(found)[0] == "mole"
    assert len(found) == 3
    assert [passage.score for passage in found] == sorted((passage.score for passage in found), reverse=True)
    with pytest.raises(ValueError, match="k must be"):
        search(retriever, engine, "how long", k=0)


def test_a_vector_may_be_searched_for(retriever: Retriever, engine: Engine, embedder: HashingEmbedder) -> None:
    vector = embedder.embed(["whale oil lamp"])[0]
    with engine.begin() as connection:
        assert titles(retriever.search(connection, vector, corpora=["harbour"], k=1)) == ["lamp"]


def test_only_allowed_corpora_are_searched(retriever: Retriever, engine: Engine) -> None:
    put(engine, {f"tide{n}.txt": f"high water at noon {n}" for n in range(20)}, corpus="railway")
    assert titles(search(retriever, engine, "high water", k=3))[0] == "tide"
    assert {p.corpus for p in search(retriever, engine, "high water", k=3)} == {"harbour"}
    assert {p.corpus for p in search(retriever, engine, "high water", corpora=["railway"], k=3)} == {"railway"}
    both = search(retriever, engine, "high water", corpora=["railway", "harbour"], k=30)
    assert len(both) == 23


def test_documents_whose_licence_forbids_the_use_are_passed_over(
    retriever: Retriever, engine: Engine, embedder: HashingEmbedder
) -> None:
    with engine.begin() as connection:
        for number in range(9):
            terms = Terms(corpus="harbour", owner="harbour-office", licence="private")
            text = f"the mole is {number} hundred paces long"
            private = prepare(f"private-{number}.txt", text.encode(), terms=terms, embedder=embedder)
            store.put_document(connection, private, at=NOON)
        query = "how long is the mole"
        anything = retriever.search(connection, query, corpora=["harbour"], k=2)
        allowed = retriever.search(connection, query, corpora=["harbour"], k=2, licences=["CC-BY-4.0"])
        nothing = retriever.search(connection, query, corpora=["harbour"], k=2, licences=["MIT"])
    assert "private" in {passage.licence for passage in anything}
    assert [passage.licence for passage in allowed] == ["CC-BY-4.0"] * 2
    assert allowed[0].title == "mole"
    assert nothing == []


def test_an_empty_corpus_gives_nothing_and_embeds_nothing(
    retriever: Retriever, engine: Engine, embedder: HashingEmbedder
) -> None:
    assert search(retriever, engine, "high water", corpora=["railway"]) == []
    assert search(retriever, engine, "high water", corpora=[]) == []
    assert embedder.texts == []


def test_changes_take_effect_on_the_next_search_without_a_sync(retriever: Retriever, engine: Engine) -> None:
    assert titles(search(retriever, engine, "whale oil")) == ["lamp"]
    put(engine, {"whale.txt": "whale oil whale oil"})
    assert titles(search(retriever, engine, "whale oil")) == ["whale"]
    put(engine, {"whale.txt": "nothing of the kind"})
    assert titles(search(retriever, engine, "whale oil")) == ["lamp"]
    take_back(engine, "lamp.txt")
    assert "lamp" not in titles(search(retriever, engine, "whale oil", k=10))


def test_a_change_that_is_rolled_back_is_not_seen(retriever: Retriever, engine: Engine) -> None:
    sync(retriever, engine)
    with engine.connect() as connection, connection.begin() as transaction:
        withdraw(connection, store.document_id("harbour", "lamp.txt"), at=NOON)
        assert titles(retriever.search(connection, "whale oil", corpora=["harbour"], k=1)) != ["lamp"]
        transaction.rollback()
    assert titles(search(retriever, engine, "whale oil")) == ["lamp"]


def test_an_unchanged_database_is_asked_for_its_revision_alone(retriever: Retriever, engine: Engine) -> None:
    search(retriever, engine, "whale oil")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    search(retriever, engine, "whale oil")
    selects = [statement for statement in statements if statement.startswith("SELECT")]
    assert len(selects) == 3
    assert sum("corpus_revision" in statement for statement in selects) == 2


def test_sync_saves_and_a_fresh_process_loads(
    retriever: Retriever, engine: Engine, embedder: HashingEmbedder, path: Path
) -> None:
    assert sync(retriever, engine) == Synced(added=3, removed=0, passages=3)
    assert sync(retriever, engine) == Synced(added=0, removed=0, passages=3)
    assert sync(Retriever(path, embedder), engine) == Synced(added=0, removed=0, passages=3)


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(Path.unlink, id="deleted"),
        pytest.param(lambda path: path.write_bytes(b""), id="emptied"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-7]), id="truncated"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"), id="a byte flipped"),
        pytest.param(lambda path: path.write_bytes(b"another program's file"), id="overwritten"),
    ],
)
def test_a_damaged_file_heals(
    retriever: Retriever, engine: Engine, embedder: HashingEmbedder, path: Path, damage: Damage
) -> None:
    sync(retriever, engine)
    damage(path)
    fresh = Retriever(path, embedder)
    assert titles(search(fresh, engine, "whale oil")) == ["lamp"]
    assert embedder.texts[-1] == "whale oil"
    assert sync(fresh, engine).passages == 3
    assert sync(Retriever(path, embedder), engine) == Synced(added=0, removed=0, passages=3)


def test_a_file_deleted_under_a_running_process_is_written_again(
    retriever: Retriever, engine: Engine, embedder: HashingEmbedder, path: Path
) -> None:
    sync(retriever, engine)
    path.unlink()
    sync(retriever, engine)
    assert len(VectorIndex.load(path, embedder=embedder.name, dimension=embedder.dimension)) == 3


def test_a_stale_file_with_extra_and_missing_passages_heals(
    retriever: Retriever, engine: Engine, embedder: HashingEmbedder, path: Path
) -> None:
    sync(retriever, engine)
    take_back(engine, "lamp.txt")
    put(engine, {"mole.txt": "the mole was torn down", "bell.txt": "the bell rings in fog"})
    fresh = Retriever(path, embedder)
    assert sync(fresh, engine) == Synced(added=2, removed=2, passages=3)
    assert set(titles(search(fresh, engine, "whale oil lamp", k=10))) == {"bell", "mole", "tide"}
    assert titles(search(fresh, engine, "bell in fog")) == ["bell"]


def test_a_file_of_another_embedder_is_not_used(retriever: Retriever, engine: Engine, path: Path) -> None:
    sync(retriever, engine)
    with pytest.raises(EmbedderMismatchError, match="embedded by bag-of-words, not by other"):
        sync(Retriever(path, HashingEmbedder(name="other")), engine)


KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
from retrieval import Retriever, put_document
from tests.retrieval.kit import NOON, HashingEmbedder, open_sqlite, prepared

engine, path, when = open_sqlite(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
embedder = HashingEmbedder()
with engine.begin() as connection:
    put_document(connection, prepared(embedder, "bell.txt", "the bell rings in fog"), at=NOON)
    if when == "before the commit":
        os.kill(os.getpid(), signal.SIGKILL)
if when == "before the file is replaced":
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if when == "before the sync":
    os.kill(os.getpid(), signal.SIGKILL)
with engine.begin() as connection:
    Retriever(path, embedder).sync(connection)
"""


@pytest.mark.parametrize(
    ("when", "bell"),
    [("before the commit", False), ("before the sync", True), ("before the file is replaced", True)],
)
def test_a_crash_between_database_and_index_heals(tmp_path: Path, when: str, bell: bool) -> None:
    engine = open_sqlite(tmp_path / "corpus.db")
    store.metadata.create_all(engine)
    put(engine, TOWN)
    path = tmp_path / "passages.faiss"
    sync(Retriever(path, HashingEmbedder()), engine)
    arguments = [sys.executable, "-c", KILLED_BETWEEN, str(tmp_path / "corpus.db"), str(path), when]
    root = Path(__file__).parents[2]
    killed = subprocess.run(arguments, check=False, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    fresh = Retriever(path, HashingEmbedder())
    assert ("bell" in titles(search(fresh, engine, "bell rings in fog", k=10))) == bell
    assert sync(fresh, engine).passages == 3 + bell
    engine.dispose()


def test_one_process_ingests_while_another_serves(tmp_path: Path) -> None:
    engine = open_sqlite(tmp_path / "corpus.db")
    store.metadata.create_all(engine)
    path = tmp_path / "passages.faiss"
    serving = Retriever(path, HashingEmbedder())
    other_engine, other = open_sqlite(tmp_path / "corpus.db"), Retriever(path, HashingEmbedder())
    for number in range(5):
        put(other_engine, {f"{number}.txt": f"fact number {number}"})
        assert len(search(serving, engine, "fact", k=10)) == number + 1
        sync(other, other_engine)
    sync(serving, engine)
    assert sync(Retriever(path, HashingEmbedder()), engine) == Synced(added=0, removed=0, passages=5)
    engine.dispose()
    other_engine.dispose()


def test_threads_search_while_documents_come_and_go(retriever: Retriever, engine: Engine) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                found = titles(search(retriever, engine, "high water stands at noon on sundays", k=2))
                assert found[0] == "tide"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(10):
        put(engine, {"changing.txt": f"number {number}"})
    take_back(engine, "changing.txt")
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert "changing" not in titles(search(retriever, engine, "number", k=10))
