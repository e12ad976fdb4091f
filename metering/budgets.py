"""Budgets: what a caller's account, or one of its keys, may take in a month and in a minute."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self

from metering._checks import check_text, check_whole
from metering.errors import BudgetExceeded, MeteringError

SUBJECT = "caller:[A-Za-z0-9][A-Za-z0-9._-]{0,127}|key_[a-z2-7]{26}"
_MICROSECOND = len("2025-01-31T23:59:59.000000Z")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of one subject, an account or a key id; None where there is no limit.

    monthly_nano: charges and reservations of a UTC month. requests_per_minute, tokens_per_minute: of a UTC minute, by
    the time of admission; tokens count as the most that a request may take until it has ended.
    """

    subject: str
    monthly_nano: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        check_text("the subject of a budget", self.subject, SUBJECT)
        for name in ("monthly_nano", "requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))

    @property
    def unlimited(self) -> bool:
        """Whether it limits nothing."""
        return self == Budget(subject=self.subject)


class Draw(NamedTuple):
    """What was drawn on a budget in a window; of open requests, the most that they can still take."""

    requests: int = 0
    tokens: int = 0
    spent_nano: int = 0

    def plus(self, other: Draw) -> Draw:
        """Return both together."""
        return Draw(
            requests=self.requests + other.requests,
            tokens=self.tokens + other.tokens,
            spent_nano=self.spent_nano + other.spent_nano,
        )


class Windows(NamedTuple):
    """The month and the minute, in UTC, that a time lies in."""

    month: str
    minute: str

    @classmethod
    def of(cls, time: str) -> Self:
        """Read them off a time of the books, RFC 3339 in UTC to the microsecond."""
        if len(time) != _MICROSECOND:
            raise MeteringError(f"a time of the books has microseconds, unlike {time!r}")
        return cls(month=time[:7], minute=time[:16])


def check_budget(budget: Budget, asked: Draw, month: Draw, minute: Draw, time: str) -> None:
    """Raise BudgetExceeded when what is asked for, on top of what was drawn, passes a limit.

    month, minute: what was drawn in the windows of `time`.
    """
    if budget.monthly_nano is not None and month.spent_nano + asked.spent_nano > budget.monthly_nano:
        left_nano = max(budget.monthly_nano - month.spent_nano, 0)
        raise BudgetExceeded(
            f"the monthly budget has {left_nano} nano-USD left, and the request may cost {asked.spent_nano}",
            limit="monthly_budget",
            retry_after_s=_until_next_month_s(time),
        )
    for limit, most, drawn, more in (
        ("requests_per_minute", budget.requests_per_minute, minute.requests, asked.requests),
        ("tokens_per_minute", budget.tokens_per_minute, minute.tokens, asked.tokens),
    ):
        if most is not None and drawn + more > most:
            what = limit.partition("_")[0]
            raise BudgetExceeded(
                f"{most} {what} a minute are allowed; {drawn} are taken, and the request may take {more}",
                limit=limit,
                retry_after_s=60 - int(time[17:19]),
            )


def _until_next_month_s(time: str) -> int:
    now = datetime.fromisoformat(time)
    following = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int((following - now.astimezone(UTC)).total_seconds()) + 1
