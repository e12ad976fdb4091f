"""Laws that go on in a process of their own: on two processors a log is checked in little more than half the time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from ledger_client.amounts import Amounts
from ledger_client.entries import Entry, EntryError
from ledger_client.laws import Finding, Law, Logged

_CHUNK_ENTRIES = 256


class LawsApart:
    """A process that takes over laws as they are, is shown what `Entry.decode` accepted, and tells at the end.

    The laws look at entries and amounts alone, and are not to be used here any more. Raises OSError when no process
    can be started, or when it died.
    """

    def __init__(self, laws: Sequence[Law]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_follow, args=(theirs, laws), daemon=True)
        self._process.start()
        theirs.close()
        self._chunk: list[tuple[int, bytes]] = []

    def show(self, log_index: int, raw: bytes) -> None:
        """Hand on an entry; it waits where the other process is behind."""
        self._chunk.append((log_index, raw))
        if len(self._chunk) == _CHUNK_ENTRIES:
            self._pipe.send(self._chunk)
            self._chunk = []

    def end(self) -> list[Finding]:
        """Return all that the laws found."""
        try:
            if self._chunk:
                self._pipe.send(self._chunk)
            self._pipe.send([])
            findings: list[Finding] = self._pipe.recv()
        except EOFError as error:
            raise OSError("the process that checks amounts has died") from error
        return findings

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def read_amounts(log_index: int, entry: Entry) -> tuple[Amounts | None, Finding | None]:
    """Return the amounts of an entry, or I1 where they cannot be read."""
    try:
        return Amounts.of(entry), None
    except EntryError as error:
        return None, Finding(invariant="I1", log_index=log_index, message=str(error))


def _follow(pipe: Connection, laws: Sequence[Law]) -> None:
    findings: list[Finding] = []
    with suppress(EOFError):  # whoever asked is gone
        while chunk := pipe.recv():
            for log_index, raw in chunk:
                entry = Entry.read_again(raw)
                amounts, unreadable = read_amounts(log_index, entry)
                if unreadable is not None:
                    findings.append(unreadable)
                logged = Logged(log_index, b"", entry, amounts)
                for law in laws:
                    if law.types is None or entry.type in law.types:
                        for invariant, message in law.entry(logged):
                            findings.append(Finding(invariant=invariant, log_index=log_index, message=message))
        for law in laws:
            findings.extend(law.end())
        pipe.send(findings)
