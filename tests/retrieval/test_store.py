from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, func, select

from retrieval import (
    DocumentRefusedError,
    Terms,
    UnknownDocumentError,
    document_id,
    document_text,
    documents,
    find_document,
    prepare,
    put_document,
    revision,
    store,
    withdraw,
)

from .kit import NOON, HashingEmbedder, prepared

LATER = NOON + timedelta(days=1)


def passage_count(engine: Engine) -> int:
    with engine.begin() as connection:
        return connection.execute(select(func.count()).select_from(store.corpus_passage)).scalar_one()


def test_a_document_keeps_whose_it_is_and_where_it_came_from(engine: Engine, embedder: HashingEmbedder) -> None:
    document = prepared(embedder, "town/mole.md", "# The Mole\n\nIt is long. 😀 é")
    with engine.begin() as connection:
        assert put_document(connection, document, at=NOON) == "added"
        (kept,) = documents(connection)
        assert kept == find_document(connection, document.id)
        assert document_text(connection, document.id) == "It is long. 😀 é"
    assert kept.id == document_id("harbour", "town/mole.md")
    assert (kept.corpus, kept.owner, kept.licence) == ("harbour", "harbour-office", "CC-BY-4.0")
    assert (kept.source, kept.title, kept.media_type) == ("town/mole.md", "The Mole", "text/markdown")
    assert (kept.ingested_at, kept.withdrawn_at) == ("2025-03-01T12:00:00Z", None)
    assert kept.digest == document.digest


def test_putting_the_same_file_again_does_nothing(engine: Engine, embedder: HashingEmbedder) -> None:
    with engine.begin() as connection:
        put_document(connection, prepared(embedder, "a.txt", "one"), at=NOON)
        before = revision(connection), documents(connection)
        assert put_document(connection, prepared(embedder, "a.txt", "one"), at=LATER) == "unchanged"
        assert (revision(connection), documents(connection)) == before


def test_a_changed_file_replaces_its_passages(engine: Engine, embedder: HashingEmbedder) -> None:
    with engine.begin() as connection:
        put_document(connection, prepared(embedder, "a.txt", "one. " * 200), at=NOON)
        old = store.offered_keys(connection)
        assert put_document(connection, prepared(embedder, "a.txt", "two."), at=LATER) == "replaced"
        assert len(store.offered_keys(connection)) == 1
        assert not store.offered_keys(connection).keys() & old.keys()
        assert len(old) == 2
        assert [document.ingested_at for document in documents(connection)] == ["2025-03-02T12:00:00Z"]


def test_another_licence_or_embedder_counts_as_a_change(engine: Engine, embedder: HashingEmbedder) -> None:
    terms = Terms(corpus="harbour", owner="harbour-office", licence="CC0-1.0")
    with engine.begin() as connection:
        put_document(connection, prepared(embedder, "a.txt", "one"), at=NOON)
        freed = prepare("a.txt", b"one", terms=terms, embedder=embedder)
        assert put_document(connection, freed, at=LATER) == "replaced"
        again = prepare("a.txt", b"one", terms=terms, embedder=HashingEmbedder(name="other"))
        assert put_document(connection, again, at=LATER) == "replaced"


def test_what_is_rolled_back_was_never_there(engine: Engine, embedder: HashingEmbedder) -> None:
    with engine.begin() as connection:
        put_document(connection, prepared(embedder, "a.txt", "one"), at=NOON)
    with engine.connect() as connection, connection.begin() as transaction:
        put_document(connection, prepared(embedder, "a.txt", "two"), at=NOON)
        put_document(connection, prepared(embedder, "b.txt", "three"), at=NOON)
        transaction.rollback()
    with engine.begin() as connection:
        assert [document_text(connection, document.id) for document in documents(connection)] == ["one"]
        assert revision(connection) == 1
    assert passage_count(engine) == 1


def test_withdrawal_keeps_the_document_and_offers_it_no_more(engine: Engine, embedder: HashingEmbedder) -> None:
    document = prepared(embedder, "a.txt", "one")
    with engine.begin() as connection:
        put_document(connection, document, at=NOON)
        assert withdraw(connection, document.id, at=LATER)
        before = revision(connection)
        assert not withdraw(connection, document.id, at=LATER + timedelta(days=1))
        assert revision(connection) == before == 2
        assert [kept.withdrawn_at for kept in documents(connection)] == ["2025-03-02T12:00:00Z"]
        assert store.offered_keys(connection) == {}
        with pytest.raises(UnknownDocumentError, match="doc_404"):
            withdraw(connection, "doc_404", at=NOON)
        with pytest.raises(UnknownDocumentError, match="doc_404"):
            document_text(connection, "doc_404")


def test_what_was_withdrawn_stays_so_until_it_is_reinstated(engine: Engine, embedder: HashingEmbedder) -> None:
    document = prepared(embedder, "a.txt", "one")
    with engine.begin() as connection:
        put_document(connection, document, at=NOON)
        withdraw(connection, document.id, at=NOON)
        with pytest.raises(DocumentRefusedError, match="withdrawn at 2025-03-01T12:00:00Z"):
            put_document(connection, document, at=LATER)
        assert put_document(connection, document, at=LATER, reinstate=True) == "replaced"
        assert [kept.withdrawn_at for kept in documents(connection)] == [None]
        assert len(store.offered_keys(connection)) == 1


def test_a_document_changes_hands_only_by_withdrawal(engine: Engine, embedder: HashingEmbedder) -> None:
    first, second = (prepared(embedder, "a.txt", "one", owner=owner) for owner in ("ann", "bob"))
    with engine.begin() as connection:
        put_document(connection, first, at=NOON)
        for reinstate in (False, True):
            with pytest.raises(DocumentRefusedError, match="of ann"):
                put_document(connection, second, at=NOON, reinstate=reinstate)
        withdraw(connection, first.id, at=NOON)
        put_document(connection, second, at=LATER, reinstate=True)
        assert [document.owner for document in documents(connection)] == ["bob"]


def test_documents_are_listed_by_corpus_and_source(engine: Engine, embedder: HashingEmbedder) -> None:
    with engine.begin() as connection:
        for corpus, source in (("b", "2.txt"), ("a", "3.txt"), ("b", "1.txt")):
            put_document(connection, prepared(embedder, source, "text", corpus=corpus), at=NOON)
        assert [(d.corpus, d.source) for d in documents(connection)] == [("a", "3.txt"), ("b", "1.txt"), ("b", "2.txt")]
        assert [d.source for d in documents(connection, corpus="b")] == ["1.txt", "2.txt"]


def test_a_passage_keeps_its_offsets_in_any_script(engine: Engine, embedder: HashingEmbedder) -> None:
    document = prepared(embedder, "a.txt", "Süß 😀 sentence of five words. " * 60)
    with engine.begin() as connection:
        put_document(connection, document, at=NOON)
        found = store.passages(connection, [(key, 0.5) for key in store.offered_keys(connection)])
        text = document_text(connection, document.id)
    assert len(found) == len(document.spans) > 2
    assert {(passage.start, passage.end) for passage in found} == {(span.start, span.end) for span in document.spans}
    assert all(passage.text == text[passage.start : passage.end] for passage in found)
    assert all(passage.text.startswith("Süß 😀") for passage in found)


def test_the_same_text_twice_is_two_passages(engine: Engine, embedder: HashingEmbedder) -> None:
    with engine.begin() as connection:
        put_document(connection, prepared(embedder, "a/x.txt", "word " * 220), at=NOON)
        put_document(connection, prepared(embedder, "b/x.txt", "word " * 220), at=NOON)
        assert len(store.offered_keys(connection)) == 4


def test_writers_at_once_lose_nothing(engine: Engine) -> None:
    def write(number: int) -> list[str]:
        outcomes = []
        for source in ("shared.txt", f"{number}.txt"):
            with engine.begin() as connection:
                outcomes.append(put_document(connection, prepared(HashingEmbedder(), source, source), at=NOON))
        return outcomes

    with ThreadPoolExecutor(4) as threads:
        outcomes = [*threads.map(write, range(8))]
    assert sorted(shared for shared, _ in outcomes) == ["added"] + ["unchanged"] * 7
    assert {own for _, own in outcomes} == {"added"}
    with engine.begin() as connection:
        assert revision(connection) == len(documents(connection)) == 9


@pytest.mark.parametrize(
    ("corpus", "owner", "licence", "fault"),
    [
        ("", "ann", "CC0-1.0", "corpus ''"),
        ("Harbour", "ann", "CC0-1.0", "corpus 'Harbour'"),
        ("harbour", "ann@example.com", "CC0-1.0", "owner 'ann@example.com'"),
        ("harbour", "a" * 64, "CC0-1.0", "owner"),
        ("harbour", "ann", "", "a licence"),
        ("harbour", "ann", "two\nlines", "a licence"),
    ],
)
def test_terms_are_checked(corpus: str, owner: str, licence: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Terms(corpus=corpus, owner=owner, licence=licence)


def test_a_time_without_a_zone_is_refused(engine: Engine, embedder: HashingEmbedder) -> None:
    with engine.begin() as connection, pytest.raises(ValueError, match="time zone"):
        put_document(connection, prepared(embedder, "a.txt", "one"), at=datetime(2025, 3, 1))  # noqa: DTZ001
