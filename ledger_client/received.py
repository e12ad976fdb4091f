"""An entry of one log as an entry of another: the whole of it, inside of a statement of where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ledger_client.entries import JSON, RECEIVED, Entry, EntryError, entry_id

_SOURCE = "ledger"  # states no more than that it received
_SPECVERSION = "specversion"


@dataclass(frozen=True, kw_only=True)
class Received:
    """Entry log_index of the log named origin, and when it was received (RFC 3339 in UTC).

    An entry that was itself received is not received again: whoever wants it asks the log that it is from.
    """

    origin: str
    log_index: int
    entry: Entry
    time: str

    def wrapped(self) -> Entry:
        """Return the entry that holds it, a function of these four parts alone. Raises EntryError."""
        inner = self.entry
        if inner.type == RECEIVED:
            raise EntryError("an entry that was received is not received again")
        # Canonical JSON inside of canonical JSON is written the same, so these are the inner entry's very bytes.
        held: dict[str, JSON] = {
            "id": inner.id,
            "source": inner.source,
            _SPECVERSION: "1.0",
            "type": inner.type,
            "time": inner.time,
            "subject": inner.subject,
            "data": inner.data,
        }
        return Entry(
            id=received_id(self.origin, self.log_index),
            source=_SOURCE,
            type=RECEIVED,
            time=self.time,
            subject=inner.id,
            data={"origin": self.origin, "log_index": self.log_index, "entry": held},
        )

    @classmethod
    def of(cls, wrapper: Entry) -> Received:
        """Take a wrapper apart; `Received.of(received.wrapped()) == received`. Raises EntryError on any other entry."""
        data = wrapper.data
        if wrapper.type != RECEIVED or data.keys() != {"origin", "log_index", "entry"}:
            raise EntryError(f"an entry of type {RECEIVED} has exactly the members origin, log_index and entry")
        origin, log_index, held = data["origin"], data["log_index"], data["entry"]
        if not isinstance(origin, str) or type(log_index) is not int or not isinstance(held, Mapping):
            raise EntryError("origin is a string, log_index an integer and entry an object")
        parts = dict(held)
        if parts.pop(_SPECVERSION, None) != "1.0":
            raise EntryError("the entry that was received is no CloudEvent of specversion 1.0")
        try:
            entry = Entry(**parts)  # type: ignore[arg-type]  # which checks them
        except TypeError as error:
            raise EntryError(f"the entry that was received has not the members of one: {error}") from error
        received = cls(origin=origin, log_index=log_index, entry=entry, time=wrapper.time)
        if received.wrapped() != wrapper:
            raise EntryError("this is not how the entry inside is held")
        return received


def received_id(origin: str, log_index: int) -> str:
    """Return the id under which a log's entry is held elsewhere, once and for ever."""
    return entry_id(_SOURCE, f"{RECEIVED}:{origin}:{log_index}")
