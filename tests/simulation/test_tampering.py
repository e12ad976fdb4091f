"""Tampering with a real log, its books and its files: each is found, and the finding names the invariant and the place.

The checkers read through SQLAlchemy whatever the database; the log here is on SQLite, which is the easier to break.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Connection, Table, delete, func, select, update

from gateway.database import Database
from ledger_client import (
    ENTRY_TYPES,
    ArchiveReader,
    Checkpoint,
    DirectoryStore,
    Entry,
    Finding,
    Log,
    ProofError,
    Refusal,
    Submission,
    Witness,
    WitnessRefused,
    WitnessSigner,
    WitnessState,
    export,
    fsck_archive,
    verify_consistency,
    verify_receipt,
)
from ledger_client.tables import log_checkpoint, log_entry, log_hash, log_head
from metering import Committer, Transaction
from metering.tables import intent_table, metadata
from tests.metering.kit import Clock, new_books, request_id

from .load import LOG, SIGNER, findings
from .world import World

SEED, STEPS = 0, 300
GRANTS = 140  # so that the log has tiles above its leaves
LOG_TABLES = (log_entry, log_hash, log_checkpoint, log_head)
BOOKS_TABLES = tuple(metadata.sorted_tables)
FAR = 1_000_003

# What only the books know: how requests were limited, which moves no money and is in no entry.
UNLOGGED = {
    "intent.admitted_at",
    "intent.maximum_tokens",
    "intent.budgeted",
    *(str(column) for column in (*metadata.tables["budget"].c, *metadata.tables["budget_draw"].c)),
}
COLUMNS = [column for table in (*LOG_TABLES, *BOOKS_TABLES) for column in table.c if str(column) not in UNLOGGED]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which everything happened that can, and that is sound."""
    path = tmp_path_factory.mktemp("history") / "ledger.db"
    world = World(SEED, f"sqlite:///{path}")
    try:
        world.run(STEPS)
    finally:
        world.close()
    database = Database(f"sqlite:///{path}")
    books = new_books("gw-9", Clock(world.time))
    with Committer(database.write, LOG) as committer:
        committer.submit(lambda tx: [grant(tx, number) for number in range(GRANTS)]).result()
        committer.submit(lambda tx: books.admit(tx, "caller:rich", 1, request_id(10**6))).result()
    with database.read() as connection:
        logged = {Entry.decode(raw).type for _, raw in LOG.entries(connection)}
        assert logged == ENTRY_TYPES - {"contributor.registered", "document.withdrawn", "entry.received"}
        assert findings(connection) == []
    database.close()
    return path


def grant(transaction: Transaction, number: int) -> int:
    return new_books("gw-9").grant_credit(transaction, "caller:rich", 1, "more", f"rich-{number}")


@pytest.fixture
def connection(history: Path) -> Iterator[Connection]:
    """The history in a transaction that is rolled back, without the checks that a database makes itself."""
    database = Database(f"sqlite:///{history}")
    with database.engine.execution_options(write=True).connect() as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        yield connection
        connection.rollback()
    database.close()


def other(value: Any) -> Any:
    """A value of the same kind that is not the same."""
    if isinstance(value, bytes):
        middle = len(value) // 2
        return value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :] if value else b"\0"
    if isinstance(value, str):
        return value[:-1] + ("y" if value[-1:] == "x" else "x")
    return value + FAR


def named(table: Table, row: sa.Row[Any], column: Column[Any], found: list[Finding]) -> bool:
    """Whether a finding says where it is that the row was changed."""
    values = row._mapping
    if "account" in table.primary_key.columns:
        return any(values["account"] in finding.message for finding in found)
    if column is log_entry.c.log_index:  # what follows it is where it is missed
        return any(finding.log_index in {values["log_index"] + 1, values["log_index"] + FAR} for finding in found)
    place = "attribution_index" if column.name == "attribution_index" else "ended_index"
    log_index = values.get("log_index", values.get(place))
    if log_index is not None:
        return any(finding.log_index == log_index for finding in found)
    return any(finding.invariant in {"I4", "I5", "I8"} for finding in found)


@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_a_value_that_was_changed_is_found_and_named(connection: Connection, column: Column[Any]) -> None:
    table = column.table
    assert isinstance(table, Table)
    query = select(table).where(column.is_not(None)).order_by(*table.primary_key)
    if table is intent_table:  # the log says whose a request was where it was charged, and nothing of one that is open
        ended, charge = intent_table.c.ended_index, intent_table.c.charge_nano
        known = {"maximum_nano": ended.is_(None), "account": charge > 0}
        query = query.where(known.get(column.name, ended.is_not(None)))
    rows = connection.execute(query).all()
    assert rows
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        with connection.begin_nested() as savepoint:
            key = [part == row._mapping[part.name] for part in table.primary_key]
            connection.execute(update(table).where(*key).values({column.name: other(row._mapping[column.name])}))
            found = findings(connection)
            assert named(table, row, column, found), f"{row} was changed, and found: {found[:5]}"
            savepoint.rollback()


@pytest.mark.parametrize("table", [*LOG_TABLES, *BOOKS_TABLES], ids=str)
def test_a_row_that_was_dropped_is_found_and_named(connection: Connection, table: Table) -> None:
    if table.name in {"budget", "budget_draw"}:
        pytest.skip("the log says nothing of limits")
    rows = connection.execute(select(table).order_by(*table.primary_key)).all()
    chosen = [rows[-1]] if table is log_checkpoint else [rows[0], rows[len(rows) // 2], rows[-1]]
    for row in chosen:
        with connection.begin_nested() as savepoint:
            connection.execute(delete(table).where(*(part == row._mapping[part.name] for part in table.primary_key)))
            found = findings(connection)
            assert found, f"{row} was dropped"
            assert all(finding.invariant in {f"I{number}" for number in range(1, 9)} for finding in found)
            savepoint.rollback()


def test_a_leaf_that_was_dropped_is_missed_where_it_was(connection: Connection) -> None:
    size = LOG.size(connection)
    connection.execute(delete(log_entry).where(log_entry.c.log_index == 100))
    assert "I5 at log index 101: log index 101 follows where 100 should" in map(str, findings(connection))
    assert size > 256


def test_a_newest_checkpoint_that_was_dropped_leaves_entries_that_nothing_covers(connection: Connection) -> None:
    newest = connection.scalar(select(func.max(log_checkpoint.c.size)))
    connection.execute(delete(log_checkpoint).where(log_checkpoint.c.size == newest))
    covered = connection.scalar(select(func.max(log_checkpoint.c.size)))
    message = f"I5 at log index {covered}: no checkpoint covers entries {covered} to {newest - 1}"
    assert message in map(str, findings(connection))


def test_each_file_of_an_archive_is_missed_and_a_byte_of_it_that_was_changed_is_found(
    history: Path, tmp_path: Path
) -> None:
    database = Database(f"sqlite:///{history}")
    with database.read() as connection:
        export(LOG, connection, DirectoryStore(tmp_path), SIGNER.verifier)
    database.close()

    def check() -> list[str]:
        try:
            reader = ArchiveReader(DirectoryStore(tmp_path), SIGNER.verifier)
        except Exception as error:  # the checkpoint itself is no longer one of this log
            return [f"{type(error).__name__}: {error}"]
        return [str(finding) for finding in fsck_archive(reader)]

    assert check() == []
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) >= 6
    for path in files:
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert check(), f"byte {place} of {path} was changed"
        path.unlink()
        assert check() or path.parts[-2:] == ("notes", "000"), f"{path} was dropped"  # without it, no notes are kept
        path.write_bytes(content)
    assert check() == []


def test_no_byte_of_a_receipt_can_be_changed(connection: Connection) -> None:
    receipt = LOG.receipt(connection, 50)
    assert verify_receipt(receipt, SIGNER.verifier).ok
    raw = receipt.encode()
    for place in range(0, len(raw), 3):
        verified = verify_receipt(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :], SIGNER.verifier)
        assert not verified.ok
        assert not verified.steps[-1].ok, "the step that failed is the last, and is named"
        assert verified.steps[-1].name


class Copy:
    """A copy of the history that its operator goes on with, under the same key."""

    def __init__(self, history: Path, folder: Path) -> None:
        folder.mkdir()
        self.path = Path(shutil.copy(history, folder))
        self.database = Database(f"sqlite:///{self.path}")

    def go_on(self, numbers: range) -> None:
        with Committer(self.database.write, LOG) as committer:
            for number in numbers:
                committer.submit(lambda tx, n=number: grant(tx, n)).result()

    def read(self, question: Callable[[Connection], Any]) -> Any:
        with self.database.read() as connection:
            return question(connection)

    @property
    def head(self) -> Checkpoint:
        return SIGNER.verifier.open(self.read(LOG.checkpoint))

    def submission(self, old_size: int) -> bytes:
        """What the operator posts to a witness: the newest checkpoint, and the proof from the tree of old_size."""
        proof = self.read(lambda connection: LOG.consistency(connection, old_size, self.head.size))
        return Submission(old_size=old_size, proof=tuple(proof), note=self.read(LOG.checkpoint)).format().encode()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    state = WitnessState.create(tmp_path / "witness.db")
    yield Witness(signer=WitnessSigner.generate("witness.example/w"), logs=[SIGNER.verifier], state=state)
    state.close()


def test_a_fork_is_sound_by_itself_and_refused_by_the_witness(history: Path, tmp_path: Path, witness: Witness) -> None:
    public, secret = (Copy(history, tmp_path / name) for name in ("public", "secret"))
    before = public.head
    public.go_on(range(GRANTS, GRANTS + 5))
    secret.go_on(range(GRANTS + 5, GRANTS + 12))
    assert public.read(findings) == secret.read(findings) == []
    witness.add_checkpoint(public.submission(0))
    with pytest.raises(WitnessRefused) as caught:
        witness.add_checkpoint(secret.submission(public.head.size))
    assert caught.value.refusal is Refusal.INCONSISTENT
    proof = secret.read(lambda connection: LOG.consistency(connection, public.head.size, secret.head.size))
    with pytest.raises(ProofError):  # as whoever kept the public checkpoint can show without a witness
        verify_consistency(public.head.size, public.head.root, secret.head.size, secret.head.root, proof)
    proof = secret.read(lambda connection: LOG.consistency(connection, before.size, secret.head.size))
    verify_consistency(before.size, before.root, secret.head.size, secret.head.root, proof)
    for copy in (public, secret):
        copy.database.close()


def test_a_log_that_was_rolled_back_is_sound_by_itself_and_refused_by_the_witness(
    history: Path, tmp_path: Path, witness: Witness
) -> None:
    public, restored = (Copy(history, tmp_path / name) for name in ("public", "restored"))
    public.go_on(range(GRANTS, GRANTS + 5))
    witness.add_checkpoint(public.submission(0))
    assert restored.read(findings) == []
    with pytest.raises(WitnessRefused) as caught:
        witness.add_checkpoint(restored.submission(restored.head.size))
    assert (caught.value.refusal, caught.value.size) == (Refusal.STALE, public.head.size)
    restored.go_on(range(GRANTS + 5, GRANTS + 14))
    with pytest.raises(WitnessRefused) as caught:
        witness.add_checkpoint(restored.submission(public.head.size))
    assert caught.value.refusal is Refusal.INCONSISTENT
    for copy in (public, restored):
        copy.database.close()


def test_a_log_of_another_key_is_not_believed(connection: Connection) -> None:
    other_signer = type(SIGNER).generate(SIGNER.name)
    with pytest.raises(Exception, match=SIGNER.name):
        other_signer.verifier.open(Log(SIGNER).checkpoint(connection))
