"""What a fleet tells whoever counts. Every label is a replica's name or one of a few words."""

from __future__ import annotations

from typing import Protocol

from gateway.routing.breaker import State
from gateway.routing.placement import Reason


class Watch(Protocol):
    """Counts and gauges of a fleet."""

    def routed(self, replica: str, reason: Reason) -> None:
        """A request goes to the replica."""

    def loaded(self, replica: str, seconds: float) -> None:
        """An adapter was loaded onto the replica."""

    def evicted(self, replica: str) -> None:
        """An adapter makes room for another on the replica."""

    def retried(self, replica: str) -> None:
        """The replica failed a request, which is tried again."""

    def stands(self, replica: str, *, takes_work: bool, breaker: State) -> None:
        """How the replica stands, as it was just seen."""


class Unwatched:
    """Counts nothing."""

    def routed(self, replica: str, reason: Reason) -> None:
        """See Watch."""

    def loaded(self, replica: str, seconds: float) -> None:
        """See Watch."""

    def evicted(self, replica: str) -> None:
        """See Watch."""

    def retried(self, replica: str) -> None:
        """See Watch."""

    def stands(self, replica: str, *, takes_work: bool, breaker: State) -> None:
        """See Watch."""
