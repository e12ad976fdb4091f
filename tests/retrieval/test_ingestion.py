from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine

from retrieval import (
    FileOutcome,
    IngestProgress,
    PreparedDocument,
    document_text,
    documents,
    find_document,
    find_files,
    ingest,
    revision,
    withdraw,
)

from .kit import NOON, TERMS, HashingEmbedder


@pytest.fixture
def town(tmp_path: Path) -> Path:
    folder = tmp_path / "town"
    (folder / "piers").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name, text in {
        "b.md": "# Mole\n\nIt is long.",
        "a.txt": "High water at noon.",
        "piers/z.html": "<p>Two piers.",
        "logo.png": "no text",
        ".hidden.txt": "hidden",
        ".git/config.txt": "hidden",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(engine: Engine, *paths: Path, **options: object) -> list[FileOutcome]:
    options = {"terms": TERMS, "embedder": HashingEmbedder()} | options
    return [*ingest(engine.begin, paths, **options)]  # type: ignore[arg-type]


def summary(outcomes: list[FileOutcome]) -> list[tuple[str, str]]:
    return [(outcome.source, outcome.outcome) for outcome in outcomes]


def test_a_folder_is_ingested_in_the_order_of_its_names(engine: Engine, town: Path) -> None:
    outcomes = run(engine, town)
    assert summary(outcomes) == [
        ("town/a.txt", "added"),
        ("town/b.md", "added"),
        ("town/logo.png", "skipped"),
        ("town/piers/z.html", "added"),
    ]
    with engine.begin() as connection:
        assert [document.title for document in documents(connection)] == ["a", "Mole", "z"]
        assert [outcome.document_id for outcome in outcomes if outcome.document_id] == [
            document.id for document in documents(connection)
        ]


def test_ingesting_again_does_nothing_and_embeds_nothing(engine: Engine, town: Path) -> None:
    run(engine, town)
    with engine.begin() as connection:
        before = revision(connection), documents(connection)
    embedder = HashingEmbedder()
    outcomes = run(engine, town, embedder=embedder)
    assert {outcome.outcome for outcome in outcomes} == {"unchanged", "skipped"}
    assert embedder.texts == []
    with engine.begin() as connection:
        assert (revision(connection), documents(connection)) == before


def test_a_changed_file_is_replaced_and_found_by_any_path(
    engine: Engine, town: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(engine, town)
    (town / "a.txt").write_text("High water at one.", encoding="utf-8")
    monkeypatch.chdir(town)
    assert summary(run(engine, Path("a.txt"))) == [("town/a.txt", "replaced")]
    assert summary(run(engine, Path()))[0] == ("town/a.txt", "unchanged")
    assert summary(run(engine, town / "piers" / ".." / "a.txt")) == [("town/a.txt", "unchanged")]
    moved = town.parent / "elsewhere" / "town"
    moved.parent.mkdir()
    town.rename(moved)
    assert summary(run(engine, moved))[0] == ("town/a.txt", "unchanged")


def test_one_bad_file_does_not_stop_the_others(engine: Engine, town: Path) -> None:
    (town / "b.md").write_bytes(b"caf\xe9")
    (town / "c.pdf").write_bytes(b"no pdf")
    outcomes = run(engine, town, town / "absent.txt")
    assert {outcome.source: outcome.reason for outcome in outcomes if outcome.outcome == "failed"} == {
        "town/b.md": "b.md is not UTF-8: byte 0xe9 at offset 3; save it as UTF-8",
        "town/c.pdf": "c.pdf is not a PDF: it does not begin with %PDF-; give it the suffix of what it is",
        "town/absent.txt": f"there is no file {town / 'absent.txt'}",
    }
    with engine.begin() as connection:
        assert [document.source for document in documents(connection)] == ["town/a.txt", "town/piers/z.html"]


def test_a_file_that_becomes_unreadable_keeps_its_last_good_version(engine: Engine, town: Path) -> None:
    run(engine, town)
    (town / "a.txt").write_bytes(b"")
    assert summary(run(engine, town))[0] == ("town/a.txt", "failed")
    with engine.begin() as connection:
        assert document_text(connection, documents(connection)[0].id) == "High water at noon."


def test_a_file_of_an_unread_kind_fails_when_it_is_named(engine: Engine, town: Path) -> None:
    (outcome,) = run(engine, town / "logo.png")
    assert outcome.outcome == "failed"
    assert outcome.reason
    assert "convert it" in outcome.reason


def test_a_withdrawn_file_is_not_offered_again_by_itself(engine: Engine, town: Path) -> None:
    added = run(engine, town / "a.txt")[0].document_id
    assert added
    with engine.begin() as connection:
        withdraw(connection, added, at=NOON)
    (refused,) = run(engine, town / "a.txt")
    assert (refused.outcome, refused.reason) == (
        "failed",
        "town/a.txt was withdrawn at 2025-03-01T12:00:00Z; reinstate it to offer it",
    )
    assert summary(run(engine, town / "a.txt", reinstate=True)) == [("town/a.txt", "replaced")]


def test_links_are_followed_only_within_the_folder(engine: Engine, town: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "plan.txt").write_text("hidden", encoding="utf-8")
    (town / "leak.txt").symlink_to(secret / "plan.txt")
    (town / "leaks").symlink_to(secret)
    (town / "within.txt").symlink_to(town / ".hidden.txt")
    (town / "loop").symlink_to(town)
    (town / "same.txt").symlink_to(town / "a.txt")
    (town / "dangling.txt").symlink_to(town / "nowhere.txt")
    outcomes = {outcome.source: outcome for outcome in run(engine, town)}
    assert {source: outcome.outcome for source, outcome in outcomes.items()} == {
        "town/a.txt": "added",
        "town/b.md": "added",
        "town/dangling.txt": "failed",
        "town/leak.txt": "failed",
        "town/logo.png": "skipped",
        "town/piers/z.html": "added",
        "town/within.txt": "added",
    }
    assert outcomes["town/leak.txt"].reason == "leak.txt is a link that leads out of town; put the file there instead"


def test_no_two_files_become_one_document(engine: Engine, tmp_path: Path) -> None:
    for parent in ("one", "two"):
        (tmp_path / parent / "town").mkdir(parents=True)
        (tmp_path / parent / "town" / "a.txt").write_text(parent, encoding="utf-8")
    both = [tmp_path / "one" / "town", tmp_path / "two" / "town", tmp_path / "one" / "town" / "a.txt"]
    outcomes = run(engine, *both)
    assert summary(outcomes) == [("town/a.txt", "added"), ("town/a.txt", "failed")]
    assert outcomes[1].reason
    assert "the same folder and name as" in outcomes[1].reason


def test_names_that_differ_only_in_their_composition_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "town"
    folder.mkdir()
    (folder / unicodedata.normalize("NFD", "café.txt")).write_text("x", encoding="utf-8")
    assert [file.source for file in find_files([folder])] == [unicodedata.normalize("NFC", "town/café.txt")]


def test_a_name_that_no_database_keeps_is_refused(engine: Engine, town: Path) -> None:
    Path(os.fsdecode(os.fsencode(town) + b"/caf\xe9.txt")).write_text("x", encoding="utf-8")
    assert [o.reason for o in run(engine, town) if o.outcome == "failed"] == [
        "its name holds characters that cannot be printed; rename it"
    ]


def test_what_is_recorded_is_committed_with_the_document_or_not_at_all(engine: Engine, town: Path) -> None:
    recorded: list[str] = []

    def record(connection: Connection, document: PreparedDocument) -> None:
        assert find_document(connection, document.id)
        if document.source == "town/b.md":
            raise RuntimeError("the log is full")
        recorded.append(document.source)

    with pytest.raises(RuntimeError, match="the log is full"):
        run(engine, town, record=record)
    assert recorded == ["town/a.txt"]
    with engine.begin() as connection:
        assert [document.source for document in documents(connection)] == recorded
    run(engine, town, record=lambda _, document: recorded.append(document.source))
    assert recorded == ["town/a.txt", "town/b.md", "town/piers/z.html"]


def test_no_transaction_is_open_while_documents_are_embedded(engine: Engine, town: Path) -> None:
    open_transactions = 0

    @contextmanager
    def begin() -> Iterator[Connection]:
        nonlocal open_transactions
        with engine.begin() as connection:
            open_transactions += 1
            yield connection
        open_transactions -= 1

    seen = []
    for _ in ingest(
        begin,
        [town],
        terms=TERMS,
        embedder=HashingEmbedder(),
        progress=lambda now: seen.append((open_transactions, now)),
    ):
        assert open_transactions == 0
    assert {count for count, _ in seen} == {0}
    assert seen[0][1] == IngestProgress(source="town/a.txt", files_done=0, files=4)
    assert seen[1][1] == IngestProgress(source="town/a.txt", files_done=0, files=4, passages_done=1, passages=1)
    assert [now.files_done for _, now in seen] == [0, 0, 1, 1, 2, 3, 3]


def test_a_passage_is_embedded_below_its_title(engine: Engine, town: Path) -> None:
    embedder = HashingEmbedder()
    run(engine, town / "b.md", embedder=embedder)
    assert embedder.texts == ["Mole\nIt is long."]


def test_a_database_that_fails_is_not_taken_for_a_bad_file(town: Path) -> None:
    with pytest.raises(Exception, match="no such table"):
        run(create_engine("sqlite://"), town)
