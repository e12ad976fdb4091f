"""What the books should say: plain dictionaries and the rules of the design, told one command after the other.

Nothing here is taken from the code under test but the values that commands are made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from metering import AttributionRecord, Budget, Intent, UsageRecord

from .load import TERMS

Moves: TypeAlias = Sequence[tuple[str, str | None, str | None, str, int]]
"""(role, kind, item, account, nano-USD) of each posting of an entry."""

CONTRIBUTOR = "contributor:"
UNIT_NANO = 1000  # of a token with six decimals


class Refused(Exception):  # noqa: N818 - what a command got, and no fault
    """A command that must be refused. name: of the error's class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, kw_only=True)
class Command:
    """Something that is asked of a gateway, once or more often. name: of the method of Model that says what it does."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """An entry, as far as the model knows it. body: what a repeat under its key must be equal to."""

    type: str
    subject: str
    time: str
    key: str
    body: Any
    moves: Moves = ()
    period: str = ""
    served_model: str | None = None

    @property
    def net(self) -> Counter[str]:
        """What the entry adds to each account that it changes."""
        sums: Counter[str] = Counter()
        for *_, account, amount in self.moves:
            sums[account] += amount
        return Counter({account: amount for account, amount in sums.items() if amount})


@dataclass(kw_only=True)
class Request:
    """A request that was admitted, and what became of it."""

    intent: Intent
    ended: int | None = None  # log index
    usage: UsageRecord | None = None
    in_force: tuple[int, AttributionRecord, str | None] | None = None  # log index, record, why it corrects
    ratings: list[tuple[int, int]] = field(default_factory=list)  # log index, rating


@dataclass
class Model:
    """Everything that one log's books hold."""

    facts: list[Fact] = field(default_factory=list)
    balances: Counter[str] = field(default_factory=Counter)
    requests: dict[str, Request] = field(default_factory=dict)
    sequences: Counter[str] = field(default_factory=Counter)
    budgets: dict[str, Budget] = field(default_factory=dict)
    draws: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # subject, window, what is counted
    closed: dict[str, int] = field(default_factory=dict)  # period → log index
    payouts: list[tuple[str, str, int]] = field(default_factory=list)  # contributor, period, nano-USD
    addresses: dict[str, tuple[int, str]] = field(default_factory=dict)  # contributor → nonce, address
    _by_key: dict[tuple[str, str], int] = field(default_factory=dict)

    def tell(self, command: Command, gateway: str, now: str) -> Any:
        """Do what a command asks, at a time of the books. Returns what the asker is told. Raises Refused."""
        return getattr(self, command.name)(gateway, now, *command.arguments)

    @property
    def open(self) -> list[Intent]:
        """The intents without an end, in sequence."""
        intents = [request.intent for request in self.requests.values() if request.ended is None]
        return sorted(intents, key=lambda intent: (intent.gateway, intent.gateway_seq))

    def pending(self, account: str) -> int:
        return sum(intent.maximum_nano for intent in self.open if intent.account == account)

    def lines(self, account: str) -> list[tuple[int, Fact, int]]:
        """Every posting of an account as (log index, entry, nano-USD)."""
        return [
            (log_index, fact, amount)
            for log_index, fact in enumerate(self.facts)
            for *_, of, amount in fact.moves
            if of == account
        ]

    # Commands.

    def register(self, _gateway: str, now: str) -> list[int]:
        return [
            self._log(Fact(type=entry_type, subject=subject, time=now, key=subject, body=None))
            for entry_type, subject, _ in TERMS
        ]

    def grant(self, _gateway: str, now: str, account: str, amount: int, key: str) -> int:
        return self._log(
            Fact(type="credit.granted", subject=account, time=now, key=key, body=(account, amount),
                 moves=_transfer("credit", "funding", account, amount))
        )  # fmt: skip

    def limit(self, _gateway: str, _now: str, budget: Budget) -> None:
        self.budgets[budget.subject] = budget

    def admit(
        self, gateway: str, now: str, request: str, account: str, maximum: int, tokens: int, key: str | None
    ) -> Intent:
        if known := self.requests.get(request):
            intent = known.intent
            same = (intent.gateway, intent.account, intent.maximum_nano, intent.maximum_tokens)
            if known.ended is not None or same != (gateway, account, maximum, tokens):
                raise Refused("IntentError")
            return intent
        if self.balances[account] - self.pending(account) < maximum:
            raise Refused("InsufficientCredit")
        month, minute = now[:7], now[:16]
        limited = [self.budgets[s] for s in (account, key) if s in self.budgets and not self.budgets[s].unlimited]
        for budget in limited:
            for most, window, what, more in (
                (budget.monthly_nano, month, "spent", maximum),
                (budget.requests_per_minute, minute, "requests", 1),
                (budget.tokens_per_minute, minute, "tokens", tokens),
            ):
                if most is not None and self.draws[budget.subject, window, what] + more > most:
                    raise Refused("BudgetExceeded")
        intent = Intent(
            gateway=gateway,
            gateway_seq=self.sequences[gateway],
            request_id=request,
            account=account,
            maximum_nano=maximum,
            maximum_tokens=tokens,
            budgeted=tuple(budget.subject for budget in limited),
            admitted_at=now,
        )
        self.sequences[gateway] += 1
        self.requests[request] = Request(intent=intent)
        self._draw(intent, requests=1, tokens=tokens, spent=maximum)
        return intent

    def use(self, _gateway: str, now: str, intent: Intent, record: UsageRecord) -> int:
        request = self._admitted(intent)
        if request.ended is not None and request.usage is None:
            raise Refused("IntentError")
        if record.charge_nano > intent.maximum_nano:
            raise Refused("MeteringError")
        moves = _transfer("charge", intent.account, "suspense", record.charge_nano)
        log_index = self._log(
            Fact(type="usage.recorded", subject=intent.request_id, time=now, key=intent.request_id,
                 body=record, moves=moves, served_model=record.served_model)
        )  # fmt: skip
        if request.ended is None:
            request.ended, request.usage = log_index, record
            used = record.usage.prompt_tokens + record.usage.completion_tokens
            self._draw(intent, tokens=used - intent.maximum_tokens, spent=record.charge_nano - intent.maximum_nano)
        return log_index

    def void(self, _gateway: str, now: str, intent: Intent, reason: str) -> int:
        request = self._admitted(intent)
        if request.usage is not None:
            raise Refused("IntentError")
        log_index = self._log(
            Fact(type="request.voided", subject=intent.request_id, time=now, key=intent.request_id, body=reason)
        )
        if request.ended is None:
            request.ended = log_index
            self._draw(intent, tokens=-intent.maximum_tokens, spent=-intent.maximum_nano)
        return log_index

    def sweep(self, gateway: str, now: str, of: str | None, before: str | None, reason: str) -> list[int]:
        """Void what is open, of one gateway or all, from before a time or ever."""
        return [
            self.void(gateway, now, intent, reason)
            for intent in self.open
            if of in (None, intent.gateway) and (before is None or intent.admitted_at < before)
        ]

    def attribute(self, _gateway: str, now: str, record: AttributionRecord) -> int:
        request, usage = self._charged(record)
        if record.total_nano != usage.charge_nano:
            raise Refused("MeteringError")
        moves = [("split", line.role, line.kind, line.item, line.account, line.amount_nano) for line in record.split]
        debit = [("split", None, None, "suspense", -record.total_nano)] if moves else []
        log_index = self._log(
            Fact(type="answer.attributed", subject=record.request_id, time=now, key=record.request_id, body=record,
                 moves=[*debit, *(move[1:] for move in moves)], served_model=usage.served_model)
        )  # fmt: skip
        if request.in_force is None:
            request.in_force = (log_index, record, None)
        return log_index

    def supersede(self, _gateway: str, now: str, record: AttributionRecord, reason: str) -> int:
        request, usage = self._charged(record)
        if request.in_force is None:
            raise Refused("IntentError")
        if record.total_nano != usage.charge_nano:
            raise Refused("MeteringError")
        log_index, replaced, why = request.in_force
        if (record, reason) == (replaced, why):
            return log_index
        changes: Counter[tuple[str | None, str | None, str]] = Counter()
        for sign, lines in ((1, record.split), (-1, replaced.split)):
            for line in lines:
                changes[line.kind, line.item, line.account] += sign * line.amount_nano
        moves = [("correction", *place, amount) for place, amount in changes.items() if amount]
        log_index = self._log(
            Fact(type="answer.superseded", subject=record.request_id, time=now, key=f"{record.request_id}:{log_index}",
                 body=(record, reason), moves=moves, served_model=usage.served_model)
        )  # fmt: skip
        request.in_force = (log_index, record, reason)
        return log_index

    def rate(self, _gateway: str, now: str, request_id: str, rating: int) -> int:
        request = self.requests.get(request_id)
        if request is None or request.usage is None:
            raise Refused("IntentError")
        if request.ratings and request.ratings[-1][1] == rating:
            return request.ratings[-1][0]
        key = f"{request_id}:{len(request.ratings)}"
        log_index = self._log(Fact(type="feedback.recorded", subject=request_id, time=now, key=key, body=rating))
        request.ratings.append((log_index, rating))
        return log_index

    def bind(self, _gateway: str, now: str, contributor: str, address: str, nonce: int) -> int:
        last, _ = self.addresses.get(contributor, (-1, ""))
        if nonce < last:
            raise Refused("MeteringError")
        log_index = self._log(
            Fact(type="address.bound", subject=contributor, time=now, key=f"{contributor}:{nonce}", body=address)
        )
        self.addresses[contributor] = (nonce, address)
        return log_index

    def settle(self, _gateway: str, now: str, period: str, method: str, minimum: int) -> tuple[int, dict[str, int]]:
        """Returns the log index of the closing entry, and what was paid to whom."""
        if period not in self.closed:
            last = max(self.closed, default=None)
            turn = self.facts[0].time[:7] if last is None and self.facts else last and _following(last)
            if period != turn or period >= now[:7]:
                raise Refused("PeriodError")
            for contributor, amount in self._due(period).items():
                if amount and amount >= minimum and (method == "csv" or contributor in self.addresses):
                    self._log(
                        Fact(type="payout.recorded", subject=contributor, time=now, key=f"{contributor}:{period}",
                             body=amount, moves=_transfer("payout", f"{CONTRIBUTOR}{contributor}", "payouts", amount))
                    )  # fmt: skip
                    self.payouts.append((contributor, period, amount))
            closing = Fact(type="period.closed", subject=period, time=now, key=period, body=None)
            self.closed[period] = self._log(closing)
        paid = {contributor: amount for contributor, of, amount in self.payouts if of == period}
        return self.closed[period], paid

    # Rules.

    def _due(self, period: str) -> dict[str, int]:
        """What may be paid for a period, in whole token units, by contributor in order."""
        accounts = sorted(account for account in self.balances if account.startswith(CONTRIBUTOR))
        due: dict[str, int] = {}
        for account in accounts:
            lines = self.lines(account)
            left = sum(amount for _, fact, amount in lines if fact.period <= period or fact.type == "payout.recorded")
            left = max(min(left, self.balances[account]), 0)
            due[account.removeprefix(CONTRIBUTOR)] = left - left % UNIT_NANO
        return due

    def _admitted(self, intent: Intent) -> Request:
        request = self.requests.get(intent.request_id)
        if request is None or request.intent != intent:
            raise Refused("IntentError")
        return request

    def _charged(self, record: AttributionRecord) -> tuple[Request, UsageRecord]:
        request = self.requests.get(record.request_id)
        if request is None or request.usage is None:
            raise Refused("IntentError")
        return request, request.usage

    def _draw(self, intent: Intent, *, requests: int = 0, tokens: int, spent: int) -> None:
        for subject in intent.budgeted:
            self.draws[subject, intent.admitted_at[:7], "spent"] += spent
            self.draws[subject, intent.admitted_at[:16], "requests"] += requests
            self.draws[subject, intent.admitted_at[:16], "tokens"] += tokens

    def _log(self, fact: Fact) -> int:
        """Log a fact once for ever."""
        place = (fact.type, fact.key)
        if place in self._by_key:
            log_index = self._by_key[place]
            if self.facts[log_index].body != fact.body:
                raise Refused("EntryConflict")
            return log_index
        log_index = self._by_key[place] = len(self.facts)
        month, last = fact.time[:7], max(self.closed, default="")
        self.facts.append(replace(fact, period=month if month > last else _following(last)))
        for *_, account, amount in fact.moves:
            self.balances[account] += amount
        return log_index


def _transfer(role: str, debited: str, credited: str, amount: int) -> Moves:
    return ((role, None, None, debited, -amount), (role, None, None, credited, amount)) if amount else ()


def _following(month: str) -> str:
    year, number = int(month[:4]), int(month[5:])
    return f"{year + 1:04}-01" if number == 12 else f"{year:04}-{number + 1:02}"
