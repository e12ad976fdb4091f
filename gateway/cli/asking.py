"""Asking a running gateway, as any client would."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import orjson
import typer
from rich.table import Table
from rich.text import Text

from gateway.cli.context import DEFAULT_CONFIG, ConfigOption, JsonOption, out, print_json, say
from gateway.settings import load


class RefusedError(RuntimeError):
    """The gateway did not answer; the message is its own."""


def ask(
    question: str,
    *,
    model: Annotated[str | None, typer.Option(help="A served model; absent, the first for chat.")] = None,
    corpus: Annotated[list[str] | None, typer.Option(help="Search only this corpus; may be repeated.")] = None,
    key: Annotated[str, typer.Option(envvar="TRIBUTARY_KEY", help="A caller's key.")] = "",
    url: Annotated[str | None, typer.Option(envvar="TRIBUTARY_URL", help="Where the gateway is.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait for the gateway to become ready.")] = 0,
    receipt: Annotated[Path | None, typer.Option(help="Keep the answer's receipt in this file.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Ask a running gateway, stream the answer, then draw its attribution."""
    if url is None:
        server = load(config).server
        url = f"http://{server.host}:{server.port}"
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=600) as client:
        _wait_until_ready(client, wait)
        body = {
            "model": model or _first_for_chat(_get(client, "/v1/models").json()["data"]),
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": True,
            "attribution": {"mode": "inline"},
            **({"corpora": corpus} if corpus else {}),
        }
        text, attribution = _stream(client, body, show=(lambda _: None) if as_json else _print_piece)
        if receipt is not None:
            receipt.write_text(_get(client, f"/v1/receipts/{attribution['id']}").text, encoding="utf-8")
    if as_json:
        print_json({"answer": text, "attribution": attribution})
    else:
        out.print("\n")
        draw_attribution(attribution)


def draw_attribution(found: dict[str, Any]) -> None:
    """Print an attribution object for a person."""
    charged = f" {found['status']}, charged {found['charge_nano']} nano-USD"
    out.print(Text.assemble((found["id"], "bold"), charged))
    if found["status"] in ("pending", "failed"):
        say(found.get("reason", "the attribution is not worked out yet"))
        return
    players = Table(box=None, pad_edge=False)
    for heading in ("player", "contributor", "nats", "share"):
        players.add_column(heading, justify="right" if heading in ("nats", "share") else "left")
    for player in sorted(found["players"], key=lambda player: -player["share_ppm"]):
        share = f"{player['share_ppm'] / 10_000:.1f} %"
        nats = f"{round(player['score_nats'], 2) + 0.0:.2f}"  # + 0.0 turns -0.0 into 0.0
        players.add_row(Text(f"{player['kind']} {player['title']}"), Text(player["contributor"]), nats, share)
    out.print(players)
    if found["reason"]:
        say(f"no contributor is paid: {found['reason']}")
    split = Table(box=None, pad_edge=False)
    split.add_column("account")
    split.add_column("role")
    split.add_column("nano-USD", justify="right")
    for line in found["split"]:
        split.add_row(Text(line["account"]), line["role"], line["amount_nano"])
    split.add_row("", "sum", str(sum(int(line["amount_nano"]) for line in found["split"])))
    out.print(split)
    out.print(f"log index {found['log_index']}")


def _first_for_chat(models: list[dict[str, Any]]) -> str:
    """The id of the first model that chats; one of no stated kind is taken to."""
    for model in models:
        if model.get("kind", "chat") == "chat":
            return str(model["id"])
    raise RefusedError("the gateway serves no model for chat")


def _stream(client: httpx.Client, body: dict[str, Any], show: Callable[[str], None]) -> tuple[str, dict[str, Any]]:
    """Read a streamed answer to its end; returns its text and its attribution object."""
    pieces: list[str] = []
    attribution: dict[str, Any] = {}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        _check(response)
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = orjson.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RefusedError(chunk["error"]["message"])
            pieces.append(chunk["choices"][0]["delta"].get("content", ""))
            show(pieces[-1])
            attribution = chunk.get("attribution", attribution)
    return "".join(pieces), attribution


def _print_piece(piece: str) -> None:
    out.print(piece, end="", markup=False, soft_wrap=True)


def _get(client: httpx.Client, path: str) -> httpx.Response:
    response = client.get(path)
    _check(response)
    return response


def _check(response: httpx.Response) -> None:
    if response.status_code != 200:
        response.read()
        raise RefusedError(f"the gateway answered {response.status_code}: {response.json()['error']['message']}")


def _wait_until_ready(client: httpx.Client, wait_s: int) -> None:
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s:
        with suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.5)
