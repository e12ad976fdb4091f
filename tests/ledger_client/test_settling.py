"""Closed periods: what their entries say follows from the entries before them, or is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ledger_client import (
    Checkpoint,
    Entry,
    Frontier,
    PayoutTree,
    Signer,
    StatementSummary,
    fsck,
    leaf_hash,
    statements_root,
)

from .conftest import ORIGIN
from .facts import attributed, fact, granted, lines, priced, ruled, used

SIGNER = Signer.generate(ORIGIN)
ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
OTHER = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
JANUARY, FEBRUARY, MARCH = "2025-01-31T23:59:59Z", "2025-02-03T00:00:00Z", "2025-03-01T00:00:00Z"


DISTRIBUTOR = f"eip155:31337:{ADDRESS}"


def at(time: str, entry: Entry) -> Entry:
    return replace(entry, time=time)


def bound(contributor: str, address: str) -> Entry:
    return fact("address.bound", contributor, {"contributor": contributor, "address": address, "nonce": 0})


def paid(contributor: str, amount: int, *, time: str = FEBRUARY, **changes: Any) -> Entry:
    data: dict[str, Any] = {
        "contributor": contributor,
        "period": "2025-01",
        "method": "csv",
        "amount_nano": str(amount),
        "address": None,
        "distributor": DISTRIBUTOR if changes.get("method") == "chain" else None,
        "postings": lines(**{f"contributor_{contributor}": -amount, "payouts": amount}),
    }
    data |= changes
    return at(time, fact("payout.recorded", f"{contributor}:{data['period']}", data))


def closed(period: str, summaries: Sequence[StatementSummary], *, time: str = FEBRUARY, **changes: Any) -> Entry:
    data: dict[str, Any] = {
        "period": period,
        "statements": len(summaries),
        "statements_root": statements_root(summaries).hex(),
        "payouts": 0,
        "paid_nano": "0",
        "token_decimals": 6,
        "minimum_payout_nano": "5000",
        "epoch": 1,
        "payout_root": None,
        "cumulative_total": "0",
    }
    return at(time, fact("period.closed", period, data | changes))


def summary(contributor: str, period: str = "2025-01", **amounts: int) -> StatementSummary:
    return StatementSummary(contributor=contributor, period=period, **amounts)


def earning(seq: int, usage_index: int, **amounts: int) -> Entry:
    total = sum(amounts.values())
    return attributed(seq, usage_index, total, split=lines(**amounts), postings=lines(suspense=-total, **amounts))


# Ada earns 7,500 nano and Bob 2,500 in January; Ada earns 1,000 more in February, late for January.
EARNED = [
    priced(),
    ruled(),
    granted("caller:ann", 100_000),
    used(0, 10_000),
    earning(0, 3, contributor_ada=7500, contributor_bob=2500),
]
SUMMARIES = [summary("ada", earned_nano=7500, lines=1), summary("bob", earned_nano=2500, lines=1)]
BOUND = at(FEBRUARY, bound("ada", ADDRESS))
PAID = paid("ada", 7000, method="chain", address=ADDRESS)
SETTLED: dict[str, Any] = {
    "distributor": DISTRIBUTOR,
    "payouts": 1,
    "paid_nano": "7000",
    "payout_root": PayoutTree(amounts={ADDRESS: 7}).root.hex(),
    "cumulative_total": "7",
}
CLOSED = closed("2025-01", SUMMARIES, **SETTLED)
LATE = [at(JANUARY, used(1, 1000)), at(JANUARY, earning(1, 8, contributor_ada=1000))]
NEXT = [
    summary("ada", "2025-02", opening_nano=7500, earned_nano=1000, paid_nano=-7000, lines=2),
    summary("bob", "2025-02", opening_nano=2500),
]
CLOSED_NEXT = closed("2025-02", NEXT, time=MARCH, **SETTLED | {"payouts": 0, "paid_nano": "0", "epoch": 2})
SOUND = [*EARNED, BOUND, PAID, CLOSED, *LATE, CLOSED_NEXT]


def check(entries: Sequence[Entry]) -> list[tuple[str, int | None]]:
    raws = [entry.encode() for entry in entries]
    frontier = Frontier()
    for raw in raws:
        frontier = frontier.append(leaf_hash(raw))
    note = SIGNER.sign(Checkpoint(origin=ORIGIN, size=frontier.size, root=frontier.root()))
    findings = fsck(enumerate(raws), [note], None, SIGNER.verifier)
    return [(finding.invariant, finding.log_index) for finding in findings]


def test_two_settled_months_are_sound() -> None:
    assert check(SOUND) == []


def test_what_waits_for_the_next_month_is_not_lost() -> None:
    # January is settled in March: February has its payout's line, March has it in truth.
    late = [at(MARCH, BOUND), at(MARCH, PAID), at(MARCH, CLOSED)]
    february = [summary("ada", "2025-02", opening_nano=7500), summary("bob", "2025-02", opening_nano=2500)]
    again = SETTLED | {"payouts": 0, "paid_nano": "0", "epoch": 2}
    assert check([*EARNED, *late, closed("2025-02", february, time=MARCH, **again)]) == []


@pytest.mark.parametrize(
    ("changes", "invariant"),
    [
        ({"statements": 3}, "I3"),
        ({"statements_root": "00" * 32}, "I3"),
        ({"payouts": 2}, "I3"),
        ({"paid_nano": "7001"}, "I3"),
        ({"epoch": 2}, "I3"),
        ({"payout_root": None}, "I3"),
        ({"payout_root": PayoutTree(amounts={ADDRESS: 8}).root.hex()}, "I3"),
        ({"cumulative_total": "8"}, "I3"),
        ({"minimum_payout_nano": "7001"}, "I3"),
        ({"minimum_payout_nano": "no"}, "I8"),
        ({"token_decimals": 5}, "I3"),
        ({"token_decimals": 19}, "I8"),
        ({"period": "2025-02"}, "I8"),
        ({"period": "2024-12"}, "I8"),
        ({"period": "soon"}, "I8"),
        ({"period": None}, "I8"),
    ],
)
def test_a_closing_entry_that_does_not_follow_is_named(changes: dict[str, Any], invariant: str) -> None:
    changed = replace(CLOSED, data={**CLOSED.data, **changes})
    assert (invariant, 7) in check([*SOUND[:7], changed])


def test_a_month_does_not_close_twice_early_or_out_of_turn() -> None:
    again = replace(CLOSED, id=ruled("another").id)
    assert ("I8", 8) in check([*SOUND[:8], again])
    assert ("I8", 5) in check([*EARNED, closed("2025-01", SUMMARIES, time=JANUARY)])
    skipped = closed("2025-03", NEXT, time="2025-04-01T00:00:00Z", epoch=2)
    assert ("I8", 8) in check([*SOUND[:8], skipped])


def test_an_altered_line_changes_the_root_of_its_month() -> None:
    altered = earning(0, 3, contributor_ada=7501, contributor_bob=2499)
    assert check([*EARNED[:4], altered, *SOUND[5:8]]) == [("I3", 7)]


@pytest.mark.parametrize(
    ("payout", "invariant"),
    [
        (paid("ada", 8000, method="chain", address=ADDRESS), "I3"),
        (paid("eve", 6000), "I3"),
        (paid("ada", 7000, method="chain", address=OTHER), "I8"),
        (paid("ada", 7000, method="chain"), "I8"),
        (paid("ada", 7000, address=ADDRESS), "I8"),
        (paid("ada", 7000, method="cash"), "I8"),
        (paid("ada", 7000, period="2025-02", method="chain", address=ADDRESS), "I8"),
        (paid("ada", 7000, period="2024-12", method="chain", address=ADDRESS), "I8"),
        (paid("ada", 7000, postings=lines(contributor_bob=-7000, payouts=7000)), "I2"),
        (paid("ada", 7000, postings=lines(contributor_ada=-7000, residual=7000)), "I2"),
        (paid("ada", 7000, postings=[]), "I2"),
        (paid("ada", -7000), "I2"),
        (paid("ada", 7000, amount_nano="7e3"), "I1"),
    ],
)
def test_a_payout_that_is_not_owed_is_named(payout: Entry, invariant: str) -> None:
    assert (invariant, 6) in check([*SOUND[:6], payout])


def test_nobody_is_paid_twice_for_a_month_or_after_its_close() -> None:
    again = paid("ada", 500, method="chain", address=ADDRESS)
    assert ("I8", 7) in check([*SOUND[:7], replace(again, id=ruled("another").id)])
    assert check([*SOUND[:8], replace(again, id=ruled("another").id)]) == [("I8", 8)]


def test_a_payout_of_dust_is_named_by_the_close() -> None:
    dust = [paid("ada", 7001, method="chain", address=ADDRESS), closed("2025-01", SUMMARIES, **SETTLED)]
    assert ("I3", 7) in check([*SOUND[:6], *dust])
