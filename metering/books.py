"""The double-entry books: every movement of money, with the log entry that proves it, in the caller's transaction.

A request's money moves caller → suspense when its usage is recorded and suspense → accounts when its answer is
attributed. Before either, admission reserves the most the request can cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeAlias

from ledger_client import JSON, SUSPENSE, Appended, Entry, EntryConflict, entry_id
from metering._checks import GATEWAY, NAME, REASON, REQUEST_ID, check_text, check_whole
from metering.budgets import Budget, Draw, Windows, check_budget
from metering.errors import InsufficientCredit, IntentError, MeteringError
from metering.policy import SplitPolicy
from metering.postings import FUNDING, Posting, balanced, check_caller_account
from metering.pricing import Price
from metering.records import AttributionRecord, UsageRecord
from metering.store import Intent, Line, RequestState
from metering.transaction import Transaction

# Of every entry, whichever gateway writes it: an attribution that another worker repeats must find the first.
SOURCE = "metering"

Purpose: TypeAlias = tuple[str, str | None, str | None]
"""The role of a posting, and the kind and item of the player that earned it, if one did."""


class Books:
    """What one gateway writes into the books of a log.

    gateway_id: names the dense sequence of this gateway's admissions. clock: returns the time, with its zone.

    Every method takes a transaction and never commits. Every method that returns a log index may be repeated with the
    same arguments, then or years later: it returns the same index and moves nothing. Repeated with other arguments it
    raises EntryConflict, from `ledger_client`.
    """

    def __init__(self, gateway_id: str, clock: Callable[[], datetime]) -> None:
        check_text("gateway id", gateway_id, GATEWAY)
        self._gateway_id = gateway_id
        self._clock = clock

    def publish_price(self, transaction: Transaction, served_model: str, price: Price) -> int:
        """Log a price of a served model and return its index; a price that was there before keeps its first index."""
        check_text("served model", served_model, NAME)
        key = f"{served_model}:{price.prompt_nano_per_token}:{price.completion_nano_per_token}"
        return self.log(transaction, "price.published", key, served_model, price.data(served_model)).log_index

    def publish_policy(self, transaction: Transaction, policy: SplitPolicy) -> int:
        """Log a version of a split policy and return its index. Another policy under the same version is a conflict."""
        key = f"{policy.name}:{policy.version}"
        return self.log(transaction, "policy.published", key, policy.name, policy.data()).log_index

    def grant_credit(self, transaction: Transaction, account: str, amount_nano: int, reason: str, key: str) -> int:
        """Credit a caller's account from `funding` and return the log index.

        amount_nano: ≥ 1. reason: one line, public. key: names the grant, so that repeating it does not credit twice.
        """
        check_caller_account(account)
        check_whole("amount_nano", amount_nano, minimum=1)
        check_text("reason", reason, REASON)
        check_text("key", key, NAME)
        postings = transfer(FUNDING, account, amount_nano)
        data: dict[str, JSON] = {"account": account, "amount_nano": str(amount_nano), "reason": reason}
        appended = self.log(transaction, "credit.granted", key, account, data, postings)
        if appended.created:
            transaction.post(lines_of(transaction, appended, postings, in_role("credit", postings)))
        return appended.log_index

    def admit(
        self,
        transaction: Transaction,
        account: str,
        maximum_nano: int,
        request_id: str,
        *,
        key: str | None = None,
        maximum_tokens: int = 0,
    ) -> Intent:
        """Reserve the most that a request can cost and give it the next number of this gateway's sequence.

        key: id of the caller's API key, whose budget is drawn on beside the account's. maximum_tokens: the most tokens
        that the request can take. Repeated while the intent is open, it returns the same intent. Raises
        InsufficientCredit when credit, less what is reserved already, is below maximum_nano; BudgetExceeded when a
        budget of the account or the key does not allow it; IntentError when the request id is taken.
        """
        check_caller_account(account)
        check_whole("maximum_nano", maximum_nano)
        check_whole("maximum_tokens", maximum_tokens)
        check_text("request_id", request_id, REQUEST_ID)
        known = transaction.request(request_id)
        if known is not None:
            asked = replace(
                known.intent,
                gateway=self._gateway_id,
                account=account,
                maximum_nano=maximum_nano,
                maximum_tokens=maximum_tokens,
            )
            if known.ended_index is not None or asked != known.intent:
                raise IntentError(f"request {request_id} was admitted before; take another request id")
            return known.intent
        before = transaction.balance(account)
        if before.available_nano < maximum_nano:
            raise InsufficientCredit(account=account, available_nano=before.available_nano, maximum_nano=maximum_nano)
        time = self.now()
        budgets = [budget for subject in (account, key) if subject and (budget := transaction.budget(subject))]
        for budget in budgets:
            windows = Windows.of(time)
            asked_for = Draw(requests=1, tokens=maximum_tokens, spent_nano=maximum_nano)
            month, minute = (transaction.drawn(budget.subject, window) for window in (windows.month, windows.minute))
            check_budget(budget, asked_for, month, minute, time)
        intent = Intent(
            gateway=self._gateway_id,
            gateway_seq=transaction.next_sequence(self._gateway_id),
            request_id=request_id,
            account=account,
            maximum_nano=maximum_nano,
            maximum_tokens=maximum_tokens,
            budgeted=tuple(budget.subject for budget in budgets),
            admitted_at=time,
        )
        transaction.set_request(RequestState(intent=intent))
        transaction.change_balance(account, pending_nano=maximum_nano)
        _draw(transaction, intent, requests=1, tokens=maximum_tokens, spent_nano=maximum_nano)
        return intent

    def set_budget(self, transaction: Transaction, budget: Budget) -> None:
        """Limit what an account or a key may take from now on; a budget without limits lifts them."""
        transaction.set_budget(budget)

    def record_usage(self, transaction: Transaction, intent: Intent, record: UsageRecord) -> int:
        """Charge an admitted request, release its reservation, and return the log index of its usage.

        Raises IntentError when the request was never admitted or was voided, MeteringError when the charge is more than
        was reserved.
        """
        state = _admitted(transaction, intent)
        if state.ended_index is not None and state.charge_nano is None:
            raise IntentError(f"request {intent.request_id} was voided and cannot be charged")
        if record.charge_nano > intent.maximum_nano:
            raise MeteringError(f"the charge {record.charge_nano} exceeds the {intent.maximum_nano} nano-USD reserved")
        postings = transfer(intent.account, SUSPENSE, record.charge_nano)
        data = {**_numbered(intent), **record.data()}
        request_id, new = intent.request_id, state.ended_index is None
        appended = self.log(transaction, "usage.recorded", request_id, request_id, data, postings, new=new)
        if appended.created:
            _end(
                transaction,
                replace(
                    state,
                    ended_index=appended.log_index,
                    charge_nano=record.charge_nano,
                    served_model=record.served_model,
                ),
                tokens=record.usage.prompt_tokens + record.usage.completion_tokens,
            )
            purposes = in_role("charge", postings)
            transaction.post(lines_of(transaction, appended, postings, purposes, record.served_model, request_id))
        return appended.log_index

    def void(self, transaction: Transaction, intent: Intent, reason: str) -> int:
        """End an admitted request without a charge, release its reservation, and return the log index.

        reason: one line, public. Raises IntentError when the request was never admitted or was charged.
        """
        check_text("reason", reason, REASON)
        state = _admitted(transaction, intent)
        if state.charge_nano is not None:
            raise IntentError(f"request {intent.request_id} was charged and cannot be voided")
        data = {**_numbered(intent), "reason": reason}
        new = state.ended_index is None
        appended = self.log(transaction, "request.voided", intent.request_id, intent.request_id, data, new=new)
        if appended.created:
            _end(transaction, replace(state, ended_index=appended.log_index), tokens=0)
        return appended.log_index

    def record_attribution(self, transaction: Transaction, record: AttributionRecord) -> int:
        """Pay an answer's charge out of suspense as its split says, and return the log index of the attribution.

        Raises IntentError when the request was not charged, MeteringError when the split does not sum to the charge.
        """
        request_id = record.request_id
        state = charged(transaction, request_id)
        if record.total_nano != state.charge_nano:
            raise MeteringError(f"the split sums to {record.total_nano}, the charge is {state.charge_nano} nano-USD")
        postings = _payout(record)
        data = {**record.data(), "usage_index": state.ended_index, "charge_nano": str(state.charge_nano)}
        new = state.attribution_index is None
        appended = self.log(transaction, "answer.attributed", request_id, request_id, data, postings, new=new)
        if appended.created:
            transaction.set_request(replace(state, attribution_index=appended.log_index))
            purposes = [*in_role("split", postings[:1]), *((part.role, part.kind, part.item) for part in record.split)]
            transaction.post(lines_of(transaction, appended, postings, purposes, state.served_model, request_id))
        return appended.log_index

    def log(
        self,
        transaction: Transaction,
        entry_type: str,
        key: str,
        subject: str,
        data: Mapping[str, JSON],
        postings: Sequence[Posting] | None = None,
        *,
        new: bool = False,
    ) -> Appended:
        """Log a fact under the key that it is logged by once; when it is there already, it stands as it is.

        A repeat may differ in its time alone. new: the books show that it is not in the log yet.
        """
        if postings is not None:
            encoded = [{"account": posting.account, "amount_nano": str(posting.amount_nano)} for posting in postings]
            data = {**data, "postings": encoded}
        entry = Entry(
            id=entry_id(SOURCE, f"{entry_type}:{key}"),
            source=SOURCE,
            type=entry_type,
            time=self.now(),
            subject=subject,
            data=data,
        )
        try:
            return transaction.log.append(entry, new=new)
        except EntryConflict as conflict:
            first = Entry.decode(transaction.log.entry(conflict.log_index))
            return transaction.log.append(replace(entry, time=first.time))

    def now(self) -> str:
        """Return the time in UTC, always of the same width, so that times sort as they follow each other."""
        now = self._clock()
        if now.tzinfo is None:
            raise MeteringError("the clock must return times with their zone")
        if now.tzinfo is not UTC:
            now = now.astimezone(UTC)
        return now.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def charged(transaction: Transaction, request_id: str) -> RequestState:
    """Return the state of a request that was charged. Raises IntentError for any other."""
    state = transaction.request(request_id)
    if state is None or state.charge_nano is None:
        raise IntentError(f"request {request_id} was not charged, so there is nothing to attribute")
    return state


def _admitted(transaction: Transaction, intent: Intent) -> RequestState:
    """Return the state of an admitted request; an intent whose admission was rolled back is not one."""
    state = transaction.request(intent.request_id)
    if state is None or state.intent != intent:
        raise IntentError(f"request {intent.request_id} was not admitted as {intent.gateway} {intent.gateway_seq}")
    return state


def _end(transaction: Transaction, state: RequestState, *, tokens: int) -> None:
    """Store how a request ended, and give back what it reserved and did not take."""
    intent = state.intent
    transaction.set_request(state)
    transaction.change_balance(intent.account, pending_nano=-intent.maximum_nano)
    spent_nano = (state.charge_nano or 0) - intent.maximum_nano
    _draw(transaction, intent, requests=0, tokens=tokens - intent.maximum_tokens, spent_nano=spent_nano)


def _draw(transaction: Transaction, intent: Intent, *, requests: int, tokens: int, spent_nano: int) -> None:
    """Add to the windows that a request was admitted in, of each budget that it draws on."""
    for subject in intent.budgeted:
        windows = Windows.of(intent.admitted_at)
        transaction.draw(subject, windows.month, Draw(spent_nano=spent_nano))
        transaction.draw(subject, windows.minute, Draw(requests=requests, tokens=tokens))


def _numbered(intent: Intent) -> dict[str, JSON]:
    return {"gateway": intent.gateway, "gateway_seq": intent.gateway_seq, "request_id": intent.request_id}


def transfer(debited: str, credited: str, amount_nano: int) -> tuple[Posting, ...]:
    """Return the two postings that move an amount, or none for nothing."""
    if amount_nano == 0:
        return ()
    return balanced(
        [
            Posting(account=debited, amount_nano=-amount_nano),
            Posting(account=credited, amount_nano=amount_nano),
        ]
    )


def _payout(record: AttributionRecord) -> tuple[Posting, ...]:
    """Return the debit of suspense and one credit for each line of the split, in its order; none for nothing."""
    if not record.split:
        return ()
    debit = Posting(account=SUSPENSE, amount_nano=-record.total_nano)
    return balanced([debit, *(Posting(account=line.account, amount_nano=line.amount_nano) for line in record.split)])


def lines_of(
    transaction: Transaction,
    appended: Appended,
    postings: Sequence[Posting],
    purposes: Sequence[Purpose],
    served_model: str | None = None,
    request_id: str | None = None,
) -> list[Line]:
    """Return an entry's postings as they are stored, each with what it is for."""
    time = appended.entry.time
    period = transaction.period_of(time)
    return [
        Line(
            log_index=appended.log_index,
            position=position,
            time=time,
            period=period,
            account=posting.account,
            amount_nano=posting.amount_nano,
            role=role,
            kind=kind,
            item=item,
            served_model=served_model,
            request_id=request_id,
        )
        for position, (posting, (role, kind, item)) in enumerate(zip(postings, purposes, strict=True))
    ]


def in_role(role: str, postings: Sequence[Posting]) -> list[Purpose]:
    """Return the purposes of postings that are all for the same, and through no player."""
    return [(role, None, None)] * len(postings)
