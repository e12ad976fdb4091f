"""A changed configuration taken up while the gateway runs.

What can change so are the models, their prices and policies, the aliases, what `auto` goes by, and which servers get no
work. Everything that can go wrong is tried first; then one assignment puts the new names into force. What is being
answered keeps the served model that it was resolved to, and with it its price, policy and adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from gateway.adapter_sources import SourceError
from gateway.adapters import Adapter
from gateway.catalogue import offered, publish
from gateway.engines import EngineError
from gateway.metrics import Metrics
from gateway.registry import Registry, RegistryError
from gateway.routing.names import Names, Router, compared
from gateway.settings import Settings, SettingsError
from gateway.transactions import DatabaseUnavailableError, Transactions
from metering import Books, CommitError
from retrieval import Embedder, EmbedderError

EXPECTED = (
    SettingsError,
    RegistryError,
    SourceError,
    EngineError,
    EmbedderError,
    CommitError,
    DatabaseUnavailableError,
    OSError,
)
log = structlog.get_logger(__name__)


class Reloader:
    """Keeps the settings in force, and replaces what of them may change.

    load: has the engine take adapters, which it may hold already; raises RegistryError or an EngineError. drain: has it
    give no new work to the servers that the settings say, and raises nothing.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        transactions: Transactions,
        books: Books,
        registry: Registry,
        load: Callable[[Iterable[Adapter]], Awaitable[None]],
        embedder: Embedder,
        router: Router,
        drain: Callable[[Settings], None],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._transactions = transactions
        self._books = books
        self._registry = registry
        self._load = load
        self._embedder = embedder
        self._router = router
        self._drain = drain
        self._metrics = metrics
        self._loaded = {adapter.digest for adapter in router.names.catalogue.adapters}
        self._one_at_a_time = asyncio.Lock()
        metrics.observe_reload(taken=True)

    async def reload(self, read: Callable[[], Settings]) -> bool:
        """Take up the settings that `read` finds; whether they were taken. What is wrong is logged, and not raised."""
        async with self._one_at_a_time:
            try:
                newer = await asyncio.to_thread(read)
                settings = self._settings.reloaded(newer)
                names = await self._prepare(settings)
            except Exception as error:
                self._refuse(error)
                return False
            if ignored := self._settings.differing_for_good(newer):
                log.warning("reload_needs_a_restart", keys=ignored)
            self._router.names = names
            self._drain(settings)
            self._settings = settings
            self._metrics.observe_reload(taken=True)
            log.info("reloaded", models=list(names))
            return True

    def _refuse(self, error: Exception) -> None:
        """What was in force stays. An error that a person can mend is told in its words alone."""
        log.error("reload_refused", error=str(error), exc_info=None if isinstance(error, EXPECTED) else error)
        self._metrics.observe_reload(taken=False)

    async def _prepare(self, settings: Settings) -> Names:
        """All that the new names need. The log comes last: it keeps no price that never came into force."""
        adapters = await self._transactions.read(lambda c: offered(c, settings, self._registry))
        fresh = [adapter for adapter in adapters.values() if adapter.digest not in self._loaded]
        await self._load(fresh)
        self._loaded |= {adapter.digest for adapter in fresh}
        vectors = await asyncio.to_thread(compared, settings, self._embedder)
        catalogue = await self._transactions.commit(
            "configuration", lambda t: publish(t, settings, adapters, self._books)
        )
        return Names.of(catalogue, settings, vectors)
