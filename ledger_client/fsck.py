"""The checker: reads everything stored, believes none of it, and says which entry breaks which invariant.

It streams: what it keeps grows by the accounts, registrations and corrections of a log, never by its entries. The
invariants and what they mean are in `ledger_client.laws`.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

from ledger_client.apart import LawsApart, read_amounts
from ledger_client.checkpoint import Checkpoint, CheckpointError, Verifier
from ledger_client.entries import ENTRY_TYPES, Entry, EntryError
from ledger_client.laws import Fault, Finding, Identities, Law, Logged, Money, Sequences
from ledger_client.merkle import GrowingTree, leaf_hash
from ledger_client.references import Corrections, Lineage, Ratings, References
from ledger_client.settling import Periods

_PROGRESS_ENTRIES = 1000
_NOTES = 256  # that a helping process verifies at a time; fewer are verified here, sooner than one could start
_CHUNKS_AHEAD = 4
_MANY_ENTRIES = 20_000  # after which a process of its own for some of the laws has paid for its start

_Report: TypeAlias = Callable[[str, int | None, str], None]
"""Takes (invariant, log index, what is wrong)."""

_Opened: TypeAlias = Checkpoint | str
"""A checkpoint that the log's key signed, or why a note holds none."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a check is. total: entries that there are, where it was told. rate: entries a second so far."""

    done: int
    total: int | None
    rate: float


def fsck(
    entries: Iterable[tuple[int, bytes]],
    checkpoints: Iterable[str],
    balances: Mapping[str, int] | None,
    verifier: Verifier,
    *,
    open_intents: Collection[tuple[str, int]] = (),
    read: Callable[[int], bytes] | None = None,
    laws: Iterable[Law] = (),
    processes: int = 0,
    total: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Finding]:
    """Check I1 to I6 and I8 from the stored bytes alone. Returns what is broken, in the order in which it is found.

    entries: (log index, bytes), in order. checkpoints: all the notes ever signed, by size. balances: account → nano-USD
    as the books have it, accounts at 0 optional; None when only the log is at hand. open_intents: (gateway, sequence
    number) of admissions that have no entry yet. read: returns an entry by log index, and raises LookupError; needed
    where entries correct or rate others. laws: more of them, which are shown each entry before the next is asked for.
    processes: how many may help with signatures; above 0, one more takes over half of the laws. They are started for a
    large log alone. progress: called every 1000 entries and at the end, when total is repeated to it.

    Reads both streams once, and writes temporary files for a large log.
    """
    findings: list[Finding] = []

    def report(invariant: str, log_index: int | None, message: str) -> None:
        findings.append(Finding(invariant=invariant, log_index=log_index, message=message))

    started = time.monotonic()

    def tell(done: int) -> None:
        if progress:
            progress(Progress(done=done, total=total, rate=done / max(time.monotonic() - started, 1e-9)))

    with tempfile.TemporaryDirectory(prefix="tributary-fsck-") as folder, _helpers(processes) as helpers:
        heads = _growing(_opened(checkpoints, verifier, helpers), report)
        checks = _Checks(
            moving=[Money(balances, Path(folder)), Periods()],
            staying=[
                Identities(Path(folder)),
                Sequences(open_intents),
                References(),
                Lineage(),
                Corrections(read),
                Ratings(read),
            ],
            more=laws,
            report=report,
        )
        count = 0
        with closing(checks):
            for count, (log_index, raw, leaf) in enumerate(_through_tree(entries, heads, report), start=1):
                checks.show(log_index, raw, leaf)
                if count % _PROGRESS_ENTRIES == 0:
                    tell(count)
                if count == _MANY_ENTRIES and helpers:
                    checks.part()
            findings.extend(checks.end())
        tell(count)
    return findings


class _Checks:
    """The laws of a check: moving ones, which may go on in another process, staying ones, and more of the caller's."""

    def __init__(self, *, moving: list[Law], staying: list[Law], more: Iterable[Law], report: _Report) -> None:
        self._moving = moving
        self._staying = [*staying, *more]
        self._apart: LawsApart | None = None
        self._report = report
        self._by_type = _by_type([*moving, *self._staying])
        # Reading amounts is half of what the moving laws cost, so they are read here only for who needs them.
        self._needing = ENTRY_TYPES if len(self._staying) > len(staying) else frozenset({"answer.superseded"})

    def part(self) -> None:
        """Let the moving laws go on in a process of their own; where none can be started, they stay."""
        try:
            self._apart = LawsApart(self._moving)
        except OSError:
            return
        self._by_type = _by_type(self._staying)

    def show(self, log_index: int, raw: bytes, leaf: bytes) -> None:
        """Let every law look at an entry. I8 where its bytes are none, I1 where its amounts are none."""
        entry = amounts = None
        try:
            entry = Entry.decode(raw)
        except EntryError as error:
            self._report("I8", log_index, f"these bytes cannot have been logged: {error}")
        if entry is not None:
            if self._apart is not None:
                self._apart.show(log_index, raw)
            if self._apart is None or entry.type in self._needing:
                amounts, unreadable = read_amounts(log_index, entry)
                if unreadable is not None and self._apart is None:
                    self._report("I1", log_index, unreadable.message)
        logged = Logged(log_index, leaf, entry, amounts)
        for look in self._by_type[entry.type if entry else None]:
            for invariant, message in look(logged):
                self._report(invariant, log_index, message)

    def end(self) -> Iterator[Finding]:
        """Yield what is wrong with the whole."""
        if self._apart is not None:
            yield from self._apart.end()
        else:
            yield from chain.from_iterable(law.end() for law in self._moving)
        yield from chain.from_iterable(law.end() for law in self._staying)

    def close(self) -> None:
        """End the other process, if there is one."""
        if self._apart is not None:
            self._apart.close()


def _by_type(laws: Sequence[Law]) -> dict[str | None, list[Callable[[Logged], Iterable[Fault]]]]:
    """Return the laws that want to see entries of each type; under None, bytes that are no entry."""
    return {
        kind: [law.entry for law in laws if law.types is None or kind in law.types] for kind in (*ENTRY_TYPES, None)
    }


def _through_tree(
    entries: Iterable[tuple[int, bytes]], heads: Iterator[Checkpoint], report: _Report
) -> Iterator[tuple[int, bytes, bytes]]:
    """Pass the entries on with their leaf hashes, rebuild the tree, and compare it with each checkpoint: I5 and I8.

    Checkpoints that are all roots of one growing tree are consistent with each other; no proof could say more.
    """
    tree = GrowingTree()
    head = next(heads, None)
    covered = 0
    comparable = True
    expected = 0
    for log_index, raw in entries:
        if log_index != expected:
            report("I5", log_index, f"log index {log_index} follows where {expected} should")
            comparable = False  # every root differs from here on
        expected = log_index + 1
        leaf = leaf_hash(raw)
        tree.append(leaf)
        yield log_index, raw, leaf
        if head and head.size == tree.size:
            if comparable and head.root != tree.root():
                changed = f"entry {covered}" if covered == expected - 1 else f"one of entries {covered} to {log_index}"
                report("I8", covered, f"{changed} is not what the checkpoint of {head.size} entries was signed over")
                comparable = False
            covered = head.size
            head = next(heads, None)
    if head:
        report("I5", None, f"a checkpoint was signed over {head.size} entries, but the log has {tree.size}")
        deque(heads, maxlen=0)  # those that follow have their own faults
    elif covered < tree.size:
        report("I5", covered, f"no checkpoint covers entries {covered} to {expected - 1}")


def _growing(opened: Iterable[_Opened], report: _Report) -> Iterator[Checkpoint]:
    """Yield the checkpoints that the log's key signed, as long as they grow."""
    size = 0
    for number, checkpoint in enumerate(opened):
        if isinstance(checkpoint, str):
            report("I5", None, f"checkpoint {number} of those stored cannot be believed: {checkpoint}")
        elif checkpoint.size <= size:
            report(
                "I5", None, f"checkpoint {number} of those stored, of {checkpoint.size} entries, follows one of {size}"
            )
        else:
            size = checkpoint.size
            yield checkpoint


def _opened(notes: Iterable[str], verifier: Verifier, helpers: ProcessPoolExecutor | None) -> Iterator[_Opened]:
    """Open notes in order; where there are many and helpers, some chunks ahead and elsewhere."""
    notes = iter(notes)
    first = list(islice(notes, _NOTES))
    if helpers is None or len(first) < _NOTES:
        yield from _open_all(verifier, first)
        for note in notes:
            yield _open(verifier, note)
        return
    ahead: deque[Future[list[_Opened]]] = deque()
    chunk = first
    while chunk or ahead:
        if chunk:
            ahead.append(helpers.submit(_open_elsewhere, verifier.verifier_key, chunk))
            chunk = list(islice(notes, _NOTES))
        if len(ahead) == _CHUNKS_AHEAD or not chunk:
            yield from ahead.popleft().result()


def _open_elsewhere(verifier_key: str, notes: list[str]) -> list[_Opened]:
    return _open_all(Verifier.parse(verifier_key), notes)


def _open_all(verifier: Verifier, notes: Iterable[str]) -> list[_Opened]:
    return [_open(verifier, note) for note in notes]


def _open(verifier: Verifier, note: str) -> _Opened:
    try:
        return verifier.open(note)
    except CheckpointError as error:
        return str(error)


@contextmanager
def _helpers(processes: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that start when they get their first work; None for none."""
    if processes < 1:
        yield None
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as helpers:
        try:
            yield helpers
        finally:
            helpers.shutdown(cancel_futures=True)
