"""What runs in the processes that are killed: a committer under load, and a whole gateway.

They are forked off a server that has everything imported, so that a run takes milliseconds to start.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from gateway.app import create_app
from gateway.cli.server import bind, run
from gateway.database import Database
from gateway.settings import load
from metering import CommitError, Committer
from tests.fakes import FakeEngine
from tests.metering.kit import Clock, new_books
from tests.retrieval.kit import HashingEmbedder

from .load import LOG, Caller, fund, recover

READY = b"ready\n"


@cache
def forks() -> ForkServerContext:
    """The server that processes are forked off, started when the first is."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def commit(url: str, gateway_id: str, seed: int, told: Connection) -> None:
    """Recover what an earlier process left, then keep the ledger busy until killed or until the database is gone.

    told: where each acknowledgement is written, a line each, READY first.
    """
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # that connections break is the point here
    lots = Random(seed)  # noqa: S311 - lots, and no secrets
    books = new_books(gateway_id, Clock())
    gone = threading.Event()
    database = Database(url)

    def step(committer: Committer, caller: Caller) -> None:
        wanted = caller.next()
        with suppress(RuntimeError):  # the committer is closing
            committer.submit(wanted.work, wanted.expected).add_done_callback(partial(done, committer, caller))

    def done(committer: Committer, caller: Caller, future: Future[Any]) -> None:
        if future.exception() is not None:
            gone.set()
            return
        os.write(told.fileno(), f"{caller.done(future.result())}\n".encode())
        step(committer, caller)

    with (
        suppress(CommitError, SQLAlchemyError),
        database.claimed_by(gateway_id),
        Committer(database.write, LOG, max_batch=lots.choice((1, 4, 256))) as committer,
    ):
        committer.submit(lambda tx: recover(books, tx, gateway_id)).result()
        os.write(told.fileno(), f"{committer.submit(lambda tx: fund(books, tx)).result()}\n".encode())
        os.write(told.fileno(), READY)
        for _ in range(lots.randint(1, 16)):
            step(committer, Caller(books, lots))
        gone.wait()


def serve(config: Path, port: int) -> None:
    """Run a gateway with an engine that needs no model, until killed."""
    os.chdir(config.parent)
    settings = load(config)
    engine = FakeEngine(text="The bell was cast by Petra.", delay_s=0.001)
    app = create_app(settings, engine=lambda _: engine, embedder=lambda _: HashingEmbedder())
    with bind("127.0.0.1", port) as listener:
        asyncio.run(run(app, listener))
