"""Clients that leave, engines that fail and engines that are killed: then the log is held against what clients saw."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
_AT_ONCE = 0.2  # part of those who leave that do so before a byte has come
_MOST_BYTES = 12_000  # of what a client reads before it leaves; a stream of 64 chunks is longer
_NAME = "x-tributary-request-id"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What so many requests under fire came to. refused: by status. findings: what `tributary fsck` found wrong."""

    reconciled: Reconciled
    kills: int
    left: int
    refused: Mapping[int, int]
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
        for status, count in sorted(self.refused.items()):
            yield f"{f'refused, {status}':>14}{count:10,}"
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
            fire = _Fire(gateway.asking(), engines, requests, random.Random(seed))  # noqa: S311 - lots, and no secrets
            asyncio.run(fire.rage())
            gateway.drain()
        with office(gateway.config) as opened:
            reconciled = reconcile(fire.seen, logged(opened))
            open_intents = still_open(opened)
        return Faults(
            reconciled=reconciled,
            kills=KILLS,
            left=fire.left,
            refused=fire.refused,
            open_intents=open_intents,
            findings=_fsck(gateway),
        )
    finally:
        for engine in engines:
            engine.server.stop()


class _Fire:
    """So many requests, some of whose clients leave, to engines that die and come back. seen: what each came to."""

    def __init__(self, asking: Asking, engines: Sequence[Upstream], requests: int, dice: random.Random) -> None:
        self._asking = asking
        self._engines = engines
        self._requests = requests
        self._numbers = iter(range(requests))
        self._dice = dice
        self.seen: list[Seen] = []
        self.left = 0
        self.refused: Counter[int] = Counter()

    async def rage(self) -> None:
        """Send them all."""
        await asyncio.gather(self._kill_now_and_then(), *(self._ask_again_and_again() for _ in range(CONNECTIONS)))

    async def _ask_again_and_again(self) -> None:
        client = Client(self._asking.url)
        for number in self._numbers:
            leave_after = self._leaves_after()
            self.left += leave_after is not None
            try:
                reply = await client.send(
                    self._asking.request(number, stream=number % 2 == 1), leave_after_bytes=leave_after
                )
            except OSError:  # nobody listens
                self.seen.append(Seen(request_id=None, complete=False))
                continue
            self.seen.append(as_seen(reply))
            if reply.status not in {0, 200}:
                self.refused[reply.status] += 1
        client.close()

    def _leaves_after(self) -> int | None:
        """After how many bytes of its answer a client leaves; None for one that stays."""
        if self._dice.random() >= LEAVING:
            return None
        return 0 if self._dice.random() < _AT_ONCE else self._dice.randrange(_MOST_BYTES)

    async def _kill_now_and_then(self) -> None:
        for turn in range(KILLS):
            so_many = self._requests * (turn + 1) // (KILLS + 1)
            while len(self.seen) < so_many:  # noqa: ASYNC110 - any of many may bring it about
                await asyncio.sleep(0.01)
            engine = self._engines[turn % len(self._engines)]
            await asyncio.to_thread(engine.crash)
            await asyncio.sleep(_DOWN_S)
            await asyncio.to_thread(engine.restart)


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
