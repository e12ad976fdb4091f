"""Archives: a log as files, whole at every moment, believed by nobody, and restored to the same bytes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, StaticPool, create_engine, select

from ledger_client import (
    ArchiveError,
    ArchiveReader,
    DirectoryStore,
    Finding,
    Log,
    NotInLog,
    Signer,
    Verifier,
    export,
    fsck,
    fsck_archive,
    fsck_derived,
    metadata,
    open_source,
    open_store,
    pack_bundle,
    prove_equal,
    restore,
    unpack_bundle,
)
from ledger_client.tables import log_checkpoint, log_entry, log_hash, log_head

from .. import object_stores  # noqa: TID252  the tests are no package of their own
from ..databases import NewDatabase, engine_of, opened  # noqa: TID252  the tests are no package of their own
from .facts import attributed, granted, priced, registered, ruled, used


def grow(log: Log, connection: Connection, numbers: range, batch: int = 7) -> None:
    draft = log.draft(connection)
    for number in numbers:
        draft.append(registered(number))
        if number % batch == 0:
            draft.seal()
    draft.seal()


def fill(log: Log, engine: Engine) -> Engine:
    """Write a log of 600 entries and 92 checkpoints."""
    with engine.begin() as connection:
        draft = log.draft(connection)
        for entry in (priced(), ruled(), granted("caller:ann", 10_000), used(0), attributed(0, 3)):
            draft.append(entry)
            draft.seal()
        grow(log, connection, range(595))
    return engine


@pytest.fixture
def filled(log: Log, engine: Engine) -> Engine:
    return fill(log, engine)


@pytest.fixture
def in_memory() -> Iterator[Engine]:
    """A database that is quickly made, for tests of files."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, signer: Signer) -> Path:
    folder = tmp_path_factory.mktemp("template") / "archive"
    engine = create_engine("sqlite://", poolclass=StaticPool)
    metadata.create_all(engine)
    with fill(Log(signer), engine).connect() as connection:
        export(Log(signer), connection, DirectoryStore(folder), signer.verifier)
    engine.dispose()
    return folder


@pytest.fixture
def copied(tmp_path: Path, template: Path) -> Path:
    """An archive of the test's own."""
    return shutil.copytree(template, tmp_path / "copied")


@pytest.fixture
def folder(tmp_path: Path, log: Log, filled: Engine, verifier: Verifier) -> Path:
    with filled.connect() as connection:
        export(log, connection, DirectoryStore(tmp_path / "archive"), verifier)
    return tmp_path / "archive"


@pytest.fixture
def other(new_database: NewDatabase) -> Iterator[Engine]:
    """Another database, without a log."""
    with opened(new_database) as database:
        yield engine_of(database, metadata)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reader(folder: Path, verifier: Verifier) -> ArchiveReader:
    return ArchiveReader(DirectoryStore(folder), verifier)


def tables(connection: Connection) -> list[list[tuple[object, ...]]]:
    return [
        sorted(map(tuple, connection.execute(select(table))))
        for table in (log_head, log_entry, log_hash, log_checkpoint)
    ]


def test_an_archive_has_the_files_of_the_gateways_routes(log: Log, filled: Engine, folder: Path) -> None:
    written = files(folder)
    assert set(written) == {
        "checkpoint", "tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2",
        "tile/entries/000", "tile/entries/001", "tile/entries/002.p/88",
        "notes/000", "notes/001", "notes/002.p/88",
    }  # fmt: skip
    with filled.connect() as connection:
        assert written["tile/entries/001"] == log.entry_bundle(connection, 1, 256)
        assert written["tile/1/000.p/2"] == log.tile(connection, 1, 0, 2)
        assert written["checkpoint"].decode() == log.checkpoint(connection)


def test_all_that_was_signed_is_in_an_archive(log: Log, filled: Engine, folder: Path, verifier: Verifier) -> None:
    read = reader(folder, verifier)
    with filled.connect() as connection:
        assert list(read.notes()) == list(log.checkpoints(connection))
        assert list(read.entries()) == list(log.entries(connection))
        assert [read.entry(index) for index in (0, 255, 256, 599)] == [
            log.entry(connection, index) for index in (0, 255, 256, 599)
        ]
        assert prove_equal(read, log, connection).size == 600
    for index in (-1, 600):
        with pytest.raises(NotInLog):
            read.entry(index)


def test_an_export_adds_what_is_new_and_replaces_the_checkpoint_alone(
    log: Log, filled: Engine, folder: Path, verifier: Verifier
) -> None:
    before = files(folder)
    store = DirectoryStore(folder)
    with filled.connect() as connection:
        assert export(log, connection, store, verifier).files == 0
    assert files(folder) == before
    with filled.begin() as connection:
        grow(log, connection, range(1000, 1200))
        done = export(log, connection, store, verifier)
    after = files(folder)
    assert (done.before, done.size, done.files) == (600, 800, len(after.keys() - before.keys()) + 1)
    assert {path for path in before if after[path] != before[path]} == {"checkpoint"}
    assert {"tile/entries/002", "tile/entries/003.p/32", "notes/003.p/32", "tile/1/000.p/3"} <= after.keys()
    with filled.connect() as connection:
        prove_equal(reader(folder, verifier), log, connection)
    assert fsck_archive(reader(folder, verifier)) == []


def test_an_export_that_was_cut_off_is_taken_up_again(
    tmp_path: Path, log: Log, filled: Engine, verifier: Verifier
) -> None:
    class Full(DirectoryStore):
        room = 5

        def write(self, path: str, content: bytes) -> None:
            self.room -= 1
            if self.room < 0:
                raise ArchiveError("no space left")
            super().write(path, content)

    store = Full(tmp_path / "archive")
    with filled.connect() as connection:
        with pytest.raises(ArchiveError, match="no space"):
            export(log, connection, store, verifier)
        assert not (tmp_path / "archive" / "checkpoint").exists()
        assert export(log, connection, DirectoryStore(tmp_path / "archive"), verifier).files == 6
        prove_equal(reader(tmp_path / "archive", verifier), log, connection)


def test_an_empty_log_has_an_archive(
    tmp_path: Path, log: Log, engine: Engine, other: Engine, verifier: Verifier
) -> None:
    with engine.connect() as connection:
        assert export(log, connection, DirectoryStore(tmp_path), verifier).size == 0
        prove_equal(reader(tmp_path, verifier), log, connection)
    assert fsck_archive(reader(tmp_path, verifier)) == []
    with other.begin() as connection:
        restore(reader(tmp_path, verifier), log, connection)
        assert log.size(connection) == 0


def test_immutable_files_are_never_replaced(log: Log, filled: Engine, folder: Path, verifier: Verifier) -> None:
    (folder / "tile/entries/002").write_bytes(b"in the way")
    with filled.begin() as connection:
        grow(log, connection, range(1000, 1200))
        with pytest.raises(ArchiveError, match="tile/entries/002 is in the archive with other bytes"):
            export(log, connection, DirectoryStore(folder), verifier)
    assert (folder / "tile/entries/002").read_bytes() == b"in the way"


def test_the_archive_of_another_history_is_left_alone(
    log: Log, folder: Path, other: Engine, verifier: Verifier
) -> None:
    before = files(folder)
    with other.begin() as connection:
        grow(log, connection, range(600))
        with pytest.raises(ArchiveError, match="another history"):
            export(log, connection, DirectoryStore(folder), verifier)
    assert files(folder) == before


def test_a_log_that_was_rolled_back_is_not_archived(log: Log, folder: Path, other: Engine, verifier: Verifier) -> None:
    with other.begin() as connection:
        grow(log, connection, range(10))
        with pytest.raises(ArchiveError, match="more than the log"):
            export(log, connection, DirectoryStore(folder), verifier)


def test_a_restored_log_is_equal_and_goes_on(
    log: Log, filled: Engine, folder: Path, other: Engine, verifier: Verifier
) -> None:
    with other.begin() as connection:
        assert restore(reader(folder, verifier), log, connection).size == 600
    with filled.connect() as source, other.connect() as restored:
        assert tables(restored) == tables(source)
        assert prove_equal(reader(folder, verifier), log, restored).size == 600
        assert fsck(log.entries(restored), log.checkpoints(restored), None, verifier) == []
        assert fsck_derived(restored) == []
    for engine in (filled, other):
        with engine.begin() as connection:
            grow(log, connection, range(1000, 1010))
    with filled.connect() as source, other.connect() as restored:
        assert tables(restored) == tables(source)
        with pytest.raises(ArchiveError, match="not the newest"):
            prove_equal(reader(folder, verifier), log, restored)


def test_nothing_is_restored_over_a_log(log: Log, filled: Engine, folder: Path, verifier: Verifier) -> None:
    with filled.begin() as connection, pytest.raises(ArchiveError, match="has a log already"):
        restore(reader(folder, verifier), log, connection)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1
    path.write_bytes(content)


def found(folder: Path, verifier: Verifier) -> list[Finding]:
    try:
        return fsck_archive(reader(folder, verifier))
    except ArchiveError as error:
        return [Finding(invariant="I5", log_index=None, message=str(error))]


TAMPERED: list[tuple[str, Callable[[Path], None]]] = [
    ("tile/entries/001", lambda path: flip(path, 1000)),
    ("tile/entries/000", lambda path: flip(path, 0)),
    ("tile/entries/002.p/88", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    ("tile/entries/002.p/88", lambda path: path.write_bytes(path.read_bytes() + b"\0\1x")),
    ("tile/entries/001", lambda path: path.write_bytes((path.parent / "000").read_bytes())),
    ("tile/entries/001", lambda path: path.unlink()),
    ("tile/0/001", lambda path: flip(path, 77)),
    ("tile/0/002.p/88", lambda path: flip(path, 32 * 87)),
    ("tile/0/000", lambda path: path.write_bytes(path.read_bytes()[:-32])),
    ("tile/0/000", lambda path: path.write_bytes(path.read_bytes() + bytes(32))),
    ("tile/1/000.p/2", lambda path: flip(path, 40)),
    ("tile/1/000.p/2", lambda path: path.unlink()),
    ("notes/001", lambda path: flip(path, 30)),
    ("notes/001", lambda path: path.unlink()),
    ("notes/001", lambda path: path.write_bytes((path.parent / "000").read_bytes())),
    ("notes/002.p/88", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    ("checkpoint", lambda path: flip(path, 18)),
    ("checkpoint", lambda path: path.unlink()),
]


@pytest.mark.parametrize(("name", "tamper"), TAMPERED)
def test_what_was_done_to_a_file_is_named(
    copied: Path, verifier: Verifier, name: str, tamper: Callable[[Path], None]
) -> None:
    tamper(copied / name)
    assert {finding.invariant for finding in found(copied, verifier)} & {"I5", "I8"}


# What an entry is proven with is the checkpoint and the hashes above its bundle; notes are restored too.
NEEDED = [each for each in TAMPERED if each[0] not in {"tile/0/000", "tile/0/001"}]


@pytest.mark.parametrize(("name", "tamper"), NEEDED)
def test_a_tampered_archive_is_not_restored(
    copied: Path, in_memory: Engine, log: Log, verifier: Verifier, name: str, tamper: Callable[[Path], None]
) -> None:
    tamper(copied / name)
    with pytest.raises(ArchiveError), in_memory.begin() as connection:
        restore(reader(copied, verifier), log, connection)
    with in_memory.connect() as connection:
        assert log.size(connection) == 0


def test_a_changed_entry_is_named_by_its_index(copied: Path, verifier: Verifier) -> None:
    bundle = copied / "tile/entries/001"
    bundle.write_bytes(bundle.read_bytes().replace(b'"c256"', b'"c_56"'))
    findings = found(copied, verifier)
    assert ("I8", 256 + 5) in {(finding.invariant, finding.log_index) for finding in findings}
    with pytest.raises(ArchiveError, match="tile/entries/001"):
        list(reader(copied, verifier).entries())


def test_swapped_entries_and_a_dropped_one_are_named(copied: Path, verifier: Verifier) -> None:
    bundle = copied / "tile/entries/001"
    entries = unpack_bundle(bundle.read_bytes())
    entries[3], entries[4] = entries[4], entries[3]
    bundle.write_bytes(pack_bundle(entries))
    named = {(finding.invariant, finding.log_index) for finding in found(copied, verifier)}
    assert {("I8", 259), ("I8", 260)} <= named
    bundle.write_bytes(pack_bundle(entries[:-1]))
    assert [str(finding) for finding in found(copied, verifier)] == ["I5: tile/entries/001 holds 255 entries, not 256"]


def test_another_key_is_not_believed(copied: Path, signer: Signer) -> None:
    with pytest.raises(ArchiveError, match="cannot be believed"):
        reader(copied, Signer.generate(signer.name).verifier)


def test_a_fork_that_the_key_signed_is_named(
    folder: Path, tmp_path: Path, other: Engine, log: Log, verifier: Verifier
) -> None:
    with other.begin() as connection:
        grow(log, connection, range(600))
        export(log, connection, DirectoryStore(tmp_path / "fork"), verifier)
    shutil.copy(tmp_path / "fork" / "checkpoint", folder / "checkpoint")
    assert list(map(str, found(folder, verifier))) == [
        "I8: the entries are not those that the checkpoint of 600 entries was signed over"
    ]
    with pytest.raises(ArchiveError):
        list(reader(folder, verifier).entries())


@pytest.fixture
def served(copied: Path) -> Iterator[str]:
    """The archive on a web server of its own."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(copied))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_archive_is_read_over_http(served: str, copied: Path, verifier: Verifier) -> None:
    source = open_source(served)
    assert fsck_archive(ArchiveReader(source, verifier)) == []
    shutil.rmtree(copied / "notes")  # as a gateway, which serves its newest checkpoint alone
    read = ArchiveReader(source, verifier)
    assert list(read.notes()) == [read.note]
    assert fsck_archive(read, processes=1) == []
    with pytest.raises(ArchiveError, match="longer than the 3 bytes"):
        source.read("checkpoint", 3)
    source.close()  # type: ignore[attr-defined]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket in an S3-compatible store on loopback."""
    with object_stores.bucket(monkeypatch) as name:
        yield f"s3://{name}/our/log"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_an_archive_lies_in_an_object_store(
    bucket: str, log: Log, filled: Engine, other: Engine, verifier: Verifier
) -> None:
    store = open_store(bucket)
    with filled.connect() as connection:
        assert export(log, connection, store, verifier).files == 11
        assert export(log, connection, store, verifier).files == 0
        read = ArchiveReader(open_source(bucket), verifier)
        prove_equal(read, log, connection)
    assert fsck_archive(read) == []
    with other.begin() as connection:
        restore(read, log, connection)
    assert store.read("tile/entries/999", 10) is None
    with pytest.raises(ArchiveError, match="longer than"):
        store.read("checkpoint", 3)
    with pytest.raises(ArchiveError, match="cannot be written"):
        open_store("s3://no-such-bucket/log").write("a", b"")


def test_what_is_no_archive_is_refused() -> None:
    for name in ("ftp://example.com/log", "http://example.com/log", "s3:///log"):
        with pytest.raises(ArchiveError, match="a folder or to s3"):
            open_store(name)
