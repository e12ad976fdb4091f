"""What must hold of a log's entries, as small laws that are shown one entry after the other.

The invariants are those of the design, by number: I1 postings and balances sum to zero; I2 a split sums to its charge;
I3 a balance is the replay of its postings; I4 each sequence number of a gateway ends in one entry; I5 log indexes are
dense and checkpoints consistent; I6 one request, one outcome; I8 what is in the log never changes, and a correction
names what it corrects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

from ledger_client.amounts import Amounts
from ledger_client.entries import JSON, Entry
from ledger_client.spill import Spill

_WIDEST_GAP = 100_000  # of sequence numbers that are waited for; a wider one is a fault at once
_NAMED = 10  # sequence numbers that one finding lists

Fault: TypeAlias = tuple[str, str]
"""(invariant, what is wrong with the entry at hand)"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A broken invariant. log_index: the entry that breaks it, None where it is not one entry's doing."""

    invariant: str
    log_index: int | None
    message: str

    def __str__(self) -> str:
        where = "" if self.log_index is None else f" at log index {self.log_index}"
        return f"{self.invariant}{where}: {self.message}"


class Logged(NamedTuple):
    """An entry as laws are shown it. entry is None where the bytes are none, amounts where they cannot be read."""

    log_index: int
    leaf_hash: bytes
    entry: Entry | None
    amounts: Amounts | None


class Law(Protocol):
    """Some of the invariants."""

    @property
    def types(self) -> frozenset[str] | None:
        """The types of the entries to see; None for all, and for bytes that are no entry too."""
        ...

    def entry(self, logged: Logged, /) -> Iterable[Fault]:
        """Return what is wrong with this entry, given those before it."""
        ...

    def end(self) -> Iterable[Finding]:
        """Return what is wrong with the whole. Called once, after the last entry."""
        ...


ENDS = frozenset({"usage.recorded", "request.voided"})  # how a request ends


class Identities:
    """I6: no id twice, and no request that ends twice."""

    types: ClassVar[frozenset[str] | None] = None

    def __init__(self, folder: Path) -> None:
        self._ids = Spill(folder, "ids")
        self._ended = Spill(folder, "ended")

    def entry(self, logged: Logged, /) -> Iterable[Fault]:
        """Note what must not be there twice."""
        entry = logged.entry
        if entry is not None:
            self._ids.add(entry.id.encode(), logged.log_index)
            if entry.type in ENDS:
                self._ended.add(_text(entry.data.get("request_id")), logged.log_index)
        return ()

    def end(self) -> Iterator[Finding]:
        """Name the later of two that are the same."""
        for spill, fault in (
            (self._ids, "the id is that of entry {} too"),
            (self._ended, "the request was charged or voided before, by entry {}"),
        ):
            for first, *others in (group.numbers for group in spill.repeated()):
                for log_index in others:
                    yield Finding(invariant="I6", log_index=log_index, message=fault.format(first))


class Money:
    """I1, I2 and I3: replays every posting, and matches each attribution with the usage that it pays out.

    balances: account → nano-USD as the books have it; None where there are no books to compare with.
    """

    types: ClassVar[frozenset[str] | None] = None

    def __init__(self, balances: Mapping[str, int] | None, folder: Path) -> None:
        self._balances = balances
        self._replayed: dict[str, int] = {}
        self._charges = Spill(folder, "charges")  # of usages, and marked, of attributions

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Check the amounts of an entry among themselves, and replay them."""
        log_index, _, entry, amounts = logged
        if entry is None or amounts is None:
            return
        yield from amounts.faults()
        replayed = self._replayed
        for account, amount_nano in amounts.postings:
            replayed[account] = replayed.get(account, 0) + amount_nano
        if entry.type == "usage.recorded":
            self._charges.add(_charge(log_index, entry, amounts), log_index)
        elif entry.type == "answer.attributed":
            usage_index = entry.data.get("usage_index")
            if type(usage_index) is not int or not 0 <= usage_index < log_index:
                yield "I2", f"it splits the charge of entry {usage_index!r:.40}, which is no earlier one"
            else:
                self._charges.add(_charge(usage_index, entry, amounts), log_index, marked=True)

    def end(self) -> Iterator[Finding]:
        """Name splits that are of no charge, and balances that are no replay."""
        for group in self._charges.unmatched():
            for place, log_index in enumerate(group.marked):
                if not group.numbers:
                    message = "no usage of this request with this charge is at the usage_index that it names"
                elif place == 0:
                    continue
                else:
                    message = f"the usage that it splits, entry {group.numbers[0]}, is split by entry {group.marked[0]}"
                yield Finding(invariant="I2", log_index=log_index, message=message)
        if self._balances is None:
            return
        if total := sum(self._balances.values()):
            message = f"the balances sum to {total} nano, not to 0"
            yield Finding(invariant="I1", log_index=None, message=message)
        for account in sorted(self._balances.keys() | self._replayed.keys()):
            stored, replayed = self._balances.get(account, 0), self._replayed.get(account, 0)
            if stored != replayed:
                message = f"the balance of {account} is {stored} nano, but its postings sum to {replayed}"
                yield Finding(invariant="I3", log_index=None, message=message)


class Sequences:
    """I4: of each gateway's numbers, from 0, each ends in one entry or is an open intent."""

    types: ClassVar[frozenset[str] | None] = ENDS

    def __init__(self, open_intents: Collection[tuple[str, int]]) -> None:
        self._open = set(open_intents)
        self._next: Counter[str] = Counter()
        self._missing: set[tuple[str, int]] = set()

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Take the number of a request's end."""
        assert logged.entry is not None  # noqa: S101 - it has one of the types asked for
        gateway, number = logged.entry.data.get("gateway"), logged.entry.data.get("gateway_seq")
        if not isinstance(gateway, str) or type(number) is not int or number < 0:
            yield "I4", f"{gateway!r} and {number!r} are no gateway and sequence number"
            return
        follows = self._next.get(gateway, 0)
        if number < follows:
            if (gateway, number) not in self._missing:
                yield "I4", f"sequence number {number} of gateway {gateway} ended before"
            self._missing.discard((gateway, number))
            return
        self._next[gateway] = number + 1
        if number - follows > _WIDEST_GAP:
            yield "I4", f"gateway {gateway} leaps from sequence number {follows - 1} to {number}"
        elif number > follows:
            self._missing.update((gateway, skipped) for skipped in range(follows, number))

    def end(self) -> Iterator[Finding]:
        """Name the numbers that are missing."""
        yield from _listed(self._missing - self._open, "has no entry, and is not open")
        ended = {(gateway, number) for gateway, number in self._open if number < self._next[gateway]}
        yield from _listed(ended - self._missing, "is said to be open, but has an entry")


def _listed(numbers: Iterable[tuple[str, int]], fault: str) -> Iterator[Finding]:
    """Yield one finding for all numbers, by name as far as anyone would read."""
    names = [f"{number} of gateway {gateway}" for gateway, number in sorted(numbers)]
    if names:
        more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        message = f"sequence number {fault}: {', '.join(names[:_NAMED])}{more}"
        yield Finding(invariant="I4", log_index=None, message=message)


def _charge(usage_index: int, entry: Entry, amounts: Amounts) -> bytes:
    """Say which charge of which request an entry is about."""
    return b"%d %d %b" % (usage_index, amounts.charge_nano or 0, _text(entry.data.get("request_id")))


def _text(value: JSON) -> bytes:
    return str(value).encode()
