"""Where the gateway's objects are built, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
from fastapi import FastAPI

import attribution
from gateway import answers, errors
from gateway.adapter_store import AdapterStore
from gateway.adapters import Adapter
from gateway.admission import Admission
from gateway.api import answers as answer_routes
from gateway.api import contributors, feedback, models, openai, operations, payouts, responses, transparency
from gateway.api.described import describe
from gateway.api.hot import Application
from gateway.api.responses_requests import ResponsesRequest
from gateway.attributing import Attributor
from gateway.auth import KeyRing
from gateway.catalogue import Catalogue, offered, publish
from gateway.database import Database
from gateway.embeddings import Embeddings
from gateway.engines import Engine, EngineUnavailable
from gateway.fairness import Turns
from gateway.metrics import LedgerState, Metrics
from gateway.pipeline import Pipeline
from gateway.published import Published
from gateway.registry import Registry, RegistryError
from gateway.reload import Reloader
from gateway.routing.fleet import Fleet
from gateway.routing.names import Names, Router, compared
from gateway.routing.replica import OpenEngine
from gateway.settings import Settings
from gateway.shipping import shipping
from gateway.state import Gateway
from gateway.sweeper import Sweeper
from gateway.transactions import Transactions, require_signer
from gateway.witnessing import Witnessing, lag_entries
from ledger_client import Log, Signer, shipped
from metering import Books, Committer, Transaction, open_intents
from retrieval import Embedder, MiniLM, Retriever

log = structlog.get_logger(__name__)

# How often the queue is looked into for what another process put there: an operator's retry, another worker's answer.
ALONE_POLL_S = 30.0
SHARED_POLL_S = 0.5
# One engine, or replicas that make a fleet, by name: each is opened by calling it.
MakeEngine = Callable[[Settings], Engine | Mapping[str, OpenEngine]]
MakeEmbedder = Callable[[Settings], Embedder]


def make_engine(settings: Settings) -> Engine | Mapping[str, OpenEngine]:
    """The engine that the settings name. Reads gigabytes the first time, so not on an event loop."""
    if settings.engine.kind == "vllm":
        return _vllm_servers(settings)
    # These import PyTorch, which a gateway in front of other engines does not have.
    from gateway.engines.embedded import EmbeddedEngine  # noqa: PLC0415
    from gateway.engines.weights import base_model_directory  # noqa: PLC0415

    chosen = settings.engine
    return EmbeddedEngine.open(
        Path(chosen.model) if chosen.model else base_model_directory(),
        base_model=chosen.name,
        context_tokens=chosen.context_tokens,
        dtype=chosen.dtype,
        device=chosen.device,
        threads=chosen.threads,
    )


def _vllm_servers(settings: Settings) -> dict[str, OpenEngine]:
    """The servers by what their addresses say after the scheme: the same in every gateway that shares them."""
    from gateway.engines.vllm import VllmEngine  # noqa: PLC0415 - takes httptools along, which an embedded engine does not
    from gateway.engines.weights import WeightsError, base_model_directory, model_digest  # noqa: PLC0415

    chosen = settings.engine
    if not chosen.servers:
        raise EngineUnavailable('[engine] kind = "vllm" names no servers; `tributary serve` starts one')
    directory, digest = None, chosen.digest
    if digest is None:
        directory = base_model_directory() if chosen.model is None else chosen.folder
        if directory is None:
            raise WeightsError(
                f"engine.model is {chosen.model!r}, no folder here; set engine.digest, the SHA-256 of its weights"
            )
        digest = model_digest(directory)
    api_key = chosen.api_key.get_secret_value() if chosen.api_key else None

    def opening(url: str) -> OpenEngine:
        return lambda: VllmEngine.open(
            url,
            base_model=chosen.name,
            base_digest=digest,
            dtype=chosen.dtype,
            model_directory=directory,
            max_rank=settings.adapters.max_rank,
            api_key=api_key,
            priorities=chosen.priorities,
        )

    return {_replica_name(url): opening(url) for url in chosen.servers}


def _replica_name(url: str) -> str:
    return url.partition("://")[2].rstrip("/")


async def open_one(settings: Settings) -> Engine:
    """The engine that the settings name, or the first of its replicas that answers. Raises EngineUnavailable."""
    made = await asyncio.to_thread(make_engine, settings)
    if not isinstance(made, Mapping):
        return made
    error = EngineUnavailable("there is no server")
    for open_engine in made.values():
        try:
            return await open_engine()
        except EngineUnavailable as unavailable:
            error = unavailable
    raise error


def make_embedder(_settings: Settings) -> Embedder:
    """The embedder that the settings name."""
    return MiniLM()


def make_adapter_store(settings: Settings) -> AdapterStore:
    """The adapters that are kept on this machine."""
    chosen = settings.adapters
    return AdapterStore(
        chosen.directory, sources=chosen.sources, base_model=settings.engine.name, max_rank=chosen.max_rank
    )


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    *,
    engine: MakeEngine = make_engine,
    embedder: MakeEmbedder = make_embedder,
    chores: bool = True,
) -> AsyncIterator[Gateway]:
    """Build every object, recover what a crash left, load the adapters, and take it all down again in order.

    chores: also do what one process does for all on a database: sweep, ship, ask witnesses, and attribute unless
    [attribution] worker is off.
    """
    database = Database(settings.database.url)
    database.require_current_schema()
    with database.claimed_by(settings.server.id):
        async with _opened(settings, database, engine, embedder, chores=chores) as gateway:
            yield gateway


@asynccontextmanager
async def _opened(
    settings: Settings, database: Database, engine: MakeEngine, embedder: MakeEmbedder, *, chores: bool
) -> AsyncIterator[Gateway]:
    signer = Signer.load(settings.log.signing_key_file)
    ledger = Log(signer, settings.quorum)
    books = Books(settings.server.id, lambda: datetime.now(UTC))
    registry = Registry(ledger)
    committer = Committer(database.write, ledger)
    try:
        require_signer(database, ledger, signer, settings.log.origin)
        await asyncio.wrap_future(committer.submit(lambda t: _void_what_a_crash_left(t, books, settings.server.id)))
        catalogue = await asyncio.wrap_future(committer.submit(lambda t: _publish(t, settings, registry, books)))
        embedding = embedder(settings)
        vectors = await asyncio.to_thread(compared, settings, embedding)
        metrics = Metrics(lambda: _ledger_state(database, ledger, running, settings))
        running = await _running(await asyncio.to_thread(engine, settings), settings, metrics)
        load = partial(_load_adapters, running, make_adapter_store(settings), metrics)
        try:
            _drain(running, settings)
            await load(catalogue.adapters)
        except BaseException:
            await running.close()
            raise
        router = Router(Names.of(catalogue, settings, vectors), embedding)
        retriever = Retriever(settings.retrieval.index_file, embedding)
        transactions = Transactions(database, committer, metrics)
        await transactions.read(retriever.sync)
        turns = Turns(
            turns=settings.limits.concurrent,
            per_tenant=settings.limits.concurrent_per_key,
            places=settings.limits.queue,
            wait_s=settings.limits.queue_s,
            on_change=metrics.observe_turns,
        )
        admission = Admission(transactions, books, turns)
        attributor = Attributor(
            transactions=transactions,
            books=books,
            registry=registry,
            engine=running,
            metrics=metrics,
            estimator=attribution.ESTIMATORS[settings.attribution.estimator],
            poll_s=ALONE_POLL_S if settings.server.workers == 1 else SHARED_POLL_S,
        )
        pipeline = Pipeline(
            transactions=transactions,
            admission=admission,
            books=books,
            retriever=retriever,
            engine=running,
            attributor=attributor,
            metrics=metrics,
            limits=settings.limits,
        )
        sweeper = Sweeper(
            transactions=transactions,
            admission=admission,
            books=books,
            metrics=metrics,
            gateway_id=settings.server.id,
            limits=settings.limits,
        )
        witnessing = Witnessing.of(settings, database=database, ledger=ledger, metrics=metrics)
        done_once = [sweeper.run, witnessing.run] if chores else []
        if chores and settings.attribution.worker:
            done_once.append(attributor.work)
        background = [asyncio.create_task(work()) for work in done_once]
        try:
            async with shipping(settings.ledgers if chores else (), ledger, transactions, metrics):
                yield Gateway(
                    settings=settings,
                    transactions=transactions,
                    keys=KeyRing(transactions),
                    signer=signer,
                    log=ledger,
                    books=books,
                    registry=registry,
                    router=router,
                    reloader=Reloader(
                        settings=settings,
                        transactions=transactions,
                        books=books,
                        registry=registry,
                        load=load,
                        embedder=embedding,
                        router=router,
                        drain=partial(_drain, running),
                        metrics=metrics,
                    ),
                    engine=running,
                    metrics=metrics,
                    pipeline=pipeline,
                    attributor=attributor,
                    embeddings=Embeddings(
                        transactions=transactions,
                        admission=admission,
                        books=books,
                        embedder=embedding,
                        metrics=metrics,
                        limits=settings.limits,
                    ),
                )
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await pipeline.close()
            await transactions.close()
            await running.close()
    finally:
        committer.close()
        database.close()


def create_app(
    settings: Settings,
    *,
    engine: MakeEngine = make_engine,
    embedder: MakeEmbedder = make_embedder,
    chores: bool = True,
) -> Application:
    """The ASGI application. It serves once its lifespan has begun. chores: see open_gateway."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_gateway(settings, engine=engine, embedder=embedder, chores=chores) as gateway:
            app.state.gateway = gateway
            app.state.published = Published(
                log=gateway.log, verifier_key=gateway.signer.verifier_key, reads=gateway.transactions
            )
            log.info("ready", models=list(gateway.router.names), log_key=gateway.signer.verifier_key)
            yield

    app = Application(title="Tributary", version="0.1.0", lifespan=lifespan)
    errors.install(app)
    routers = (openai, responses, models, answer_routes, feedback, contributors, payouts, transparency, operations)
    for routes in routers:
        app.include_router(routes.router)
    app.heat(openai.router, responses.router)
    describe(app, ResponsesRequest)
    return app


def _void_what_a_crash_left(transaction: Transaction, books: Books, gateway_id: str) -> None:
    """End every request that an earlier process of this gateway admitted and did not live to charge."""
    for intent in list(open_intents(transaction.connection, gateway_id)):
        books.void(transaction, intent, "the gateway stopped before the answer was metered")


def _publish(transaction: Transaction, settings: Settings, registry: Registry, books: Books) -> Catalogue:
    return publish(transaction, settings, offered(transaction.connection, settings, registry), books)


async def _running(made: Engine | Mapping[str, OpenEngine], settings: Settings, metrics: Metrics) -> Engine:
    if isinstance(made, Mapping):
        return await Fleet.open(made, slots=settings.engine.slots, watch=metrics.fleet)
    return made


def _drain(engine: Engine, settings: Settings) -> None:
    if isinstance(engine, Fleet):
        engine.drain([_replica_name(url) for url in settings.routing.drain])


async def _load_adapters(engine: Engine, store: AdapterStore, metrics: Metrics, adapters: Iterable[Adapter]) -> None:
    """Have the engine take adapters: at once, or a fleet where and when they are first needed, which counts itself."""
    for adapter in adapters:
        if adapter.base_digest not in {None, engine.base_digest}:
            raise RegistryError(
                f"adapter {adapter.reference} was tried on weights of {adapter.base_model} that are not those here, "
                f"sha256 {engine.base_digest}; register it again with `tributary adapter add`"
            )
        await engine.load(await asyncio.to_thread(store.require, adapter.digest, adapter.source))
        if not isinstance(engine, Fleet):
            metrics.adapter_loads.inc()


def _ledger_state(database: Database, ledger: Log, engine: Engine, settings: Settings) -> LedgerState:
    with database.read() as connection:
        size = ledger.size(connection)
        backlog = {
            elsewhere.name: size - shipped(connection, elsewhere.verifier.name) for elsewhere in settings.ledgers
        }
        return LedgerState(
            witness_lag_entries=lag_entries(connection, ledger, settings.witnesses),
            shipping_backlog=backlog,
            log_entries=size,
            open_intents=sum(1 for _ in open_intents(connection)),
            attribution_backlog=answers.backlog(connection),
            adapters_resident=len(engine.resident()),
        )
