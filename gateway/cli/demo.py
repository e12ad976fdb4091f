"""`tributary demo`: the whole product on one machine, from an empty folder to a verified receipt.

Everything goes through what a user would use: the commands of this CLI, a gateway in a process of its own, and HTTP.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.markup import escape

import gateway
from gateway.app import make_embedder
from gateway.auth import create_key
from gateway.cli.adapters import prove, pull, register
from gateway.cli.asking import draw_attribution
from gateway.cli.context import DEFAULT_CONFIG, Office, office, out, say
from gateway.cli.material import ingest_paths
from gateway.cli.server import DEFAULT_ORIGIN, prepare
from gateway.identifiers import new_id
from retrieval import Terms

START_S = 600


class DemoError(RuntimeError):
    """A step of the demo did not hold; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where the demo lives. examples: the material; folder: everything that is made."""

    examples: Path
    folder: Path

    def run(self, *arguments: str) -> Any:
        """Run a command of this CLI and return what its --json printed."""
        done = subprocess.run(  # noqa: S603 - our own command
            [*_command(), *arguments, "--json"], cwd=self.folder, stdout=subprocess.PIPE, check=False
        )
        if done.returncode != 0:
            raise DemoError(f"tributary {' '.join(arguments[:2])} failed with exit code {done.returncode}")
        return json.loads(done.stdout)


def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its books; run again, it goes on there.")] = Path(
        "tributary-demo"
    ),
    examples: Annotated[Path | None, typer.Option(help="The demo's material, the repository's examples/.")] = None,
    questions: Annotated[int, typer.Option(min=1, max=12, help="How many questions to ask.")] = 3,
) -> None:
    """Set up, serve, ask, attribute, pay and verify; stays up on a terminal."""
    material = examples or Path(gateway.__file__).parents[1] / "examples"
    if not (material / "corpora.toml").is_file():
        raise DemoError(f"the demo's material is not in {material}; run it in a checkout, or give --examples")
    site = Site(examples=material.resolve(), folder=folder.resolve())
    _step(f"Setting up in {site.folder}")
    keys = lay_out(site)
    with _serving(site) as url:
        client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {keys['caller']}"}, timeout=600)
        for question in json.loads((site.examples / "questions.json").read_text(encoding="utf-8"))["demo"][:questions]:
            _ask(site, client, question)
        _earnings(site, url, keys)
        _step("Checking the log as an outsider, from what the gateway publishes")
        key = httpx.get(f"{url}/log/key").text.strip()
        _tell_checked(site.run("fsck", "--from-tiles", f"{url}/log", "--key", key))
        _step("Addresses and keys")
        for line in (
            f"gateway          {url}/v1   (any OpenAI client: set base_url to this)",
            f"transparency log {url}/log/checkpoint",
            f"log key          {key}",
            f"metrics          {url}/metrics",
            *(f"{role:<16} {secret}" for role, secret in keys.items()),
        ):
            out.print(f"  {line}", soft_wrap=True, markup=False)
        if sys.stdin.isatty() and sys.stdout.isatty() and not os.environ.get("CI"):
            out.print("\nServing until Ctrl-C. Try, in another terminal:")
            out.print(f"  cd {site.folder}", soft_wrap=True, markup=False)
            out.print(f"  TRIBUTARY_KEY=… {_command()[0]} -m gateway.cli ask 'Who cast the fog bell on North Mole?'")
            _wait_for_interrupt()
    _step("Checking the books")
    _tell_checked(site.run("fsck"))


def _tell_checked(checked: dict[str, Any]) -> None:
    out.print(f"fsck: {'ok' if checked['ok'] else checked['findings']}, {checked['entries']} entries")


def lay_out(site: Site) -> dict[str, str]:
    """Configuration, contributors, documents, adapters and keys; what is there already is left as it is.

    Returns the keys' secrets by role.
    """
    site.folder.mkdir(parents=True, exist_ok=True)
    config = site.folder / DEFAULT_CONFIG
    if not config.exists():
        config.write_text((site.examples / "tributary.toml").read_text(encoding="utf-8"), encoding="utf-8")
    prepare(site.folder, DEFAULT_ORIGIN)
    manifest = tomllib.loads((site.examples / "corpora.toml").read_text(encoding="utf-8"))
    with office(config) as o:
        with o.write() as transaction:
            for contributor in manifest["contributors"]:
                o.registry.add_contributor(transaction, contributor["id"], contributor["name"])
        out.print(f"{len(manifest['contributors'])} contributors")
        _ingest_corpora(o, site, manifest)
        _register_adapters(o, site, manifest)
        return _make_keys(o)


def _ingest_corpora(o: Office, site: Site, manifest: dict[str, Any]) -> None:
    embedder = make_embedder(o.settings)
    for corpus in manifest["corpora"]:
        for holding in corpus["holdings"]:
            terms = Terms(corpus=corpus["name"], owner=holding["owner"], licence=holding["licence"])
            outcomes = ingest_paths(o, embedder, sorted(site.examples.glob(holding["files"])), terms)
            if failed := [outcome for outcome in outcomes if outcome.outcome == "failed"]:
                raise DemoError(f"{failed[0].path}: {failed[0].reason}")
            out.print(f"corpus {terms.corpus}: {len(outcomes)} documents of {terms.owner}, {terms.licence}")


def _register_adapters(o: Office, site: Site, manifest: dict[str, Any]) -> None:
    pulled = [pull(o.settings, str(site.examples / adapter["path"])) for adapter in manifest["adapters"]]
    base_digest = asyncio.run(prove(o.settings, [each.files for each in pulled]))
    for adapter, each in zip(manifest["adapters"], pulled, strict=True):
        added = register(
            o,
            each,
            base_digest=base_digest,
            name=adapter["name"],
            developer=adapter["developer"],
            datasets=tuple((dataset["contributor"], dataset["weight"]) for dataset in adapter["datasets"]),
        )
        out.print(f"adapter {added.reference} of {added.developer}, sha256 {added.digest[:16]}…")


def _make_keys(o: Office) -> dict[str, str]:
    with o.write() as transaction:
        connection = transaction.connection
        caller = create_key(connection, role="caller", name="demo caller")
        o.books.grant_credit(transaction, caller.principal.subject, 1_000_000_000, "demo credit", new_id("grant"))
        owner = create_key(connection, role="contributor", name="demo contributor", contributor="harbour-office")
        operator = create_key(connection, role="operator", name="demo operator")
    return {"caller": caller.secret, "contributor": owner.secret, "operator": operator.secret}


@contextmanager
def _serving(site: Site) -> Iterator[str]:
    """A gateway in a process of its own, with its log in the folder; yields its address."""
    _step("Starting the gateway")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = site.folder / "gateway.log"
    with log.open("ab") as stream:
        server = subprocess.Popen(  # noqa: S603 - our own command
            [*_command(), "serve", "--port", str(port)],
            cwd=site.folder,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is for the demo, which then stops the gateway in order
        )
    try:
        deadline_s = time.monotonic() + START_S
        while not _is_ready(url):
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise DemoError(f"the gateway did not start; its log is {log}")
            time.sleep(0.25)
        say(f"{url}, log in {log}")
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def _ask(site: Site, client: httpx.Client, question: dict[str, Any]) -> None:
    """One question: the answer, its attribution, its amounts, and its receipt verified from a file."""
    _step(f"Q: {question['question']}")
    body = {
        "model": "guide",
        "messages": [{"role": "user", "content": question["question"]}],
        "temperature": 0,
        "max_tokens": 40,
        "attribution": {"mode": "inline"},
    }
    response = client.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        raise DemoError(f"the gateway answered {response.status_code}: {response.text}")
    answer = response.json()
    attribution = answer["attribution"]
    out.print(f"A: {answer['choices'][0]['message']['content']}\n", markup=False)
    draw_attribution(attribution)
    total = sum(int(line["amount_nano"]) for line in attribution["split"])
    if str(total) != attribution["charge_nano"]:
        raise DemoError(f"the split sums to {total}, the charge is {attribution['charge_nano']}")
    out.print(f"amounts sum to the charge: {total} = {attribution['charge_nano']} nano-USD")
    receipt = site.folder / f"{attribution['id']}.tlog-proof"
    receipt.write_text(client.get(f"/v1/receipts/{attribution['id']}").text, encoding="utf-8")
    verified = site.run("verify", str(receipt))
    out.print(f"receipt verified: {receipt.name}, {len(verified['steps'])} steps, log index {verified['index']}")


def _earnings(site: Site, url: str, keys: dict[str, str]) -> None:
    """Earnings of every contributor, the same from the books and over HTTP."""
    _step("Earnings by contributor, nano-USD")
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {keys['operator']}"}) as client:
        for contributor in site.run("contributor", "list"):
            earned = site.run("earnings", contributor["id"])["total_nano"]
            over_http = client.get(f"/v1/contributors/{contributor['id']}/earnings").json()["total_nano"]
            if not earned == over_http == contributor["balance_nano"]:
                raise DemoError(f"{contributor['id']}: {earned} in the books, {over_http} over HTTP")
            out.print(f"  {int(earned):>12}  {contributor['name']}", markup=False)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _wait_for_interrupt() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        out.print("stopping")


def _command() -> list[str]:
    return [sys.executable, "-m", "gateway.cli"]


def _step(title: str) -> None:
    out.print(f"\n[bold]── {escape(title)}[/bold]")
