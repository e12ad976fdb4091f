"""Setting a gateway up and running it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from gateway.app import create_app
from gateway.cli.context import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json
from gateway.database import Database
from gateway.observe import configure_logging
from gateway.settings import load
from ledger_client import Signer

SHUTDOWN_S = 30
DEFAULT_ORIGIN = "tributary.local/log"

configuration = typer.Typer(no_args_is_help=True, help="The configuration file.")


def init(
    folder: Annotated[Path, typer.Argument(help="Where the configuration, key and database go.")] = Path(),
    origin: Annotated[str, typer.Option(help="The transparency log's name.")] = DEFAULT_ORIGIN,
) -> None:
    """Write a commented configuration, make the log's signing key, create the database. Overwrites nothing."""
    prepare(folder, origin)
    out.print("next: `tributary key create --role caller --name me --credit 5`, then `tributary serve`")


def prepare(folder: Path, origin: str) -> None:
    """Do what `init` does, saying what was done."""
    config = folder / DEFAULT_CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    if not config.exists():
        template = resources.files("gateway").joinpath("tributary.toml").read_text(encoding="utf-8")
        config.write_text(template.replace(DEFAULT_ORIGIN, origin), encoding="utf-8")
        out.print(f"wrote {config}")
    settings = load(config)
    if not settings.log.signing_key_file.exists():
        Signer.generate(settings.log.origin).save(settings.log.signing_key_file)
        out.print(f"made the signing key {settings.log.signing_key_file}")
    _migrate(config)
    out.print(f"log key: {Signer.load(settings.log.signing_key_file).verifier_key}")


def migrate(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Bring the database's schema to this version's."""
    _migrate(config)


def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    host: Annotated[str | None, typer.Option(help="Overrides [server] host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Overrides [server] port.")] = None,
) -> None:
    """Run the gateway until it is told to stop; then finish and meter what is being answered."""
    settings = load(config)
    configure_logging()
    uvicorn.run(
        create_app(settings),
        host=host or settings.server.host,
        port=settings.server.port if port is None else port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


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
        out.print(f"{model.name}: {model.base}{adapter}{corpora}, policy {model.policy}, {price}")
    out.print(f"{config}: ok")


def _migrate(config: Path) -> None:
    database = Database(load(config).database.url)
    try:
        database.migrate()
    finally:
        database.close()
    out.print("the database's schema is current")
