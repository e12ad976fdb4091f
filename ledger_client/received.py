"""An entry of one log as an entry of another: the whole of it, inside of a statement of where it came from."""

from __future__ import annotations

from dataclasses import dataclass

from ledger_client.entries import JSON, RECEIVED, Entry, EntryError, entry_id

_SOURCE = "ledger"  # states no more than that it received
_HEAD = b'{"data":{"entry":'


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
            "specversion": "1.0",
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
        origin, log_index = data["origin"], data["log_index"]
        if not isinstance(origin, str) or type(log_index) is not int or log_index < 0:
            raise EntryError("origin is a string and log_index an integer from 0")
        raw = wrapper.encode()
        # Its members are in order, and a quotation mark inside of a string is not written like this.
        entry = Entry.decode(raw[len(_HEAD) : raw.rindex(f',"log_index":{log_index},"origin":"'.encode())])
        expected = (received_id(origin, log_index), _SOURCE, entry.id)
        if entry.type == RECEIVED or (wrapper.id, wrapper.source, wrapper.subject) != expected:
            raise EntryError("this is not how the entry inside is held")
        return cls(origin=origin, log_index=log_index, entry=entry, time=wrapper.time)


def received_id(origin: str, log_index: int) -> str:
    """Return the id under which a log's entry is held elsewhere, once and for ever."""
    return entry_id(_SOURCE, f"{RECEIVED}:{origin}:{log_index}")
