"""The adapters on this machine, each in a folder named by its digest.

What engines are given lies here and nowhere else: copied once, verified, written through to the disk, and from then on
compared with its digest whenever it is read. So whatever becomes of the place it came from changes nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock

from gateway.adapter_sources import AdapterSource, SourceError, SourceKind, open_source
from gateway.engines import AdapterFiles, AdapterRejected
from gateway.engines.adapters import FILE_LIMITS_BYTES

Tell: TypeAlias = Callable[[str, int, int | None], None]
"""Takes a file's name, its bytes so far, and its bytes in all where the source says how many."""

_ARRIVING = ".arriving-"


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """An adapter in the store. source: the address that it can be pulled from again."""

    files: AdapterFiles
    source: str


class AdapterStore:
    """A folder of adapters.

    directory: made by the first pull. sources: the kinds that may be pulled from. base_model: what they must be made
    for. max_rank: of the engine.
    """

    def __init__(self, directory: Path, *, sources: Sequence[SourceKind], base_model: str, max_rank: int) -> None:
        self._directory = directory
        self._sources = sources
        self._base_model = base_model
        self._max_rank = max_rank

    def pull(self, source: str, *, digest: str | None = None, tell: Tell | None = None) -> Pulled:
        """Copy an adapter into the store, unless it is there.

        source: see `open_source`. digest: what it must have, where that is known. Raises SourceError, and
        AdapterRejected for files that no engine is to see; the store is as it was then.
        """
        with closing(open_source(source, self._sources)) as opened, self._arriving() as folder:
            for name in FILE_LIMITS_BYTES:
                _copy(opened, name, folder / name, tell)
            files = self._verified(folder)
            if digest not in {None, files.digest}:
                raise AdapterRejected(f"{opened.address} holds sha256 {files.digest} by now, not {digest}")
            self._keep(folder, files.digest)
            return Pulled(files=self.read(files.digest), source=opened.address)

    def read(self, digest: str) -> AdapterFiles:
        """Return a stored adapter, verified anew. Raises AdapterRejected when it is not there, or not what it was."""
        folder = self._directory / digest
        if not folder.is_dir():
            raise AdapterRejected(f"there is no adapter sha256 {digest} in {self._directory}")
        # An engine that reads the folder itself might take more from it than what was verified.
        if strange := {file.name for file in folder.iterdir()} - FILE_LIMITS_BYTES.keys():
            raise AdapterRejected(f"{folder} holds {min(strange)}, which nobody verified; remove it")
        files = self._verified(folder)
        if files.digest != digest:
            raise AdapterRejected(
                f"the files in {folder} are not those that were registered; "
                "remove the folder, and they are pulled again"
            )
        return files

    def require(self, digest: str, source: str) -> AdapterFiles:
        """Return a registered adapter, pulled again from its source where this machine has none of it.

        Raises AdapterRejected and SourceError.
        """
        if (self._directory / digest).is_dir():
            return self.read(digest)
        try:
            return self.pull(source, digest=digest).files
        except SourceError as error:
            raise SourceError(f"there is no adapter sha256 {digest} in {self._directory}, and {error}") from error

    def _verified(self, folder: Path) -> AdapterFiles:
        files = AdapterFiles.read(folder, max_rank=self._max_rank)
        files.check_base(self._base_model)
        return files

    @contextmanager
    def _arriving(self) -> Iterator[Path]:
        """A folder beside the others for what is not verified yet; one pull at a time."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with FileLock(self._directory / ".lock"):
            for left in self._directory.glob(f"{_ARRIVING}*"):  # by a pull that was killed: we hold the lock
                shutil.rmtree(left)
            folder = Path(tempfile.mkdtemp(prefix=_ARRIVING, dir=self._directory))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, folder: Path, digest: str) -> None:
        """Move a verified folder to its name, with all that it holds on the disk first."""
        target = self._directory / digest
        if target.is_dir():
            return
        # Not writable, so that nobody edits them by mistake; the folder is, so that it is deleted like any other.
        for name in FILE_LIMITS_BYTES:
            (folder / name).chmod(0o444)
        folder.chmod(0o755)
        _sync(folder)
        folder.rename(target)
        _sync(self._directory)


def _copy(source: AdapterSource, name: str, target: Path, tell: Tell | None) -> None:
    limit_bytes = FILE_LIMITS_BYTES[name]
    done = 0
    with source.open(name) as opened, target.open("xb") as file:
        for piece in opened.pieces:
            done += len(piece)
            if done > limit_bytes:
                raise AdapterRejected(f"{name} is larger than the {limit_bytes} bytes allowed")
            file.write(piece)
            if tell:
                tell(name, done, opened.size_bytes)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
