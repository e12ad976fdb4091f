"""From a charge and shares to amounts: a policy's fixed parts, then the contributors' pool by their shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, NamedTuple

from attribution.shares import apportion
from metering._checks import CONTRIBUTOR, NAME, REQUEST_ID, WHOLE_PPM, check_text, check_whole
from metering.errors import MeteringError
from metering.policy import SplitPolicy
from metering.postings import check_earning_account, contributor_account

MAX_DATASETS = 100  # so that the split of an answer fits into one log entry
ROLES = ("fixed", "owner", "developer", "dataset", "residual")


@dataclass(frozen=True, kw_only=True)
class DocumentTerms:
    """A document's amount goes to its owner, a contributor id."""

    kind: ClassVar[str] = "document"
    owner: str

    def __post_init__(self) -> None:
        check_text("owner", self.owner, CONTRIBUTOR)


@dataclass(frozen=True, kw_only=True)
class AdapterTerms:
    """An adapter's amount goes to its developer and, by integer weights above zero, to its datasets' contributors."""

    kind: ClassVar[str] = "adapter"
    developer: str
    datasets: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        check_text("developer", self.developer, CONTRIBUTOR)
        for contributor, weight in self.datasets:
            check_text("dataset contributor", contributor, CONTRIBUTOR)
            check_whole(f"the dataset weight of {contributor}", weight, minimum=1)
        if len({contributor for contributor, _ in self.datasets}) != len(self.datasets):
            raise MeteringError("an adapter names each dataset contributor once; add their weights together")
        if len(self.datasets) > MAX_DATASETS:
            raise MeteringError(f"an adapter may name {MAX_DATASETS} dataset contributors, not {len(self.datasets)}")


@dataclass(frozen=True, kw_only=True)
class PlayerShare:
    """A player of the answer, its share of the contributors' pool in ppm, and the terms inside the player.

    id: the document id or the adapter's name; the terms say which kind it is.
    """

    id: str
    share_ppm: int
    terms: DocumentTerms | AdapterTerms

    def __post_init__(self) -> None:
        check_text("player id", self.id, NAME)
        check_whole("share_ppm", self.share_ppm, maximum=WHOLE_PPM)


@dataclass(frozen=True, kw_only=True)
class SplitLine:
    """What one account gets in one role, in nano-USD; kind and item name the player it came through, if it did."""

    account: str
    role: str
    amount_nano: int
    kind: str | None = None
    item: str | None = None

    def __post_init__(self) -> None:
        check_earning_account(self.account)
        if self.role not in ROLES:
            raise MeteringError(f"a split line's role is one of {', '.join(ROLES)}, not {self.role!r}")
        check_whole("amount_nano", self.amount_nano, minimum=1)
        if (self.kind is None) != (self.item is None):
            raise MeteringError("a split line names both the kind and the item of its player, or neither")


class _Part(NamedTuple):
    account: str
    role: str
    ppm: Fraction | int
    kind: str | None = None
    item: str | None = None

    def tie_key(self, request_id: str) -> bytes:
        return "\0".join([request_id, self.role, self.kind or "", self.item or "", self.account]).encode()


def split(
    charge_nano: int, policy: SplitPolicy, players: Sequence[PlayerShare], request_id: str
) -> tuple[SplitLine, ...]:
    """Divide a charge among the accounts that a policy and the players' shares name.

    charge_nano: ≥ 0. players: their shares sum to 1,000,000, or are all 0 and the pool goes to the policy's residual
    account. One line for each account, role and player; lines of nothing are left out, so the split of 0 is empty.
    Every part is carried as an exact fraction and the charge divided once, so no amount is a whole nano-USD or more
    from its exact value; equal remainders are settled by SHA-256 of request id, role, player and account, joined by
    0x00. The amounts sum to the charge. Raises MeteringError when shares or players make no sense.
    """
    check_whole("charge_nano", charge_nano)
    check_text("request_id", request_id, REQUEST_ID)
    if len({(player.terms.kind, player.id) for player in players}) != len(players):
        raise MeteringError("a player appears more than once")
    shares_ppm = sum(player.share_ppm for player in players)
    if shares_ppm not in (0, WHOLE_PPM):
        raise MeteringError(f"the shares must sum to {WHOLE_PPM} ppm, or to 0, not to {shares_ppm}")

    parts = [_Part(account=account, role="fixed", ppm=ppm) for account, ppm in policy.fixed_ppm.items()]
    if shares_ppm:
        for player in players:
            parts += _inside(player, Fraction(policy.pool_ppm * player.share_ppm, WHOLE_PPM), policy)
    else:
        parts.append(_Part(account=policy.residual, role="residual", ppm=policy.pool_ppm))

    amounts = apportion(charge_nano, [part.ppm for part in parts], [part.tie_key(request_id) for part in parts])
    lines = tuple(
        SplitLine(account=part.account, role=part.role, amount_nano=amount, kind=part.kind, item=part.item)
        for part, amount in zip(parts, amounts, strict=True)
        if amount
    )
    assert sum(line.amount_nano for line in lines) == charge_nano  # noqa: S101 - I2 must hold even where callers are wrong
    return lines


def _inside(player: PlayerShare, ppm: Fraction, policy: SplitPolicy) -> Iterator[_Part]:
    """Yield the parts of one player by its own terms."""
    terms = player.terms

    def part(contributor: str, role: str, ppm: Fraction) -> _Part:
        return _Part(account=contributor_account(contributor), role=role, ppm=ppm, kind=terms.kind, item=player.id)

    if isinstance(terms, DocumentTerms):
        yield part(terms.owner, "owner", ppm)
        return
    developer_ppm = Fraction(policy.developer_ppm if terms.datasets else WHOLE_PPM)
    yield part(terms.developer, "developer", ppm * developer_ppm / WHOLE_PPM)
    weights = sum(weight for _, weight in terms.datasets)
    for contributor, weight in terms.datasets:
        yield part(contributor, "dataset", ppm * (WHOLE_PPM - developer_ppm) / WHOLE_PPM * weight / weights)
