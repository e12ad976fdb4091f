"""The load generator, a process of its own: so many connections, each asking again when it was answered.

`python -m benchmarks.gateway.load '{…}'` takes a Load as JSON and prints what came of it as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gateway.client import Asking, Client


@dataclass(frozen=True, kw_only=True)
class Load:
    """Ends after so many seconds or requests, whichever is first. stream_every: one in so many is a stream; 0, none.

    pause_ms: mean of the random pause before each request, without which all connections ask in step. cores: that the
    generator runs on.
    """

    asking: Asking
    connections: int = 32
    seconds: float = 5
    requests: int = 1_000_000
    first: int = 0
    stream_every: int = 0
    pause_ms: float = 0
    cores: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a load. failed: how many by status, or by `cut`. Milliseconds ascend."""

    answered: int
    failed: dict[str, int]
    seconds: float
    cpu_s: float
    first_ms: list[float]
    total_ms: list[float]

    @property
    def requests_s(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds

    def total_ms_at(self, part: float) -> float:
        """A quantile of the time to the last byte."""
        return quantile(self.total_ms, part)

    def first_ms_at(self, part: float) -> float:
        """A quantile of the time to the first byte of the body."""
        return quantile(self.first_ms, part)


def quantile(ascending: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of all values do not exceed; NaN of none."""
    if not ascending:
        return float("nan")
    return ascending[max(0, -(-int(part * 1_000_000) * len(ascending) // 1_000_000) - 1)]


def run(load: Load) -> Outcome:
    """Put the load on, from another process. Raises CalledProcessError when it fails as a whole."""
    command = [sys.executable, "-m", "benchmarks.gateway.load", json.dumps(asdict(load))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 - our own module
    return Outcome(**json.loads(done.stdout))


async def generate(load: Load) -> Outcome:
    """Put the load on, from this process."""
    numbers = iter(range(load.first, load.first + load.requests))
    first_ms: list[float] = []
    total_ms: list[float] = []
    failed: Counter[str] = Counter()
    started_s = time.perf_counter()
    ends_s = started_s + load.seconds

    async def ask_again_and_again(dice: random.Random) -> None:
        client = Client(load.asking.url)
        for number in numbers:
            if load.pause_ms:
                await asyncio.sleep(dice.expovariate(1000 / load.pause_ms))
            if time.perf_counter() >= ends_s:
                break
            stream = load.stream_every > 0 and number % load.stream_every == 0
            reply = await client.send(load.asking.request(number, stream=stream))
            if reply.ok:
                first_ms.append(round(reply.first_s * 1000, 3))
                total_ms.append(round(reply.total_s * 1000, 3))
            else:
                failed[str(reply.status) if reply.whole else "cut"] += 1
        client.close()

    lots = [random.Random(f"{load.seed} {place}") for place in range(load.connections)]  # noqa: S311 - lots
    await asyncio.gather(*map(ask_again_and_again, lots))
    seconds = time.perf_counter() - started_s
    return Outcome(
        answered=len(first_ms),
        failed=dict(failed),
        seconds=seconds,
        cpu_s=time.process_time(),
        first_ms=sorted(first_ms),
        total_ms=sorted(total_ms),
    )


def main() -> None:
    """Read a load, put it on, print what came of it."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    asking = given["asking"] | {"headers": tuple((name, value) for name, value in given["asking"]["headers"])}
    load = Load(**given | {"asking": Asking(**asking), "cores": tuple(given["cores"])})
    if load.cores:
        os.sched_setaffinity(0, load.cores)
    gc.disable()  # its pauses would be taken for the gateway's
    print(json.dumps(asdict(asyncio.run(generate(load)))))


if __name__ == "__main__":
    main()
