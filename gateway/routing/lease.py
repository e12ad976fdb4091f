"""One request's place at one replica: counted from the moment of the choice, given back whatever becomes of it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from gateway.engines import AdapterNotLoaded, Engine, EngineError, EngineUnavailable
from gateway.routing.loading import Loader
from gateway.routing.replica import Replica
from gateway.routing.residency import Residency


class Lease:
    """Made at once when a replica was chosen, with nothing awaited between, and held while the request runs.

    How it ends is told to the replica's breaker, and, where the replica does not have the adapter, to the table.
    """

    def __init__(self, replica: Replica, adapter: str | None, *, table: Residency, loader: Loader) -> None:
        self.replica = replica
        self._adapter = adapter
        self._table = table
        self._loader = loader
        self._load = 0
        self._admitted = replica.breaker.admit()
        replica.in_flight += 1
        if adapter is not None:
            table.begin(replica.name, adapter)

    def __enter__(self) -> Self:
        return self

    async def engine(self) -> Engine:
        """The replica's engine, with the adapter loaded. Raises what kept it from being loaded."""
        if self._adapter is not None:
            self._load = await self._loader.load(self.replica, self._adapter)
        return self.replica.engine

    def began(self) -> None:
        """An answer has begun."""
        self.replica.breaker.began(self._admitted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name, breaker = self.replica.name, self.replica.breaker
        self.replica.in_flight -= 1
        if self._adapter is not None:
            self._table.end(name, self._adapter)
        if isinstance(error, EngineUnavailable | TimeoutError):
            breaker.failed(self._admitted)
        elif error is None or isinstance(error, EngineError):  # whoever refuses is well
            breaker.succeeded(self._admitted)
        else:
            breaker.abandoned(self._admitted)
        if isinstance(error, AdapterNotLoaded) and self._adapter is not None and self._load:
            self._table.drop(name, self._adapter, self._load)  # unless it was loaded again meanwhile
