"""The laws of settlement: periods close in turn, and what their entries say follows from the entries before them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ledger_client.amounts import CONTRIBUTOR_PREFIX, nano
from ledger_client.entries import JSON, Entry, EntryError
from ledger_client.laws import Fault, Finding, Logged
from ledger_client.periods import (
    PeriodError,
    StatementSummary,
    check_closing,
    check_period,
    column_of,
    period_of,
    statements_root,
)
from ledger_client.settlement import PayoutTree, payable_nano, token_units


class _Sums:
    """What the postings of one contributor in one period sum to, in nano-USD."""

    __slots__ = ("corrected", "earned", "lines", "paid")

    def __init__(self) -> None:
        self.earned = self.corrected = self.paid = self.lines = 0

    @property
    def total(self) -> int:
        return self.earned + self.corrected + self.paid


class Periods:
    """I8: months close in turn, after they ended. I3: statements, payouts and roots of a closed month follow from it.

    The first month to close is that of the first entry. Memory grows by the contributors and the addresses that they
    were ever paid at.
    """

    types: ClassVar[frozenset[str] | None] = None

    def __init__(self) -> None:
        self._first: str | None = None  # month of the first entry
        self._last_closed: str | None = None
        self._epochs: Counter[JSON] = Counter()  # distributor, None where a list paid → months closed
        self._closing: dict[str, int] = {}  # contributor → balance at the end of the last closed month, unless 0
        self._open: dict[str, defaultdict[str, _Sums]] = {}  # month → contributor → sums
        self._addresses: dict[str, str] = {}  # contributor → the address it is bound to
        self._settled_nano: dict[JSON, dict[str, int]] = {}  # distributor → address → all that was ever settled to it
        self._payouts: dict[str, tuple[int, int]] = {}  # contributor → log index and amount, of the month being settled
        self._payouts_of: str | None = None  # that month
        self._payouts_by: set[JSON] = set()  # the distributors of those payouts

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Count the lines of a period, or compare them with what an entry says of it."""
        entry, amounts = logged.entry, logged.amounts
        if entry is None:
            return
        if self._first is None:
            self._first = entry.time[:7]
        if amounts is not None and amounts.postings:
            self._post(entry, amounts.postings)
        if entry.type == "payout.recorded" and amounts is not None and amounts.payout is not None:
            yield from self._payout_faults(logged.log_index, entry, amounts.payout.amount_nano)
        elif entry.type == "address.bound":
            self._addresses[str(entry.data.get("contributor"))] = str(entry.data.get("address"))
        elif entry.type == "period.closed":
            try:
                yield from self._closing_faults(entry)
            except (EntryError, PeriodError) as error:
                yield "I8", str(error)

    def end(self) -> Iterator[Finding]:
        """Nothing is left to say."""
        return iter(())

    def _post(self, entry: Entry, postings: tuple[tuple[str, int], ...]) -> None:
        sums_of = None
        for account, amount_nano in postings:
            if account.startswith(CONTRIBUTOR_PREFIX):
                if sums_of is None:
                    sums_of = self._open.setdefault(period_of(entry.time, self._last_closed), defaultdict(_Sums))
                    column = column_of(entry.type)
                sums = sums_of[account[len(CONTRIBUTOR_PREFIX) :]]
                sums.lines += 1
                setattr(sums, column, getattr(sums, column) + amount_nano)

    def _payout_faults(self, log_index: int, entry: Entry, amount_nano: int) -> Iterator[Fault]:
        data = entry.data
        contributor, method, address = str(data.get("contributor")), data.get("method"), data.get("address")
        distributor = data.get("distributor")
        period = str(data.get("period"))
        try:
            self._check_turn(period, entry.time)
        except PeriodError as error:
            yield "I8", f"a payout for a month that cannot be settled: {error}"
            return
        if self._payouts and period != self._payouts_of:
            yield "I8", f"a payout for {period}, while {self._payouts_of} is being settled"
            return
        if contributor in self._payouts:
            yield "I8", f"{contributor} was paid for {period} already, by entry {self._payouts[contributor][0]}"
        before = self._payouts.get(contributor, (log_index, 0))
        self._payouts_of = period
        self._payouts[contributor] = (before[0], before[1] + amount_nano)
        owed = self._owed(contributor, period) + amount_nano  # the payout itself is posted by now
        if amount_nano > owed:
            yield "I3", f"{amount_nano} nano are paid, but {contributor} was owed {owed} for the months up to {period}"
        if method == "chain":
            if not isinstance(address, str) or self._addresses.get(contributor) != address:
                yield "I8", f"{contributor} is paid at {address!r:.60}, which is not the address that it is bound to"
            if not isinstance(distributor, str):
                yield "I8", f"a payout on chain names the distributor that it is claimed from, not {distributor!r:.80}"
            settled = self._settled_nano.setdefault(str(distributor), {})
            settled[str(address)] = settled.get(str(address), 0) + amount_nano
        elif method != "csv" or address is not None or distributor is not None:
            yield "I8", f"a payout is made by chain to an address or by csv to none, not by {method!r:.40}"
        self._payouts_by.add(distributor if isinstance(distributor, str) else None)

    def _check_turn(self, period: str, time: str) -> None:
        """Raise PeriodError unless the period may be closed at this time."""
        check_closing(period, time, self._last_closed)
        if self._last_closed is None and period != self._first:
            raise PeriodError(f"{period} is closed out of turn: the log begins in {self._first}")

    def _owed(self, contributor: str, period: str) -> int:
        """Return what a contributor's account holds at the end of a month, less what was paid out of it since."""
        owed = self._closing.get(contributor, 0)
        for month, sums_of in self._open.items():
            if contributor in sums_of:
                sums = sums_of[contributor]
                owed += sums.total if month <= period else sums.paid
        return owed

    def _closing_faults(self, entry: Entry) -> Iterator[Fault]:
        data, period = entry.data, check_period(str(entry.data.get("period")))
        self._check_turn(period, entry.time)
        for month in sorted(month for month in self._open if month < period):
            yield "I8", f"{period} is closed before {month}, in which contributors have lines"
        distributor = data.get("distributor")
        if distributor is not None and not isinstance(distributor, str):
            yield "I8", f"a distributor is named by a text, not by {distributor!r:.80}"
            distributor = None
        if self._payouts_by - {distributor}:
            yield "I8", f"{period} is closed for {distributor!r:.80}, but its payouts are claimed elsewhere"
        summaries = self._statements(period)
        stated: dict[str, JSON] = {
            "statements": len(summaries),
            "statements_root": statements_root(summaries).hex(),
            "epoch": self._epochs[distributor] + 1,
        }
        yield from _differences(data, stated, "I3")
        if self._payouts and self._payouts_of != period:
            yield "I8", f"{period} is closed while {self._payouts_of} is being settled"
        yield from self._settlement_faults(data, self._settled_nano.get(distributor, {}))
        for summary in summaries:
            if summary.closing_nano:
                self._closing[summary.contributor] = summary.closing_nano
            else:
                self._closing.pop(summary.contributor, None)
        self._open.pop(period, None)
        self._last_closed = period
        self._epochs[distributor] += 1
        self._payouts.clear()
        self._payouts_by.clear()

    def _statements(self, period: str) -> list[StatementSummary]:
        sums_of: Mapping[str, _Sums] = self._open.get(period, {})
        none = _Sums()
        summaries = []
        for contributor in sorted(sums_of.keys() | self._closing.keys()):
            sums = sums_of.get(contributor, none)
            summaries.append(
                StatementSummary(
                    contributor=contributor,
                    period=period,
                    opening_nano=self._closing.get(contributor, 0),
                    earned_nano=sums.earned,
                    corrected_nano=sums.corrected,
                    paid_nano=sums.paid,
                    lines=sums.lines,
                )
            )
        return summaries

    def _settlement_faults(self, data: Mapping[str, JSON], settled_nano: Mapping[str, int]) -> Iterator[Fault]:
        """Compare what a period.closed entry says of payouts with the payouts logged for it, and with all before.

        settled_nano: address → all that its distributor was ever told to pay it.
        """
        decimals = data.get("token_decimals")
        if type(decimals) is not int or not 0 <= decimals <= 18:
            yield "I8", f"token_decimals is a whole number from 0 to 18, not {decimals!r:.40}"
            return
        minimum_nano = nano(data.get("minimum_payout_nano"))
        for contributor, (log_index, amount_nano) in self._payouts.items():
            if amount_nano < minimum_nano:
                yield "I3", f"{contributor} was paid less than the minimum of {minimum_nano} nano, by entry {log_index}"
            if amount_nano != payable_nano(max(amount_nano, 0), decimals):
                yield "I3", f"{contributor} was paid {amount_nano} nano by entry {log_index}, no whole number of units"
        units = {address: token_units(max(amount_nano, 0), decimals) for address, amount_nano in settled_nano.items()}
        try:
            root = PayoutTree(amounts=units).root.hex() if units else None
        except ValueError as error:
            yield "I3", f"no payout root follows from the payouts before it: {error}"
            return
        stated: dict[str, JSON] = {
            "payouts": len(self._payouts),
            "paid_nano": str(sum(amount_nano for _, amount_nano in self._payouts.values())),
            "cumulative_total": str(sum(units.values())),
            "payout_root": root,
        }
        yield from _differences(data, stated, "I3")


def _differences(data: Mapping[str, JSON], stated: Mapping[str, JSON], invariant: str) -> Iterator[Fault]:
    for name, value in stated.items():
        if data.get(name) != value:
            yield invariant, f"{name} is {data.get(name)!r:.80}, but {value!r:.80} follows from the entries before it"
