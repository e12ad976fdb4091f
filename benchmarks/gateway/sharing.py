"""What a caller waits for while another floods the gateway."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gateway.load import Load, Outcome, run
from benchmarks.gateway.ours import Gateway
from benchmarks.gateway.processes import running
from benchmarks.gateway.upstream import Upstream

# Answers take about half a second, and the gateway gives 32 at once; the quiet caller has four connections that pause.
CONCURRENT = 32
DELAY_MS, CHUNK_MS = 100.0, 6.0
QUIET_CONNECTIONS, QUIET_PAUSE_MS = 4, 250.0
FLOOD_CONNECTIONS = 256


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The quiet caller's answers by itself and beside the flood, and the flood's own. Milliseconds of whole answers."""

    alone: Outcome
    beside: Outcome
    flood: Outcome

    @property
    def ratio(self) -> float:
        """How much longer 99 in 100 of the quiet caller's answers take at most."""
        return self.beside.total_ms_at(0.99) / self.alone.total_ms_at(0.99)


def measure(gateway: Gateway, upstream: Upstream, *, seconds: float, cores: Sequence[int]) -> Shared:
    """Ask quietly for so long, then again while a second key asks with 256 connections as fast as it is answered."""
    upstream.pace(delay_ms=DELAY_MS, chunk_ms=CHUNK_MS)
    flooding = gateway.asking(key=gateway.new_key("flood"))
    quiet = Load(
        asking=gateway.asking(),
        connections=QUIET_CONNECTIONS,
        seconds=seconds,
        stream_every=1,
        pause_ms=QUIET_PAUSE_MS,
        cores=tuple(cores),
    )
    with running(gateway.serve()):
        run(Load(**vars(quiet) | {"seconds": 1.0}))
        alone = run(quiet)
        floods: list[Outcome] = []
        flood = Load(
            asking=flooding, connections=FLOOD_CONNECTIONS, seconds=seconds + 2, stream_every=1, cores=tuple(cores)
        )
        beside_it = threading.Thread(target=lambda: floods.append(run(flood)))
        beside_it.start()
        beside = run(quiet)
        beside_it.join()
        gateway.drain()
    return Shared(alone=alone, beside=beside, flood=floods[0])
