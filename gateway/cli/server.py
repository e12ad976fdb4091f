"""Setting a gateway up and running it."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette

from gateway.app import create_app
from gateway.cli.context import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json, say
from gateway.cli.engine_server import override_engine, servers_running
from gateway.cli.workers import Lifeline, run_workers, worker_settings
from gateway.database import Database, DatabaseError
from gateway.observe import configure_logging
from gateway.settings import AUTO, EngineKind, LogSection, Settings, load
from ledger_client import Log, Signer

log = structlog.get_logger(__name__)

SHUTDOWN_S = 30
DEFAULT_ORIGIN = "tributary.local/log"

configuration = typer.Typer(no_args_is_help=True, help="The configuration file.")


class ListenError(OSError):
    """The address cannot be listened on."""


def init(
    folder: Annotated[Path, typer.Argument(help="Where the configuration, key and database go.")] = Path(),
    origin: Annotated[str, typer.Option(help="The transparency log's name.")] = DEFAULT_ORIGIN,
) -> None:
    """Write a commented configuration, make the log's signing key, create the database. Overwrites nothing."""
    try:
        LogSection(origin=origin)
    except ValidationError:
        raise typer.BadParameter(
            f"{origin!r} is not 1 to 255 characters without spaces and plus signs", param_hint="--origin"
        ) from None
    prepare(folder, origin)
    out.print("next: `tributary key create --role caller --name me --credit 5`, then `tributary serve`")


def prepare(folder: Path, origin: str) -> None:
    """Do what `init` does, saying what was done."""
    config = folder / DEFAULT_CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    if not config.exists():
        template = resources.files("gateway").joinpath("tributary.toml").read_text(encoding="utf-8")
        config.write_text(
            template.replace(json.dumps(DEFAULT_ORIGIN), json.dumps(origin, ensure_ascii=False)), encoding="utf-8"
        )
        say(f"wrote {config}")
    settings = load(config)
    _migrate(config)
    if not settings.log.signing_key_file.exists():
        database = Database(settings.database.url)
        try:
            make_key(settings.log.signing_key_file, settings.log.origin, database)
        finally:
            database.close()
        say(f"made the signing key {settings.log.signing_key_file}")
    say(f"log key: {Signer.load(settings.log.signing_key_file).verifier_key}")


def migrate(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Bring the database's schema to this version's."""
    _migrate(config)


def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    host: Annotated[str | None, typer.Option(help="Overrides [server] host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Overrides [server] port.")] = None,
    engine: Annotated[EngineKind | None, typer.Option(help="Overrides [engine] kind.")] = None,
    model: Annotated[str | None, typer.Option(help="Overrides [engine] model: a folder, or a name.")] = None,
) -> None:
    """Run the gateway until it is told to stop; then finish and meter what is being answered.

    With vLLM as its engine and no servers to use, it starts one, and starts it again when it dies.
    """
    override_engine(kind=engine, model=str(Path(model).resolve()) if model and Path(model).is_dir() else model)
    settings = load(config)
    with bind(host or settings.server.host, settings.server.port if port is None else port) as listener:
        configure_logging()
        drop_stalled(listener, settings.limits.stall_s)
        _run(_serve(config, settings, listener))


async def _serve(config: Path, settings: Settings, listener: socket.socket) -> None:
    async with servers_running(settings):
        settings = load(config)
        if settings.server.workers == 1:
            await run(create_app(settings), listener, read=partial(load, config))
        else:
            await run_workers(settings, config, listener)


def serve_worker(
    number: Annotated[int, typer.Argument(help="From 0.")],
    listener: Annotated[int, typer.Argument(help="Descriptor of the listening socket.")],
    lifeline: Annotated[int, typer.Argument(help="Descriptor of the line to the parent.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Be one of the workers of `serve`, which starts them; not for people."""

    def read() -> Settings:
        return worker_settings(load(config), number)

    settings = read()
    configure_logging()
    structlog.contextvars.bind_contextvars(worker=number + 1)
    with socket.socket(fileno=listener) as shared:
        app = create_app(settings, chores=number == 0)
        _run(run(app, shared, Lifeline(lifeline), read))


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed; it has no Windows."""
    factory = None if find_spec("uvloop") is None else import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def _leave_alone_what_is_there() -> None:
    """Have the garbage collector look at what requests make, and seldom.

    What start-up made stays as long as the process, and a request leaves no cycles behind unless it fails: left as it
    is, the collector takes a twentieth of all processor time to find nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


class _Server(uvicorn.Server):
    """uvicorn's server, stopped by `handle_exit` alone.

    By itself it would send itself a signal once more when it has stopped, before the gateway has closed its books.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(
    app: Starlette,
    listener: socket.socket,
    lifeline: Lifeline | None = None,
    read: Callable[[], Settings] | None = None,
) -> None:
    """Open the app, serve until a signal, close it. What keeps it from opening is raised; uvicorn would log it.

    lifeline: of a worker, whose parent listens already. read: of a gateway, its settings as they are by then, which it
    takes up on SIGHUP.
    """
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=SHUTDOWN_S
    )
    server = _Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    hung_up = asyncio.Event()
    if read is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
    async with app.router.lifespan_context(app), _reloading(app, hung_up, read):
        _leave_alone_what_is_there()
        if lifeline is not None:
            lifeline.serving(lambda: server.handle_exit(signal.SIGTERM, None))
            await server.serve(sockets=[listener])
            return
        listener.listen(config.backlog)
        host, port = listener.getsockname()[:2]
        log.info("listening", url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        await server.serve(sockets=[listener])


@asynccontextmanager
async def _reloading(
    app: Starlette, hung_up: asyncio.Event, read: Callable[[], Settings] | None
) -> AsyncIterator[None]:
    """Take the settings up whenever the event is set, as it may have been before. An unfinished one is given up."""

    async def work() -> None:
        while True:
            await hung_up.wait()
            hung_up.clear()
            if read is not None:
                await app.state.gateway.reloader.reload(read)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def bind(host: str, port: int) -> socket.socket:
    """A socket with its address, which does not listen yet. Raises ListenError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart waits for old connections
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def drop_stalled(listener: socket.socket, stall_s: float) -> None:
    """Let the kernel end the listener's connections whose client takes nothing of what was sent for stall_s.

    A connection that is closed with bytes still unsent would otherwise last for as long as its client likes.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s * 1000))


@configuration.command("check")
def check(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Read the configuration as `serve` would, and say what it comes to."""
    settings = load(config)
    if as_json:
        print_json(settings.model_dump(mode="json"))
        return
    for model in settings.models:
        adapter = f" + {model.adapter}" if model.adapter else ""
        corpora = f", corpora {', '.join(model.corpora)}" if model.corpora else ""
        price = f"{model.price.prompt}/{model.price.completion} USD a million tokens"
        say(f"{model.name}: {model.base}{adapter}{corpora}, policy {model.policy}, {price}")
    for alias in settings.aliases:
        say(f"{alias.name}: {', '.join(f'{target.model} × {target.weight}' for target in alias.targets)}")
    if settings.routing.auto_fallback:
        among = ", ".join(model.name for model in settings.models if model.auto) or "no model"
        say(f"{AUTO}: among {among}, else {settings.routing.auto_fallback}")
    say(f"{config}: ok")


def make_key(key_file: Path, origin: str, database: Database) -> Signer:
    """Make a log's signing key, unless the database holds a log that another key has signed."""
    signer = Signer.generate(origin)
    with database.read() as connection:
        entries = Log(signer).size(connection)
    if entries:
        raise DatabaseError(
            f"the database holds a log of {entries} entries that another key signed; put back {key_file}"
        )
    signer.save(key_file)
    return signer


def _migrate(config: Path) -> None:
    database = Database(load(config).database.url)
    try:
        database.migrate()
    finally:
        database.close()
    out.print("the database's schema is current")
