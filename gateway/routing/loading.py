"""Adapters onto replicas: each load once however many wait for it, and none again that was rejected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from gateway.engines import AdapterFiles, AdapterNotLoaded, AdapterRejected, EngineError
from gateway.routing.replica import Replica
from gateway.routing.residency import Residency
from gateway.routing.tries import UnknownAdapter
from gateway.routing.watch import Watch

log = structlog.get_logger(__name__)


class Loader:
    """Knows the adapters, and carries out what the table of residency says.

    quarantine_s: how long an adapter that was rejected is not tried again; its files may be put right meanwhile.
    changed: called after each load, for a slot may have become free.
    """

    def __init__(
        self,
        table: Residency,
        *,
        quarantine_s: float,
        clock: Callable[[], float],
        watch: Watch,
        changed: Callable[[], None],
    ) -> None:
        self._table = table
        self._quarantine_s = quarantine_s
        self._clock = clock
        self._watch = watch
        self._changed = changed
        self._known: dict[str, AdapterFiles] = {}
        self._rejected: dict[str, float] = {}  # adapter → until when it is left alone
        self._loading: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._unloading: dict[tuple[str, str], asyncio.Event] = {}  # from the decision on; set when it is done

    def know(self, files: AdapterFiles) -> None:
        """Let an adapter be asked for; one that was rejected gets another chance."""
        self._known[files.name] = files
        self._rejected.pop(files.name, None)

    def require(self, adapter: str) -> None:
        """Raise UnknownAdapter for an adapter that nobody made known, AdapterRejected for one in quarantine."""
        if adapter not in self._known:
            raise UnknownAdapter(adapter)
        if adapter in self._rejected and self._clock() < self._rejected[adapter]:
            raise _rejected(adapter)

    def start(self, replica: Replica, adapter: str) -> None:
        """See that the adapter is loaded on the replica, or begins to be. Raises NoRoomError."""
        key = replica.name, adapter
        if self._table.loaded(*key) or key in self._loading:
            return
        evicted = self._table.admit(*key)
        gone = self._unloading.get(key)
        for name in evicted:
            self._unloading[replica.name, name] = asyncio.Event()
        task = self._loading[key] = asyncio.create_task(self._load(replica, adapter, evicted, gone))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # a copy's failure is nobody's

    async def load(self, replica: Replica, adapter: str) -> int:
        """See that it is loaded; returns the number of the load. Raises what kept it from being loaded."""
        self.start(replica, adapter)
        if task := self._loading.get((replica.name, adapter)):
            await asyncio.shield(task)
        return self._table.loaded(replica.name, adapter)

    def reconcile(self, replica: Replica) -> None:
        """Believe what the replica says that it holds, but for what is being taken out; others' adapters are theirs."""
        said = replica.engine.resident()
        ours = (a for a in said if a in self._known and (replica.name, a) not in self._unloading)
        self._table.reconcile(replica.name, frozenset(ours))

    async def forget(self, replicas: list[Replica], adapter: str) -> None:
        """Take the adapter out wherever it is, once nothing runs on it. Nobody may ask for it any more."""
        for replica in replicas:
            if task := self._loading.get((replica.name, adapter)):
                await asyncio.wait([task])
            if replica.opened and self._table.loaded(replica.name, adapter):
                with suppress(EngineError):
                    await self._unload(replica, adapter)
        self._table.forget(adapter)

    def unknow(self, adapter: str) -> None:
        """Let nobody ask for the adapter from now on. Raises UnknownAdapter if nobody could."""
        if self._known.pop(adapter, None) is None:
            raise UnknownAdapter(adapter)
        self._rejected.pop(adapter, None)

    async def close(self) -> None:
        """Give up the loads under way."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, replica: Replica, adapter: str, evicted: list[str], gone: asyncio.Event | None) -> None:
        """Unload what was evicted, then load. gone: set when an earlier eviction of the same adapter is done."""
        started_s = self._clock()
        try:
            while evicted:
                self._watch.evicted(replica.name)
                await self._unload(replica, evicted[-1])
                self._unloading.pop((replica.name, evicted.pop())).set()
            if gone is not None:
                await gone.wait()
            await replica.engine.load(self._known[adapter])
            self._table.load_ended(replica.name, adapter)
            self._watch.loaded(replica.name, self._clock() - started_s)
        except AdapterRejected as error:
            log.warning("adapter_rejected", adapter=adapter, replica=replica.name, reason=error.reason)
            self._rejected[adapter] = self._clock() + self._quarantine_s
            raise _rejected(adapter) from error
        finally:
            for name in evicted:
                self._unloading.pop((replica.name, name)).set()
            self._table.drop(replica.name, adapter)  # unless the load has ended
            del self._loading[replica.name, adapter]
            self._changed()

    async def _unload(self, replica: Replica, adapter: str) -> None:
        with suppress(AdapterNotLoaded):
            await replica.engine.unload(adapter)


def _rejected(adapter: str) -> AdapterRejected:
    """What callers are told: not why, which may speak of the operator's folders."""
    return AdapterRejected(f"the engine rejects adapter {adapter}; the gateway's log says why")
