"""The amounts that an entry states, and whether they agree with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from ledger_client.entries import JSON, Entry, EntryError

SUSPENSE = "suspense"  # where a charge waits for its split
PAYOUTS = "payouts"  # what left contributors' accounts to be paid
CONTRIBUTOR_PREFIX = "contributor:"  # of the account that a contributor is credited on

CHARGES = frozenset({"usage.recorded", "answer.attributed", "answer.superseded"})
SPLITS = frozenset({"answer.attributed", "answer.superseded"})

_MOVES_MONEY = CHARGES | {"credit.granted", "payout.recorded"}
_LIMIT = 10**28


class Line(NamedTuple):
    """An amount that goes to an account, or from it where negative, in nano-USD."""

    account: str
    amount_nano: int


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What an entry says of money. Members are None where the entry's type has none.

    replaced: the split that a correction replaces. payout: what is paid, and the account that it is paid from.
    """

    type: str
    charge_nano: int | None
    postings: tuple[Line, ...]
    split: tuple[Line, ...] | None
    replaced: tuple[Line, ...] | None = None
    payout: Line | None = None

    @classmethod
    def of(cls, entry: Entry) -> Amounts:
        """Read an entry's amounts. Raises EntryError when they are not where and how its type has them."""
        kind, data = entry.type, entry.data
        payout = None
        if kind == "payout.recorded":
            if not isinstance(contributor := data.get("contributor"), str):
                raise EntryError("a payout names its contributor")
            payout = Line(CONTRIBUTOR_PREFIX + contributor, nano(data.get("amount_nano")))
        return cls(
            type=kind,
            charge_nano=nano(data.get("charge_nano")) if kind in CHARGES else None,
            postings=_lines(data.get("postings", ())),
            split=_lines(data.get("split")) if kind in SPLITS else None,
            replaced=_lines(data.get("replaced_split")) if kind == "answer.superseded" else None,
            payout=payout,
        )

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield (invariant, what is wrong) for each broken law; nothing when the amounts agree."""
        total = sum(line.amount_nano for line in self.postings)
        if total:
            yield "I1", f"the postings sum to {total} nano, not to 0"
        if self.postings and self.type not in _MOVES_MONEY:
            yield "I1", f"an entry of type {self.type} moves no money, but has postings"
        if self.payout is not None:
            yield from self._payout_faults(self.payout)
        if self.charge_nano is None:
            return
        if self.charge_nano < 0:
            yield "I2", f"the charge is negative: {self.charge_nano} nano"
        if self.split is not None:
            yield from self._split_faults(self.split)
        elif (moved := net(self.postings)[SUSPENSE]) != self.charge_nano:
            yield "I2", f"{moved} nano went into suspense, but the charge is {self.charge_nano}"

    def _split_faults(self, split: tuple[Line, ...]) -> Iterator[tuple[str, str]]:
        shared = sum(line.amount_nano for line in split)
        if shared != self.charge_nano:
            yield "I2", f"the split sums to {shared} nano, but the charge is {self.charge_nano}"
        if any(line.amount_nano < 0 for line in split):
            yield "I2", "a line of the split is negative"
        if self.replaced is None:
            if not _same(self.postings, (*split, Line(SUSPENSE, -shared))):
                yield "I2", "the postings do not move from suspense what the split gives to each account"
        elif not _same((*self.postings, *self.replaced), split):
            yield "I2", "the postings are not the difference between the split and the one that it replaces"

    def _payout_faults(self, payout: Line) -> Iterator[tuple[str, str]]:
        amount = payout.amount_nano
        if amount <= 0:
            yield "I2", f"a payout is above zero, not {amount} nano"
        if not _same(self.postings, (Line(payout.account, -amount), Line(PAYOUTS, amount))):
            yield "I2", f"the postings do not move the {amount} nano that are paid from {payout.account} to {PAYOUTS}"


def nano(value: JSON) -> int:
    """Read an amount, a decimal string in nano-USD. Raises EntryError on any other spelling."""
    try:
        # The length guards int(), which is lenient with spaces, underscores and other digits than ours; str() is not.
        if isinstance(value, str) and len(value) <= 29 and str(number := int(value)) == value and abs(number) < _LIMIT:
            return number
    except ValueError:
        pass
    raise EntryError(f"an amount is a decimal string without leading zeros, not {value!r:.60}")


def net(lines: Iterable[Line]) -> Counter[str]:
    """Add lines up by account; accounts that nothing moves on are equal to absent ones."""
    totals: Counter[str] = Counter()
    for account, amount_nano in lines:
        totals[account] = totals.get(account, 0) + amount_nano
    return totals


def _same(lines: Iterable[Line], others: Iterable[Line]) -> bool:
    """Whether both move the same amounts on the same accounts."""
    rest: dict[str, int] = {}
    for account, amount_nano in lines:
        rest[account] = rest.get(account, 0) + amount_nano
    for account, amount_nano in others:
        rest[account] = rest.get(account, 0) - amount_nano
    return not any(rest.values())


def _lines(value: JSON) -> tuple[Line, ...]:
    if type(value) not in {list, tuple}:
        raise EntryError("postings and split are lists of objects with an account and an amount_nano")
    lines = []
    for item in cast("Sequence[Mapping[str, JSON]]", value):
        try:
            account, amount_nano = item["account"], item["amount_nano"]
        except (TypeError, KeyError):
            account = amount_nano = None
        if not isinstance(account, str):
            raise EntryError("a posting or a line of a split is an object with an account and an amount_nano")
        lines.append(Line(account, nano(amount_nano)))
    return tuple(lines)
