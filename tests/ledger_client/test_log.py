"""The log on a real database: order, idempotency, rollback, the tree, its tiles and its receipts."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, func, select

from ledger_client import (
    EMPTY_ROOT,
    Draft,
    EntryConflict,
    EntryError,
    Frontier,
    Log,
    LogError,
    NotInLog,
    Tile,
    TileError,
    Verifier,
    hashes_from_tiles,
    inclusion_path,
    leaf_hash,
    unpack_bundle,
    verify_consistency,
    verify_inclusion,
    verify_receipt,
)
from ledger_client.tables import log_entry, log_hash

from .facts import registered


@dataclass(frozen=True)
class Leaf:
    """What the tree takes for an entry, quick to make by the ten thousand."""

    number: int

    @property
    def id(self) -> str:
        return f"{self.number:064}"

    def encode(self) -> bytes:
        return b"leaf %d" % self.number


def append(log: Log, engine: Engine, start: int, stop: int) -> None:
    with engine.begin() as connection:
        draft = log.draft(connection)
        for number in range(start, stop):
            draft.append(registered(number))
        draft.seal()


def fill(draft: Draft, start: int, stop: int) -> list[bytes]:
    """Append leaves in bulk; returns their hashes."""
    leaves = [Leaf(number) for number in range(start, stop)]
    for leaf in leaves:
        draft.append(leaf, new=True)
    return [leaf_hash(leaf.encode()) for leaf in leaves]


def grown(leaves: list[bytes]) -> Frontier:
    frontier = Frontier()
    for leaf in leaves:
        frontier = frontier.append(leaf)
    return frontier


def test_an_empty_log_has_a_signed_checkpoint(log: Log, engine: Engine, verifier: Verifier) -> None:
    with engine.begin() as connection:
        checkpoint = verifier.open(log.checkpoint(connection))
        assert (checkpoint.size, checkpoint.root) == (0, EMPTY_ROOT)
        assert log.size(connection) == 0
        assert log.draft(connection).seal() is None
        assert list(log.entries(connection)) == []
        assert list(log.checkpoints(connection)) == []


def test_entries_keep_their_order_and_bytes(log: Log, engine: Engine) -> None:
    entries = [registered(number) for number in range(20)]
    with engine.begin() as connection:
        draft = log.draft(connection)
        assert [draft.append(entry).log_index for entry in entries] == list(range(20))
        assert draft.size == 20
        draft.seal()
    with engine.connect() as connection:
        assert list(log.entries(connection)) == [(index, entry.encode()) for index, entry in enumerate(entries)]
        assert list(log.entries(connection, 17)) == [(index, entries[index].encode()) for index in (17, 18, 19)]
        assert log.size(connection) == 20
        assert log.entry(connection, 7) == entries[7].encode()
        assert log.find(connection, entries[7].id) == 7
        assert log.find(connection, registered(99).id) is None


@pytest.mark.parametrize("index", [-1, 2, 2**70])
def test_there_is_nothing_beyond_the_log(log: Log, engine: Engine, index: int) -> None:
    append(log, engine, 0, 2)
    with engine.connect() as connection:
        with pytest.raises(NotInLog, match="2 entries"):
            log.entry(connection, index)
        with pytest.raises(NotInLog, match="2 entries"):
            log.receipt(connection, index)


def test_the_same_entry_again_is_the_same_entry(log: Log, engine: Engine) -> None:
    with engine.begin() as connection:
        draft = log.draft(connection)
        first = draft.append(registered(1))
        again = draft.append(registered(1))
        draft.seal()
    assert (first.log_index, first.created) == (0, True)
    assert (again.log_index, again.created) == (0, False)
    with engine.begin() as connection:
        draft = log.draft(connection)
        assert not draft.append(registered(1)).created
        assert draft.seal() is None
        assert log.size(connection) == 1


@pytest.mark.parametrize("sealed", [True, False])
def test_the_same_id_with_other_bytes_conflicts_and_writes_nothing(log: Log, engine: Engine, sealed: bool) -> None:
    append(log, engine, 0, 3 if sealed else 1)
    with engine.begin() as connection:
        draft = log.draft(connection)
        for number in range(1, 1 if sealed else 3):
            draft.append(registered(number))
        with pytest.raises(EntryConflict, match="log index 1") as caught:
            draft.append(registered(1, name="someone else"))
        assert (draft.seal() is None) == sealed
        assert log.size(connection) == 3
    assert caught.value.log_index == 1


def test_a_draft_reads_what_is_stored_and_what_it_holds(log: Log, engine: Engine) -> None:
    append(log, engine, 0, 2)
    with engine.begin() as connection:
        draft = log.draft(connection)
        draft.append(registered(2))
        for number in range(3):
            assert draft.find(registered(number).id) == number
            assert draft.entry(number) == registered(number).encode()
        assert draft.find(registered(3).id) is None
        for index in (-1, 3, 2**70):
            with pytest.raises(NotInLog, match="3 entries"):
                draft.entry(index)


def test_a_rolled_back_transaction_leaves_nothing(log: Log, engine: Engine) -> None:
    append(log, engine, 0, 3)
    with engine.connect() as connection:
        with connection.begin() as transaction:
            draft = log.draft(connection)
            draft.append(registered(3))
            draft.seal()
            transaction.rollback()
        assert log.size(connection) == 3
        assert len(list(log.checkpoints(connection))) == 1
    append(log, engine, 4, 6)
    with engine.connect() as connection:
        assert [index for index, _ in log.entries(connection)] == list(range(5))


def test_a_rewound_draft_forgets_its_entries(log: Log, engine: Engine, verifier: Verifier) -> None:
    with engine.begin() as connection:
        draft = log.draft(connection)
        draft.append(registered(0))
        mark = draft.mark()
        draft.append(registered(1))
        draft.rewind(mark)
        assert draft.find(registered(1).id) is None
        assert draft.append(registered(2)).log_index == 1
        assert draft.append(registered(1)).log_index == 2
        draft.seal()
        expected = grown([leaf_hash(registered(number).encode()) for number in (0, 2, 1)])
        assert verifier.open(log.checkpoint(connection)).root == expected.root()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 12)),
            st.tuples(st.sampled_from(["mark", "rewind", "write", "seal"]), st.just(0)),
        ),
        max_size=40,
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_draft_is_a_list_whatever_is_rewound_written_or_sealed(
    log: Log, engine: Engine, verifier: Verifier, steps: list[tuple[str, int]]
) -> None:
    expected: list[int] = []
    mark: tuple[int, int] | None = None
    with engine.connect() as connection:  # never commits
        draft = log.draft(connection)
        for step, number in steps:
            if step == "append":
                appended = draft.append(registered(number))
                assert appended.created == (number not in expected)
                expected += [number] if appended.created else []
                assert appended.log_index == expected.index(number)
            elif step == "mark":
                mark = (draft.mark(), len(expected))
            elif step == "rewind" and mark is not None:
                draft.rewind(mark[0])
                del expected[mark[1] :]
            elif step == "write":
                draft.write()
                mark = None
            elif step == "seal":
                draft.seal()
                mark = None
            assert draft.size == len(expected)
        draft.seal()
        raws = [registered(number).encode() for number in expected]
        assert [raw for _, raw in log.entries(connection)] == raws
        if raws:
            assert verifier.open(log.checkpoint(connection)).root == grown([leaf_hash(raw) for raw in raws]).root()


def test_a_draft_that_is_not_sealed_leaves_nothing(log: Log, engine: Engine) -> None:
    append(log, engine, 0, 2)
    with engine.begin() as connection:
        log.draft(connection).append(registered(2))
    with engine.connect() as connection:
        assert log.size(connection) == 2
        assert len(list(log.checkpoints(connection))) == 1


def test_entries_that_were_written_and_never_sealed_are_not_written_over(log: Log, engine: Engine) -> None:
    append(log, engine, 0, 2)
    with engine.begin() as connection:
        draft = log.draft(connection)
        draft.append(registered(2))
        draft.write()
    with pytest.raises(LogError, match="sealed with 2 entries, but its last entry is 2"):
        append(log, engine, 3, 4)
    with engine.connect() as connection:
        assert log.entry(connection, 2) == registered(2).encode()
        with pytest.raises(NotInLog):
            log.receipt(connection, 2)


def test_a_draft_may_be_sealed_more_than_once(log: Log, engine: Engine, verifier: Verifier) -> None:
    with engine.begin() as connection:
        draft = log.draft(connection)
        for number in range(3):
            assert draft.append(registered(number)).log_index == number
            assert draft.seal() == log.checkpoint(connection)
        assert draft.seal() is None
        assert [verifier.open(note).size for note in log.checkpoints(connection)] == [1, 2, 3]


def test_every_checkpoint_is_kept_and_consistent_with_the_next(log: Log, engine: Engine, verifier: Verifier) -> None:
    for start, stop in itertools.pairwise([0, 1, 2, 7, 8, 20, 33]):
        append(log, engine, start, stop)
    with engine.connect() as connection:
        checkpoints = [verifier.open(note) for note in log.checkpoints(connection)]
        assert [checkpoint.size for checkpoint in checkpoints] == [1, 2, 7, 8, 20, 33]
        for old, new in itertools.combinations_with_replacement(checkpoints, 2):
            path = log.consistency(connection, old.size, new.size)
            verify_consistency(old.size, old.root, new.size, new.root, path)
        for sizes in [(-1, 3), (5, 3), (3, 34)]:
            with pytest.raises(NotInLog):
                log.consistency(connection, *sizes)


def test_every_entry_has_a_receipt_that_verifies(log: Log, engine: Engine, verifier: Verifier) -> None:
    for start, stop in itertools.pairwise([0, 3, 4, 11]):
        append(log, engine, start, stop)
        with engine.connect() as connection:
            for index in range(stop):
                verified = verify_receipt(log.receipt(connection, index), verifier)
                assert verified.ok, str(verified)
                assert verified.entry == registered(index)
                assert verified.index == index


def test_tiles_hold_the_tree_at_each_width(log: Log, engine: Engine) -> None:
    with engine.begin() as connection:
        draft = log.draft(connection)
        leaves = fill(draft, 0, 600)
        draft.seal()
        fill(draft, 600, 700)
        draft.write()  # not sealed, so not to be seen
        assert log.tile(connection, 0, 0, 256) == b"".join(leaves[:256])
        assert log.tile(connection, 0, 2, 88) == b"".join(leaves[512:])
        assert log.tile(connection, 0, 2, 5) == b"".join(leaves[512:517])
        assert log.tile(connection, 1, 0, 2) == grown(leaves[:256]).root() + grown(leaves[256:512]).root()
        assert unpack_bundle(log.entry_bundle(connection, 2, 88)) == [b"leaf %d" % at for at in range(512, 600)]
        assert len(unpack_bundle(log.entry_bundle(connection, 0, 256))) == 256
        for level, number, width in [(0, 2, 89), (0, 3, 1), (1, 0, 3), (2, 0, 1), (63, 0, 1), (0, 2**70, 1)]:
            with pytest.raises(NotInLog, match="600 entries"):
                log.tile(connection, level, number, width)
        with pytest.raises(NotInLog):
            log.entry_bundle(connection, 2, 89)
        for level, number, width in [(0, 0, 0), (0, 0, 257), (0, -1, 1), (64, 0, 1), (-1, 0, 1)]:
            with pytest.raises(TileError):
                log.tile(connection, level, number, width)


def test_a_tree_of_three_tile_levels(log: Log, engine: Engine, verifier: Verifier) -> None:
    size = 256 * 256 + 256 + 7
    with engine.begin() as connection:
        draft = log.draft(connection)
        leaves = fill(draft, 0, 40_000)
        draft.seal()
        leaves += fill(draft, 40_000, size)
        draft.seal()
        checkpoint = verifier.open(log.checkpoint(connection))
        assert checkpoint.root == grown(leaves).root()
        assert connection.scalar(select(func.count()).select_from(log_hash)) == 257 + 1
        assert log.tile(connection, 2, 0, 1) == grown(leaves[: 256 * 256]).root()
        assert log.tile(connection, 1, 1, 1) == grown(leaves[256 * 256 : 256 * 257]).root()
        for index in (0, 255, 256, 65_535, 65_536, size - 1):
            verified = verify_receipt(log.receipt(connection, index), verifier)
            assert [step.number for step in verified.steps if step.ok] == [1, 2, 3, 5, 6]  # these leaves are no entries
        old = grown(leaves[:40_000])
        path = log.consistency(connection, 40_000, size)
        verify_consistency(40_000, old.root(), size, checkpoint.root, path)


def test_a_proof_can_be_built_from_served_tiles_alone(log: Log, engine: Engine, verifier: Verifier) -> None:
    append(log, engine, 0, 300)
    read = []
    with engine.connect() as connection:
        checkpoint = verifier.open(log.checkpoint(connection))

        def fetch(tile: Tile) -> bytes:
            read.append(tile.format())
            assert tile.level is not None
            return log.tile(connection, tile.level, tile.number, tile.width)

        path = inclusion_path(299, checkpoint.size, hashes_from_tiles(checkpoint.size, fetch))
    verify_inclusion(leaf_hash(registered(299).encode()), 299, checkpoint.size, path, checkpoint.root)
    assert sorted(read) == ["tile/0/001.p/44", "tile/1/000.p/1"]


def test_a_lost_tail_is_not_written_over(log: Log, engine: Engine) -> None:
    append(log, engine, 0, 3)
    with engine.begin() as connection:
        connection.execute(delete(log_entry).where(log_entry.c.log_index == 2))
    with pytest.raises(LogError, match="sealed with 3 entries, but its last entry is 1"):
        append(log, engine, 9, 10)


def test_a_lost_entry_is_noticed_not_served(log: Log, engine: Engine) -> None:
    append(log, engine, 0, 10)
    with engine.begin() as connection:
        connection.execute(delete(log_entry).where(log_entry.c.log_index == 4))
        for ask in (
            lambda: log.tile(connection, 0, 0, 10),
            lambda: log.entry_bundle(connection, 0, 10),
            lambda: log.receipt(connection, 9),
            lambda: log.consistency(connection, 5, 10),
        ):
            with pytest.raises(LogError, match=r"of the \d+ parts of tile"):
                ask()


def test_a_lost_hash_is_noticed_not_served(log: Log, engine: Engine) -> None:
    with engine.begin() as connection:
        draft = log.draft(connection)
        fill(draft, 0, 300)
        draft.seal()
        connection.execute(delete(log_hash))
        with pytest.raises(LogError, match="0 of the 1 parts of tile/1/000"):
            log.receipt(connection, 299)


def test_writers_in_threads_share_one_dense_order(log: Log, engine: Engine, verifier: Verifier) -> None:
    def write(worker: int) -> None:
        for batch in range(5):
            start = worker * 100 + batch * 3
            append(log, engine, start, start + 3)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as connection:
        stored = list(log.entries(connection))
        assert [index for index, _ in stored] == list(range(60))
        checkpoint = verifier.open(log.checkpoint(connection))
        assert checkpoint.root == grown([leaf_hash(raw) for _, raw in stored]).root()
        assert len(list(log.checkpoints(connection))) == 20


def test_more_checkpoints_than_a_page(log: Log, engine: Engine, verifier: Verifier) -> None:
    with engine.begin() as connection:
        draft = log.draft(connection)
        for number in range(600):
            fill(draft, number, number + 1)
            draft.seal()
        assert [verifier.open(note).size for note in log.checkpoints(connection)] == list(range(1, 601))


def test_what_is_no_entry_never_reaches_the_log() -> None:
    with pytest.raises(EntryError):
        registered(1, name="\ud800")
