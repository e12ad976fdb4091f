"""The laws of entries that name others: registrations that answers rely on, and records that are corrected or rated.

They are filed under I8: a log whose entries name what is not there, or is something else, is not the one once written.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar

from ledger_client.amounts import SPLITS, Amounts
from ledger_client.entries import JSON, Entry, EntryError
from ledger_client.laws import Fault, Finding, Logged

# Registration → the members of its data that others name it by: what it is of, and who is credited for that.
_REGISTRATIONS: dict[str, tuple[str, str | None]] = {
    "document.registered": ("document", "owner"),
    "adapter.registered": ("adapter", "developer"),
    "policy.published": ("policy", None),
    "price.published": ("served_model", None),
}
_RECENT = 4096
_CODES = {name: code for code, name in enumerate(_REGISTRATIONS)}
_NAMES = list(_REGISTRATIONS)


class References:
    """I8: a charge names the price, an attribution the policy, adapter and documents, that were registered before it.

    The players of an attribution are among those, and credited to those who registered them. Memory grows by the
    registrations, 25 bytes each.
    """

    types: ClassVar[frozenset[str] | None] = SPLITS | _REGISTRATIONS.keys() | {"usage.recorded"}

    def __init__(self) -> None:
        self._indexes = array("Q")
        self._codes = array("B")
        self._named = array("q")
        self._credited = array("q")
        self._recent: dict[int, int] = {}  # log index → place, of those looked up last

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Note a registration, or look up those that an entry names."""
        entry = logged.entry
        assert entry is not None  # noqa: S101 - it has one of the types asked for
        data = entry.data
        if entry.type == "usage.recorded":
            yield from self._named_by(
                "price_index", data.get("price_index"), "price.published", data.get("served_model")
            )
        elif entry.type in SPLITS:
            yield from self._attribution_faults(entry)
        else:
            name, credited = _REGISTRATIONS[entry.type]
            self._indexes.append(logged.log_index)
            self._codes.append(_CODES[entry.type])
            self._named.append(hash(str(data.get(name))))
            self._credited.append(hash(str(data.get(credited))) if credited else 0)

    def end(self) -> Iterator[Finding]:
        """Nothing is left to say."""
        return iter(())

    def _attribution_faults(self, entry: Entry) -> Iterator[Fault]:
        data = entry.data
        yield from self._named_by("policy_index", data.get("policy_index"), "policy.published")
        adapter, documents, players = data.get("adapter_index"), data.get("document_indexes"), data.get("players")
        if adapter is not None:
            yield from self._named_by("adapter_index", adapter, "adapter.registered")
        if type(documents) is not dict or type(players) is not list:
            yield "I8", "document_indexes and players are an object and a list"
            return
        for document, index in documents.items():
            yield from self._named_by("document_indexes", index, "document.registered", document)
        for player in players:
            yield from self._player_faults(player, adapter, documents)

    def _player_faults(self, player: JSON, adapter: JSON, documents: Mapping[str, JSON]) -> Iterator[Fault]:
        """Yield a fault unless a player is an adapter or document named beside it, and credited to its registrant."""
        if not isinstance(player, dict):
            yield "I8", f"a player is an object, not {player!r:.40}"
            return
        kind, name, contributor = player.get("kind"), str(player.get("id")), str(player.get("contributor"))
        place = self._place(adapter if kind == "adapter" else documents.get(name))
        if (
            place is None
            or _NAMES[self._codes[place]] != f"{kind}.registered"
            or self._named[place] != hash(name)
            or self._credited[place] != hash(contributor)
        ):
            yield "I8", f"player {kind} {name:.80} of {contributor:.80} is not registered where the entry says"

    def _named_by(self, member: str, index: JSON, expected: str, name: JSON = None) -> Iterable[Fault]:
        """Return a fault unless the entry at index is a registration of the type and, where given, of the name."""
        place = self._place(index)
        if place is None or _NAMES[self._codes[place]] != expected:
            return [("I8", f"{member} names entry {index!r:.40}, which is no earlier {expected}")]
        if name is not None and self._named[place] != hash(str(name)):
            return [("I8", f"{member} names entry {index!r}, which is not the {expected} of {name!r:.80}")]
        return ()

    def _place(self, index: JSON) -> int | None:
        """Return where a registration stands in the arrays, None where there is none at that log index."""
        if type(index) is not int or index < 0:
            return None
        place = self._recent.get(index)
        if place is None:
            place = bisect_left(self._indexes, index)
            if place == len(self._indexes) or self._indexes[place] != index:
                return None
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            self._recent[index] = place
        return place


class Lineage:
    """I8: an adapter's versions follow one another, and name as parents what was registered before them.

    So no version descends from itself. Entries that do not say their version are counted, and have no parents. Memory
    grows by the versions.
    """

    types: ClassVar[frozenset[str] | None] = frozenset({"adapter.registered"})

    def __init__(self) -> None:
        self._newest: Counter[str] = Counter()
        self._registered: dict[int, tuple[str, int, JSON]] = {}  # log index → name, version and digest

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Compare each parent with the registration that it names, then note this one."""
        assert logged.entry is not None  # noqa: S101 - it has the type asked for
        data = logged.entry.data
        name, follows = str(data.get("adapter")), self._newest[str(data.get("adapter"))] + 1
        version, parents = data.get("version", follows), data.get("parents", [])
        if type(version) is not int or version != follows:
            yield "I8", f"version {version!r:.40} of adapter {name:.80} follows where {follows} should"
        self._newest[name] = follows
        self._registered[logged.log_index] = (name, follows, data.get("digest"))
        if type(parents) is not list:
            yield "I8", "parents are a list"
            return
        for parent in parents:
            yield from self._parent_faults(parent, logged.log_index)

    def end(self) -> Iterator[Finding]:
        """Nothing is left to say."""
        return iter(())

    def _parent_faults(self, parent: JSON, child_index: int) -> Iterator[Fault]:
        if not isinstance(parent, dict):
            yield "I8", f"a parent is an object, not {parent!r:.40}"
            return
        index = parent.get("log_index")
        registered = self._registered.get(index) if type(index) is int and index < child_index else None
        if registered != (parent.get("adapter"), parent.get("version"), parent.get("digest")):
            yield "I8", f"parent {parent.get('adapter')!r:.80} is not registered where the entry says, at {index!r:.40}"


class Corrections:
    """I8 and I2: a correction names the record in force of its request, and replaces that record's very split.

    read: returns the bytes of an earlier entry by log index, which are looked at once a correction. Memory grows by the
    requests that were corrected.
    """

    types: ClassVar[frozenset[str] | None] = frozenset({"answer.superseded"})

    def __init__(self, read: Callable[[int], bytes] | None) -> None:
        self._read = read
        self._newest: dict[int, int] = {}  # log index of the usage → of the newest record of its answer

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Compare a correction with the record that it names."""
        entry, amounts = logged.entry, logged.amounts
        assert entry is not None  # noqa: S101 - it has the type asked for
        if amounts is None:
            return
        superseded, usage_index = entry.data.get("supersedes"), entry.data.get("usage_index")
        if type(superseded) is not int or not 0 <= superseded < logged.log_index or type(usage_index) is not int:
            yield "I8", f"it supersedes entry {superseded!r:.40}, which is no earlier one"
            return
        newest = self._newest.get(usage_index)
        self._newest[usage_index] = logged.log_index
        if newest not in {None, superseded}:
            yield "I8", f"it supersedes entry {superseded}, but the record in force was entry {newest}"
        if self._read is None:
            yield "I8", f"there is no way to read entry {superseded}, which it supersedes"
            return
        try:
            replaced = Entry.decode(self._read(superseded))
            replaced_amounts = Amounts.of(replaced)
        except (EntryError, LookupError) as error:
            yield "I8", f"entry {superseded}, which it supersedes, cannot be read: {error}"
            return
        if replaced.type == "answer.attributed" if newest is None else replaced.type in SPLITS:
            yield from self._differences(superseded, entry, amounts, replaced, replaced_amounts)
        else:
            yield "I8", f"it supersedes entry {superseded}, which is no record in force but {replaced.type}"

    def end(self) -> Iterator[Finding]:
        """Nothing is left to say."""
        return iter(())

    @staticmethod
    def _differences(
        superseded: int, entry: Entry, amounts: Amounts, replaced: Entry, replaced_amounts: Amounts
    ) -> Iterator[Fault]:
        for name in ("request_id", "usage_index"):
            if replaced.data.get(name) != entry.data.get(name):
                yield "I8", f"its {name} is not that of entry {superseded}, which it supersedes"
        if entry.data.get("replaced_split") != replaced.data.get("split"):
            yield "I8", f"its replaced_split is not the split of entry {superseded}"
        if amounts.charge_nano != replaced_amounts.charge_nano:
            yield "I2", f"it splits {amounts.charge_nano} nano, but entry {superseded} {replaced_amounts.charge_nano}"


class Ratings:
    """I8: a rating is 1 or −1, and of an answer that was charged. read: as for `Corrections`, once a rating."""

    types: ClassVar[frozenset[str] | None] = frozenset({"feedback.recorded"})

    def __init__(self, read: Callable[[int], bytes] | None) -> None:
        self._read = read

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Look at the usage that a rating names."""
        assert logged.entry is not None  # noqa: S101 - it has the type asked for
        data = logged.entry.data
        rating, usage_index = data.get("rating"), data.get("usage_index")
        if type(rating) is not int or rating not in {1, -1}:
            yield "I8", f"a rating is 1 or -1, not {rating!r:.40}"
        if self._read is None:
            yield "I8", f"there is no way to read entry {usage_index!r:.40}, which it rates"
            return
        if type(usage_index) is not int or not 0 <= usage_index < logged.log_index:
            yield "I8", f"it rates entry {usage_index!r:.40}, which is no earlier one"
            return
        try:
            usage = Entry.decode(self._read(usage_index))
        except (EntryError, LookupError) as error:
            yield "I8", f"entry {usage_index}, which it rates, cannot be read: {error}"
            return
        if (usage.type, usage.data.get("request_id")) != ("usage.recorded", data.get("request_id")):
            yield (
                "I8",
                f"entry {usage_index}, which it rates, is not the usage of request {data.get('request_id')!r:.80}",
            )

    def end(self) -> Iterator[Finding]:
        """Nothing is left to say."""
        return iter(())
