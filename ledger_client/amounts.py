"""The amounts that an entry states, and whether they agree with each other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ledger_client.entries import JSON, Entry, EntryError

SUSPENSE = "suspense"  # where a charge waits for its split

_NANO = re.compile(r"0|-?[1-9][0-9]{0,27}")


@dataclass(frozen=True, kw_only=True)
class Line:
    """An amount that goes to an account, or from it where negative, in nano-USD."""

    account: str
    amount_nano: int


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What an entry says of money. charge_nano and split are None where the entry's type has none."""

    type: str
    charge_nano: int | None
    postings: tuple[Line, ...]
    split: tuple[Line, ...] | None

    @classmethod
    def of(cls, entry: Entry) -> Amounts:
        """Read an entry's amounts. Raises EntryError when they are not where and how its type has them."""
        charge = nano(entry.data.get("charge_nano")) if entry.type in {"usage.recorded", "answer.attributed"} else None
        split = tuple(_lines(entry.data.get("split"))) if entry.type == "answer.attributed" else None
        postings = tuple(_lines(entry.data.get("postings", ())))
        return cls(type=entry.type, charge_nano=charge, postings=postings, split=split)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield (invariant, what is wrong) for each broken law; nothing when the amounts agree."""
        total = sum(line.amount_nano for line in self.postings)
        if total:
            yield "I1", f"the postings sum to {total} nano, not to 0"
        if self.charge_nano is None:
            return
        if self.charge_nano < 0:
            yield "I2", f"the charge is negative: {self.charge_nano} nano"
        moved = net(self.postings)
        if self.split is None:
            if moved[SUSPENSE] != self.charge_nano:
                yield "I2", f"{moved[SUSPENSE]} nano went into suspense, but the charge is {self.charge_nano}"
            return
        shared = sum(line.amount_nano for line in self.split)
        if shared != self.charge_nano:
            yield "I2", f"the split sums to {shared} nano, but the charge is {self.charge_nano}"
        if any(line.amount_nano < 0 for line in self.split):
            yield "I2", "a line of the split is negative"
        if moved != net((*self.split, Line(account=SUSPENSE, amount_nano=-shared))):
            yield "I2", "the postings do not move from suspense what the split gives to each account"


def nano(value: JSON) -> int:
    """Read an amount, a decimal string in nano-USD. Raises EntryError on any other spelling."""
    if not isinstance(value, str) or not _NANO.fullmatch(value):
        raise EntryError(f"an amount is a decimal string without leading zeros, not {value!r:.60}")
    return int(value)


def net(lines: Iterable[Line]) -> Counter[str]:
    """Add lines up by account; accounts that nothing moves on are equal to absent ones."""
    totals: Counter[str] = Counter()
    for line in lines:
        totals[line.account] += line.amount_nano
    return totals


def _lines(value: JSON) -> Iterator[Line]:
    if not isinstance(value, list | tuple):
        raise EntryError("postings and split are lists of objects with an account and an amount_nano")
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(account := item.get("account"), str):
            raise EntryError("a posting or a line of a split is an object with an account and an amount_nano")
        yield Line(account=account, amount_nano=nano(item.get("amount_nano")))
