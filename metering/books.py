"""The double-entry books: every movement of money, with the log entry that proves it, in the caller's transaction.

A request's money moves caller → suspense when its usage is recorded and suspense → accounts when its answer is
attributed. Before either, admission reserves the most the request can cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import Connection

from ledger_client import JSON, SUSPENSE, Appended, Entry, EntryConflict, Log, entry_id
from metering import store
from metering._checks import GATEWAY, NAME, REASON, REQUEST_ID, check_text, check_whole
from metering.errors import InsufficientCredit, IntentError, MeteringError
from metering.policy import SplitPolicy
from metering.postings import FUNDING, Posting, balanced, check_caller_account
from metering.pricing import Price
from metering.records import AttributionRecord, UsageRecord
from metering.splits import SplitLine
from metering.store import Balance, Intent, Line, RequestState

# Of every entry, whichever gateway writes it: an attribution that another worker repeats must find the first.
SOURCE = "metering"


class Books:
    """What one gateway writes into the books of a log.

    gateway_id: names the dense sequence of this gateway's admissions. clock: returns the time, with its zone.

    Every method takes a connection inside a transaction and never commits. Every method that returns a log index may be
    repeated with the same arguments, then or years later: it returns the same index and moves nothing. Repeated with
    other arguments it raises EntryConflict, from `ledger_client`.
    """

    def __init__(self, log: Log, gateway_id: str, clock: Callable[[], datetime]) -> None:
        check_text("gateway id", gateway_id, GATEWAY)
        self._log = log
        self._gateway_id = gateway_id
        self._clock = clock

    def publish_price(self, connection: Connection, served_model: str, price: Price) -> int:
        """Log a price of a served model and return its index; a price that was there before keeps its first index."""
        check_text("served model", served_model, NAME)
        key = f"{served_model}:{price.prompt_nano_per_token}:{price.completion_nano_per_token}"
        return self._append(connection, "price.published", key, served_model, price.data(served_model)).log_index

    def publish_policy(self, connection: Connection, policy: SplitPolicy) -> int:
        """Log a version of a split policy and return its index. Another policy under the same version is a conflict."""
        key = f"{policy.name}:{policy.version}"
        return self._append(connection, "policy.published", key, policy.name, policy.data()).log_index

    def grant_credit(self, connection: Connection, account: str, amount_nano: int, reason: str, key: str) -> int:
        """Credit a caller's account from `funding` and return the log index.

        amount_nano: ≥ 1. reason: one line, public. key: names the grant, so that repeating it does not credit twice.
        """
        check_caller_account(account)
        check_whole("amount_nano", amount_nano, minimum=1)
        check_text("reason", reason, REASON)
        check_text("key", key, NAME)
        postings = _transfer(FUNDING, account, amount_nano)
        data: dict[str, JSON] = {"account": account, "amount_nano": str(amount_nano), "reason": reason}
        appended = self._append(connection, "credit.granted", key, account, data, postings)
        if appended.created:
            store.post(connection, _lines(appended, postings, "credit"))
        return appended.log_index

    def admit(self, connection: Connection, account: str, maximum_nano: int, request_id: str) -> Intent:
        """Reserve the most that a request can cost and give it the next number of this gateway's sequence.

        Repeated while the intent is open, it returns the same intent. Raises InsufficientCredit when credit, less what
        is reserved already, is below maximum_nano; IntentError when the request id is taken.
        """
        check_caller_account(account)
        check_whole("maximum_nano", maximum_nano)
        check_text("request_id", request_id, REQUEST_ID)
        known = store.request_state(connection, request_id)
        if known is not None:
            asked = replace(known.intent, gateway=self._gateway_id, account=account, maximum_nano=maximum_nano)
            if known.ended_index is not None or asked != known.intent:
                raise IntentError(f"request {request_id} was admitted before; take another request id")
            return known.intent
        before = store.balance(connection, account, for_update=True)
        if before.available_nano < maximum_nano:
            raise InsufficientCredit(account=account, available_nano=before.available_nano, maximum_nano=maximum_nano)
        intent = Intent(
            gateway=self._gateway_id,
            gateway_seq=store.next_sequence(connection, self._gateway_id),
            request_id=request_id,
            account=account,
            maximum_nano=maximum_nano,
            admitted_at=self._now(),
        )
        store.open_intent(connection, intent)
        return intent

    def record_usage(self, connection: Connection, intent: Intent, record: UsageRecord) -> int:
        """Charge an admitted request, release its reservation, and return the log index of its usage.

        Raises IntentError when the request was never admitted or was voided, MeteringError when the charge is more than
        was reserved.
        """
        state = _admitted(connection, intent)
        if state.ended_index is not None and state.charge_nano is None:
            raise IntentError(f"request {intent.request_id} was voided and cannot be charged")
        if record.charge_nano > intent.maximum_nano:
            raise MeteringError(f"the charge {record.charge_nano} exceeds the {intent.maximum_nano} nano-USD reserved")
        postings = _transfer(intent.account, SUSPENSE, record.charge_nano)
        data = {**_numbered(intent), **record.data()}
        request_id = intent.request_id
        appended = self._append(connection, "usage.recorded", request_id, request_id, data, postings)
        if appended.created:
            store.end_intent(
                connection,
                intent,
                appended.log_index,
                charge_nano=record.charge_nano,
                served_model=record.served_model,
                lines=_lines(appended, postings, "charge", record.served_model, request_id),
            )
        return appended.log_index

    def void(self, connection: Connection, intent: Intent, reason: str) -> int:
        """End an admitted request without a charge, release its reservation, and return the log index.

        reason: one line, public. Raises IntentError when the request was never admitted or was charged.
        """
        check_text("reason", reason, REASON)
        state = _admitted(connection, intent)
        if state.charge_nano is not None:
            raise IntentError(f"request {intent.request_id} was charged and cannot be voided")
        data = {**_numbered(intent), "reason": reason}
        appended = self._append(connection, "request.voided", intent.request_id, intent.request_id, data)
        if appended.created:
            store.end_intent(connection, intent, appended.log_index)
        return appended.log_index

    def record_attribution(self, connection: Connection, record: AttributionRecord) -> int:
        """Pay an answer's charge out of suspense as its split says, and return the log index of the attribution.

        Raises IntentError when the request was not charged, MeteringError when the split does not sum to the charge.
        """
        request_id = record.request_id
        state = store.request_state(connection, request_id)
        if state is None or state.charge_nano is None or state.served_model is None:
            raise IntentError(f"request {request_id} was not charged, so there is nothing to attribute")
        if record.total_nano != state.charge_nano:
            raise MeteringError(f"the split sums to {record.total_nano}, the charge is {state.charge_nano} nano-USD")
        postings = _payout(record)
        data = {**record.data(), "usage_index": state.ended_index, "charge_nano": str(state.charge_nano)}
        appended = self._append(connection, "answer.attributed", request_id, request_id, data, postings)
        if appended.created:
            store.mark_attributed(connection, state.intent, appended.log_index)
            lines = _lines(appended, postings, "split", state.served_model, request_id)
            store.post(connection, [*lines[:1], *map(_earned, lines[1:], record.split)])
        return appended.log_index

    def request(self, connection: Connection, request_id: str) -> RequestState | None:
        """Return what became of a request, or None when it was never admitted."""
        return store.request_state(connection, request_id)

    def open_intents(self, connection: Connection) -> list[Intent]:
        """Return this gateway's intents that are neither charged nor voided, oldest first."""
        return list(store.open_intents(connection, self._gateway_id))

    def balance(self, connection: Connection, account: str) -> Balance:
        """Return the totals of an account."""
        return store.balance(connection, account)

    def _append(
        self,
        connection: Connection,
        entry_type: str,
        key: str,
        subject: str,
        data: Mapping[str, JSON],
        postings: Sequence[Posting] | None = None,
    ) -> Appended:
        """Log a fact. When it is there already, only its time may differ, and the first time stands."""
        if postings is not None:
            encoded = [{"account": posting.account, "amount_nano": str(posting.amount_nano)} for posting in postings]
            data = {**data, "postings": encoded}
        entry = Entry(
            id=entry_id(SOURCE, f"{entry_type}:{key}"),
            source=SOURCE,
            type=entry_type,
            time=self._now(),
            subject=subject,
            data=data,
        )
        try:
            return self._log.append(connection, entry)
        except EntryConflict as conflict:
            first = Entry.decode(self._log.entry(connection, conflict.log_index))
            return self._log.append(connection, replace(entry, time=first.time))

    def _now(self) -> str:
        """Return the time in UTC, always of the same width, so that times sort as they follow each other."""
        now = self._clock()
        if now.tzinfo is None:
            raise MeteringError("the clock must return times with their zone")
        return now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _admitted(connection: Connection, intent: Intent) -> RequestState:
    """Return the state of an admitted request; an intent whose admission was rolled back is not one."""
    state = store.request_state(connection, intent.request_id)
    if state is None or state.intent != intent:
        raise IntentError(f"request {intent.request_id} was not admitted as {intent.gateway} {intent.gateway_seq}")
    return state


def _numbered(intent: Intent) -> dict[str, JSON]:
    return {"gateway": intent.gateway, "gateway_seq": intent.gateway_seq, "request_id": intent.request_id}


def _transfer(debited: str, credited: str, amount_nano: int) -> tuple[Posting, ...]:
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


def _lines(
    appended: Appended,
    postings: Sequence[Posting],
    role: str,
    served_model: str | None = None,
    request_id: str | None = None,
) -> list[Line]:
    return [
        Line(
            log_index=appended.log_index,
            position=position,
            time=appended.entry.time,
            account=posting.account,
            amount_nano=posting.amount_nano,
            role=role,
            served_model=served_model,
            request_id=request_id,
        )
        for position, posting in enumerate(postings)
    ]


def _earned(line: Line, part: SplitLine) -> Line:
    return replace(line, role=part.role, kind=part.kind, item=part.item)
