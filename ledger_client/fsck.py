"""The checker: reads everything stored, believes none of it, and says which entry breaks which invariant.

The invariants are those of the design, by number: I1 postings and balances sum to zero; I2 a split sums to its charge;
I3 a balance is the replay of its postings; I4 each sequence number of a gateway ends in one entry; I5 log indexes are
dense and checkpoints consistent; I6 one request, one outcome; I8 what is in the log never changes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from sqlalchemy import Connection, select

from ledger_client.amounts import Amounts, net
from ledger_client.checkpoint import Checkpoint, CheckpointError, Verifier
from ledger_client.entries import Entry, EntryError
from ledger_client.log import entry_rows
from ledger_client.merkle import Frontier, leaf_hash
from ledger_client.tables import log_entry, log_hash, log_head
from ledger_client.tiles import TILE_HEIGHT

_PROGRESS_ENTRIES = 1000
_WIDEST_GAP = 100_000  # of sequence numbers that are waited for; a wider one is a fault at once
_NAMED = 10  # sequence numbers that one finding lists

_Fault: TypeAlias = tuple[str, str]
"""(invariant, what is wrong)"""

_Report: TypeAlias = Callable[[str, int | None, str], None]
"""Takes (invariant, log index, what is wrong)."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A broken invariant. log_index: the entry that breaks it, None where it is not one entry's doing."""

    invariant: str
    log_index: int | None
    message: str

    def __str__(self) -> str:
        where = "" if self.log_index is None else f" at log index {self.log_index}"
        return f"{self.invariant}{where}: {self.message}"


def fsck(
    entries: Iterable[tuple[int, bytes]],
    checkpoints: Iterable[str],
    balances: Mapping[str, int] | None,
    verifier: Verifier,
    *,
    open_intents: Collection[tuple[str, int]] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Finding]:
    """Check I1 to I6 and I8 from the stored bytes alone. Returns what is broken, in the order in which it is found.

    entries: (log index, bytes), in order. checkpoints: all the notes ever signed, by size. balances: account → nano-USD
    as the books have it, accounts at 0 optional; None when only the log is at hand. open_intents: (gateway, sequence
    number) of admissions that have no entry yet. progress: called with the number of entries read, now and then.
    Reads both streams once; memory grows by the ids of the entries, some hundreds of bytes each.
    """
    findings: list[Finding] = []

    def report(invariant: str, log_index: int | None, message: str) -> None:
        findings.append(Finding(invariant=invariant, log_index=log_index, message=message))

    laws: tuple[_Law, ...] = (_Identities(), _Money(balances), _Sequences(open_intents))
    count = 0
    for count, (log_index, raw) in enumerate(_through_tree(entries, checkpoints, verifier, report), start=1):
        for invariant, message in _entry_faults(log_index, raw, laws):
            report(invariant, log_index, message)
        if progress and count % _PROGRESS_ENTRIES == 0:
            progress(count)
    if progress:
        progress(count)
    for law in laws:
        for invariant, message in law.end():
            report(invariant, None, message)
    return findings


def fsck_derived(connection: Connection) -> list[Finding]:
    """Check what a log's tables hold beside entries and checkpoints: ids, leaf hashes, tile hashes and the head.

    All of it follows from the entries. An id or leaf hash that does not is I8, and names the entry that was changed;
    a tile hash or head that does not follow from the leaf hashes is I5.
    """
    findings: list[Finding] = []
    tiles = {(row.level, row.number): row.hash for row in connection.execute(select(log_hash))}
    head = connection.execute(select(log_head.c.size, log_head.c.frontier)).one_or_none()
    sealed = head.size if head else 0
    frontier = Frontier()
    for row in entry_rows(connection, 0, log_entry.c.entry_id, log_entry.c.leaf_hash, log_entry.c.entry):
        for name, stored, derived in (
            ("leaf hash", row.leaf_hash, leaf_hash(row.entry)),
            ("id", row.entry_id, _id_in(row.entry)),
        ):
            if stored != derived:
                message = f"the entry's bytes do not have the {name} they are stored under"
                findings.append(Finding(invariant="I8", log_index=row.log_index, message=message))
        if frontier.size < sealed:
            for level, node in enumerate(frontier.completed_by(row.leaf_hash)[TILE_HEIGHT::TILE_HEIGHT], start=1):
                number = frontier.size >> (TILE_HEIGHT * level)
                if tiles.pop((level, number), None) != node:
                    message = f"hash {number} of tile level {level} does not follow from the leaf hashes"
                    findings.append(Finding(invariant="I5", log_index=None, message=message))
            frontier = frontier.append(row.leaf_hash)
    if tiles:
        message = f"{len(tiles)} tile hashes are stored that belong to no complete tile"
        findings.append(Finding(invariant="I5", log_index=None, message=message))
    if head and (head.size, head.frontier) != (frontier.size, frontier.encode()):
        message = f"the head, of {head.size} entries, does not follow from the {frontier.size} that it covers"
        findings.append(Finding(invariant="I5", log_index=None, message=message))
    return findings


def _through_tree(
    entries: Iterable[tuple[int, bytes]], checkpoints: Iterable[str], verifier: Verifier, report: _Report
) -> Iterator[tuple[int, bytes]]:
    """Pass the entries on, rebuild their tree on the way, and compare it with each checkpoint at its size: I5 and I8.

    Checkpoints that are all roots of one growing tree are consistent with each other; no proof could say more.
    """
    frontier = Frontier()
    heads = _opened(checkpoints, verifier, report)
    head = next(heads, None)
    covered = 0
    comparable = True
    expected = 0
    for log_index, raw in entries:
        if log_index != expected:
            report("I5", log_index, f"log index {log_index} follows where {expected} should")
            comparable = False  # every root differs from here on
        expected = log_index + 1
        frontier = frontier.append(leaf_hash(raw))
        yield log_index, raw
        if head and head.size == frontier.size:
            if comparable and head.root != frontier.root():
                changed = f"entry {covered}" if covered == expected - 1 else f"one of entries {covered} to {log_index}"
                report("I8", covered, f"{changed} is not what the checkpoint of {head.size} entries was signed over")
                comparable = False
            covered = head.size
            head = next(heads, None)
    if head:
        report("I5", None, f"a checkpoint was signed over {head.size} entries, but the log has {frontier.size}")
    elif covered < frontier.size:
        report("I5", covered, f"no checkpoint covers entries {covered} to {expected - 1}")


def _opened(checkpoints: Iterable[str], verifier: Verifier, report: _Report) -> Iterator[Checkpoint]:
    """Yield the checkpoints that the log's key signed, as long as they grow."""
    size = 0
    for number, note in enumerate(checkpoints):
        try:
            checkpoint = verifier.open(note)
        except CheckpointError as error:
            report("I5", None, f"checkpoint {number} of those stored cannot be believed: {error}")
            continue
        if checkpoint.size <= size:
            report(
                "I5", None, f"checkpoint {number} of those stored, of {checkpoint.size} entries, follows one of {size}"
            )
            continue
        size = checkpoint.size
        yield checkpoint


def _entry_faults(log_index: int, raw: bytes, laws: Iterable[_Law]) -> Iterator[_Fault]:
    try:
        entry = Entry.decode(raw)
    except EntryError as error:
        yield "I8", f"these bytes cannot have been logged: {error}"
        return
    for law in laws:
        yield from law.entry(log_index, entry)


def _id_in(raw: bytes) -> object:
    try:
        return json.loads(raw)["id"]
    except (ValueError, TypeError, KeyError):
        return None


class _Law(Protocol):
    """Some of the invariants, shown one entry after the other."""

    def entry(self, log_index: int, entry: Entry, /) -> Iterator[_Fault]:
        """Yield what is wrong with this entry, given those before it."""
        ...

    def end(self) -> Iterator[_Fault]:
        """Yield what is wrong with the whole."""
        ...


class _Identities:
    """I6: no id twice, and no request that ends twice."""

    def __init__(self) -> None:
        self._ids: set[bytes] = set()
        self._ended: set[str] = set()

    def entry(self, _log_index: int, entry: Entry, /) -> Iterator[_Fault]:
        identity = bytes.fromhex(entry.id)
        if identity in self._ids:
            yield "I6", f"the id {entry.id} is that of an earlier entry"
        self._ids.add(identity)
        if entry.type in {"usage.recorded", "request.voided"}:
            request_id = str(entry.data.get("request_id"))
            if request_id in self._ended:
                yield "I6", f"request {request_id} was charged or voided before"
            self._ended.add(request_id)

    def end(self) -> Iterator[_Fault]:
        return iter(())


class _Money:
    """I1, I2 and I3: replays every posting, and matches each attribution with the usage that it pays out."""

    def __init__(self, balances: Mapping[str, int] | None) -> None:
        self._balances = balances
        self._replayed: Counter[str] = Counter()
        self._unpaid: dict[str, tuple[int, int | None]] = {}  # request id → log index and charge of its usage

    def entry(self, log_index: int, entry: Entry, /) -> Iterator[_Fault]:
        try:
            amounts = Amounts.of(entry)
        except EntryError as error:
            yield "I1", str(error)
            return
        yield from amounts.faults()
        self._replayed.update(net(amounts.postings))
        request_id = str(entry.data.get("request_id"))
        if entry.type == "usage.recorded":
            self._unpaid[request_id] = (log_index, amounts.charge_nano)
        elif entry.type == "answer.attributed":
            named = (entry.data.get("usage_index"), amounts.charge_nano)
            usage = self._unpaid.pop(request_id, None)
            if usage is None:
                yield "I2", f"no usage of request {request_id} is waiting to be attributed"
            elif usage != named:
                yield "I2", f"it splits {named[1]} nano of entry {named[0]}, but entry {usage[0]} charged {usage[1]}"

    def end(self) -> Iterator[_Fault]:
        if self._balances is None:
            return
        if total := sum(self._balances.values()):
            yield "I1", f"the balances sum to {total} nano, not to 0"
        for account in sorted(self._balances.keys() | self._replayed.keys()):
            stored, replayed = self._balances.get(account, 0), self._replayed[account]
            if stored != replayed:
                yield "I3", f"the balance of {account} is {stored} nano, but its postings sum to {replayed}"


class _Sequences:
    """I4: of each gateway's numbers, from 0, each ends in one entry or is an open intent."""

    def __init__(self, open_intents: Collection[tuple[str, int]]) -> None:
        self._open = set(open_intents)
        self._next: Counter[str] = Counter()
        self._missing: set[tuple[str, int]] = set()

    def entry(self, _log_index: int, entry: Entry, /) -> Iterator[_Fault]:
        if entry.type not in {"usage.recorded", "request.voided"}:
            return
        gateway, number = entry.data.get("gateway"), entry.data.get("gateway_seq")
        if not isinstance(gateway, str) or type(number) is not int or number < 0:
            yield "I4", f"{gateway!r} and {number!r} are no gateway and sequence number"
            return
        follows = self._next[gateway]
        if number < follows:
            if (gateway, number) not in self._missing:
                yield "I4", f"sequence number {number} of gateway {gateway} ended before"
            self._missing.discard((gateway, number))
            return
        self._next[gateway] = number + 1
        if number - follows > _WIDEST_GAP:
            yield "I4", f"gateway {gateway} leaps from sequence number {follows - 1} to {number}"
        else:
            self._missing.update((gateway, skipped) for skipped in range(follows, number))

    def end(self) -> Iterator[_Fault]:
        yield from _listed(self._missing - self._open, "has no entry, and is not open")
        ended = {(gateway, number) for gateway, number in self._open if number < self._next[gateway]}
        yield from _listed(ended - self._missing, "is said to be open, but has an entry")


def _listed(numbers: Iterable[tuple[str, int]], fault: str) -> Iterator[_Fault]:
    """Yield one fault for all numbers, by name as far as anyone would read."""
    names = [f"{number} of gateway {gateway}" for gateway, number in sorted(numbers)]
    if names:
        more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield "I4", f"sequence number {fault}: {', '.join(names[:_NAMED])}{more}"
