"""A disk whose power can be cut: a file system for SQLite that knows what was synced and what was not.

Files are written through to a real folder, so that a running program sees them as they are. Beside each stands what a
cut would surely leave: its bytes at the last sync. At the cut every sector that was written since is kept, lost or torn
by lot, each on its own, and so are file sizes and directory entries. A torn sector keeps the bytes that the write did
not touch, as SQLite expects of a disk (SQLITE_IOCAP_POWERSAFE_OVERWRITE, its default).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import apsw

SECTOR_BYTES = 512


class PowerCut(apsw.IOError):
    """The machine is off."""


@dataclass
class _File:
    """What is known of a file beside its bytes. synced: its bytes as of the last sync. entered: its name is synced."""

    synced: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)  # sectors written since
    entered: bool = False
    deleted: bool = False  # without the directory having been synced since


class Disk(apsw.VFS):
    """One disk with one folder. name: of the file system, for the URL of a database.

    cut_after: how many writes and syncs it lives through; None for ever. The next is under way when the power goes.
    """

    def __init__(self, folder: Path, cut_after: int | None = None) -> None:
        self.name = f"disk-{secrets.token_hex(8)}"
        self.folder = folder
        self.cut_after = cut_after
        self.steps = 0
        self.off = False
        self.files: dict[str, _File] = {}
        for path in folder.iterdir():  # what lies there already is old
            self.files[path.name] = _File(synced=bytearray(path.read_bytes()), entered=True)
        super().__init__(self.name, "unix")

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> OpenFile:  # noqa: N802 - SQLite's name
        self.check()
        assert name is not None  # only temporary files have none, and the write path makes none
        path = Path(name if isinstance(name, str) else name.filename())
        opened = OpenFile(self, path.name, name, flags)
        if path.name not in self.files or self.files[path.name].deleted:
            self.files[path.name] = self._reborn(path.name)
        return opened

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.step()
        super().xDelete(filename, syncdir)
        self.files[Path(filename).name].deleted = True
        if syncdir:
            self.sync_folder()

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        self.check()
        return super().xAccess(pathname, flags)

    def excepthook(self, *_: object) -> None:
        """Say nothing: what SQLite cannot report is that the power is off."""

    def sync_folder(self) -> None:
        """Names are as they are from here on."""
        for name, file in list(self.files.items()):
            file.entered = True
            if file.deleted:
                del self.files[name]

    def step(self) -> None:
        """Count a write or sync, and go off when its turn has come. Raises PowerCut."""
        self.check()
        self.steps += 1
        if self.cut_after is not None and self.steps > self.cut_after:
            self.off = True
            raise PowerCut

    def check(self) -> None:
        if self.off:
            raise PowerCut

    def after_cut(self, lots: Random, folder: Path) -> None:
        """Write to an empty folder what the cut left."""
        self.off = True
        for name, file in sorted(self.files.items()):
            if not file.entered and lots.random() < 0.5:
                continue  # its name was never written
            if file.deleted and lots.random() < 0.5:
                continue
            now = b"" if file.deleted else (self.folder / name).read_bytes()
            (folder / name).write_bytes(bytes(file.synced) if file.deleted else _left(file, now, lots))

    def _reborn(self, name: str) -> _File:
        """A new file, or one under a name whose deletion is not synced: the sectors of both are at stake."""
        old = self.files.get(name)
        if old is None:
            return _File()
        return _File(synced=old.synced, dirty=set(range(_sectors(len(old.synced)))), entered=old.entered)


class OpenFile(apsw.VFSFile):
    """A file that SQLite has open."""

    def __init__(self, disk: Disk, name: str, filename: apsw.URIFilename | str, flags: list[int]) -> None:
        self._disk = disk
        self._name = name
        # SQLite syncs the folder with the first sync of a journal that it created.
        self._enters = bool(flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL))
        super().__init__("unix", filename, flags)

    @property
    def _file(self) -> _File:
        return self._disk.files[self._name]

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._disk.check()
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.check()
        super().xWrite(data, offset)
        self._file.dirty.update(range(offset // SECTOR_BYTES, _sectors(offset + len(data))))
        self._disk.step()

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._disk.check()
        size = self.xFileSize()
        super().xTruncate(newsize)
        self._file.dirty.update(range(newsize // SECTOR_BYTES, _sectors(size)))
        self._disk.step()

    def xSync(self, _flags: int) -> None:  # noqa: N802
        self._disk.step()
        file, size = self._file, self.xFileSize()
        del file.synced[size:]
        file.synced.extend(bytes(size - len(file.synced)))
        for sector in sorted(file.dirty):
            start = sector * SECTOR_BYTES
            length = min(SECTOR_BYTES, size - start)
            if length > 0:
                file.synced[start : start + length] = super().xRead(length, start)
        file.dirty.clear()
        if self._enters and not file.entered:
            self._disk.sync_folder()

    def excepthook(self, *_: object) -> None:
        """Say nothing: what SQLite cannot report is that the power is off."""


def _sectors(size_bytes: int) -> int:
    return -(-size_bytes // SECTOR_BYTES)


def _left(file: _File, now: bytes, lots: Random) -> bytes:
    """Return what a cut leaves of a file that holds `now`."""
    kept = lots.choice((0.0, 0.1, 0.5, 0.9, 1.0))  # some cuts lose nearly everything, and some nearly nothing
    size = len(now) if lots.random() < kept else len(file.synced)
    if lots.random() < 0.2:
        size = lots.randint(min(len(now), len(file.synced)), max(len(now), len(file.synced)))
    left = bytearray(file.synced[:size])
    left.extend(bytes(size - len(left)))
    for sector in sorted(file.dirty):
        start, end = sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, size, len(now))
        if start >= end:
            continue
        lot = lots.random()
        if lot < kept * 0.9:
            left[start:end] = now[start:end]
        elif lot < kept * 0.9 + 0.05:
            torn = lots.randint(start, end)
            left[start:torn] = now[start:torn]
        elif lot < kept * 0.9 + 0.1 and start >= len(file.synced):
            left[start:end] = lots.randbytes(end - start)  # a sector that nothing was written to holds anything
    return bytes(left)
