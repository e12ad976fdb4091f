"""Clients that leave, engines that fail and engines that are killed: then the log is held against what clients saw."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway.client import Asking, Client, Reply
from benchmarks.gateway.ours import Gateway
from benchmarks.gateway.processes import running
from benchmarks.gateway.reconcile import Reconciled, Seen, logged, reconcile, still_open
from benchmarks.gateway.upstream import Upstream
from gateway.cli.context import office

REQUESTS = 10_000
CONNECTIONS = 32
KILLS = 2
LEAVING = 0.1
_FAIL_RATE = 0.05
_DOWN_S = 0.5
_MOST_BYTES = 12_000  # of what a client reads before it leaves; a stream of 64 chunks is longer
_NAME = "x-tributary-request-id"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What so many requests under fire came to. findings: what `tributary fsck` found wrong."""

    reconciled: Reconciled
    kills: int
    left: int
    open_intents: int
    findings: tuple[str, ...]

    @property
    def unlogged_answers(self) -> int:
        """Complete answers without an entry of their own."""
        return self.reconciled.unlogged

    def lines(self) -> Iterator[str]:
        """The counts, for people."""
        for name, count in asdict(self.reconciled).items():
            yield f"{name:>14}{count:10,}"
        yield f"{'clients left':>14}{self.left:10,}"
        yield f"{'engine kills':>14}{self.kills:10,}"
        yield f"{'still open':>14}{self.open_intents:10,}"
        yield f"{'fsck findings':>14}{len(self.findings):10,}"
        yield from self.findings[:5]


def measure(
    folder: Path,
    *,
    requests: int,
    cores: tuple[Sequence[int], Sequence[int]],
    database: str | None = None,
    seed: int = 1,
) -> Faults:
    """Put a gateway before two engines that fail, fire at all three, and reconcile. cores: its own, and the others."""
    own, others = cores
    failing = ["--fail-rate", str(_FAIL_RATE), "--delay-ms", "5", "--chunk-ms", "1"]
    engines = [Upstream(folder, *failing, "--seed", str(seed + place), cores=others) for place in range(2)]
    try:
        gateway = Gateway(folder / "faults", [engine.url for engine in engines], database=database, cores=own)
        with running(gateway.serve()):
            seen, left = asyncio.run(_under_fire(gateway.asking(), engines, requests, random.Random(seed)))  # noqa: S311
            gateway.drain()
        with office(gateway.config) as opened:
            reconciled = reconcile(seen, logged(opened))
            open_intents = still_open(opened)
        return Faults(reconciled=reconciled, kills=KILLS, left=left, open_intents=open_intents, findings=_fsck(gateway))
    finally:
        for engine in engines:
            engine.server.stop()


async def _under_fire(
    asking: Asking, engines: Sequence[Upstream], requests: int, dice: random.Random
) -> tuple[list[Seen], int]:
    """Send so many requests while engines die and come back; returns what each came to, and how many clients left."""
    numbers = iter(range(requests))
    seen: list[Seen] = []
    left = 0

    async def ask_again_and_again() -> None:
        nonlocal left
        client = Client(asking.url)
        for number in numbers:
            leave_after = dice.randrange(_MOST_BYTES) if dice.random() < LEAVING else None
            if leave_after is not None and dice.random() < 0.2:
                leave_after = 0
            left += leave_after is not None
            request = asking.request(number, stream=number % 2 == 1)
            try:
                seen.append(as_seen(await client.send(request, leave_after_bytes=leave_after)))
            except OSError:  # nobody listens
                seen.append(Seen(request_id=None, complete=False))
        client.close()

    async def kill_now_and_then() -> None:
        for turn in range(KILLS):
            while len(seen) < requests * (turn + 1) // (KILLS + 1):  # noqa: ASYNC110 - any of many may be the one
                await asyncio.sleep(0.01)
            engine = engines[turn % len(engines)]
            await asyncio.to_thread(engine.crash)
            await asyncio.sleep(_DOWN_S)
            await asyncio.to_thread(engine.restart)

    await asyncio.gather(kill_now_and_then(), *(ask_again_and_again() for _ in range(CONNECTIONS)))
    return seen, left


def as_seen(reply: Reply) -> Seen:
    """What a reply came to. A client that leaves may still have had all of it; one told of a failure has not."""
    last = reply.body
    if reply.ok and b"data: [DONE]" in reply.body:
        last = [line for line in reply.body.split(b"\n") if line.startswith(b"data: {")][-1].removeprefix(b"data: ")
    told: dict[str, Any] = json.loads(last) if reply.ok else {"error": None}
    complete = "error" not in told
    tokens = told["attribution"]["usage"]["completion_tokens"] if complete else None
    return Seen(request_id=reply.header(_NAME), complete=complete, tokens=tokens)


def _fsck(gateway: Gateway) -> tuple[str, ...]:
    found = json.loads(gateway.run("fsck", "--json", may_find=True))["findings"]
    return tuple(f"{one['invariant']}: {one['message']}" for one in found)
