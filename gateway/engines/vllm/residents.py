"""Which adapters a server holds for this gateway, and who is being answered by them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from gateway.engines.adapters import AdapterFiles
from gateway.engines.base import AdapterNotLoaded


class Residents:
    """A table of our own, because the server does not tell which adapters fill its slots."""

    def __init__(self) -> None:
        self._files: dict[str, AdapterFiles] = {}
        self._uses: Counter[str] = Counter()
        self._waiting: dict[str, asyncio.Event] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def names(self) -> frozenset[str]:
        """Names of the adapters that take work."""
        return frozenset(self._files)

    def changing(self, name: str) -> asyncio.Lock:
        """Held by whoever loads or unloads an adapter of this name."""
        return self._locks.setdefault(name, asyncio.Lock())

    def add(self, adapter: AdapterFiles) -> None:
        """Let an adapter take work."""
        self._files[adapter.name] = adapter

    def remove(self, name: str) -> None:
        """Refuse new work for an adapter; nothing happens where it takes none."""
        self._files.pop(name, None)

    @contextmanager
    def used(self, name: str) -> Iterator[None]:
        """Hold an adapter while it works; raises AdapterNotLoaded."""
        if name not in self._files:
            raise AdapterNotLoaded(name)
        self._uses[name] += 1
        try:
            yield
        finally:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name]
                if waiting := self._waiting.pop(name, None):
                    waiting.set()

    async def idle(self, name: str) -> None:
        """Wait until nobody uses an adapter."""
        if self._uses[name]:
            await self._waiting.setdefault(name, asyncio.Event()).wait()
