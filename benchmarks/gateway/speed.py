"""Processor time, throughput and added delay of one gateway in front of one server."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace

from benchmarks.gateway.client import Asking
from benchmarks.gateway.load import Load, Outcome, run
from benchmarks.gateway.processes import Server
from benchmarks.gateway.upstream import Upstream

CONNECTIONS = 32
WARM_UP_S = 1.5

# A server that takes its time as a real one does: about 32 answers of 16 tokens are always on their way, and as each
# connection pauses at random before it asks again, no two are in step.
PACED_DELAY_MS, PACED_CHUNK_MS, PACED_PAUSE_MS, PACED_TOKENS = 50.0, 20.0, 25.0, 16


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One gateway's. NaN where nothing was answered.

    cpu_ms_request, cpu_ms_stream: processor time of all its processes for a chat of 0.4 KB, and for a stream of 64
    chunks that the server sends in one burst. requests_s, streams_s: answers a second to 32 connections that ask as
    fast as they are answered. first_ms: to the first byte of a paced stream, 32 at a time, at the median and at the
    99th percentile. failed: answers that were not whole. at_once_ms: of the processor time, what was spent while the
    load was on; the rest went into what the answers left behind.
    """

    cpu_ms_request: float
    requests_s: float
    cpu_ms_stream: float
    streams_s: float
    first_ms_p50: float
    first_ms_p99: float
    at_once_ms_request: float
    at_once_ms_stream: float
    failed: int = 0

    def over(self, direct: Figures) -> tuple[float, float]:
        """Delay to the first byte that it adds, in milliseconds: of the medians, and of the 99th percentiles."""
        return self.first_ms_p50 - direct.first_ms_p50, self.first_ms_p99 - direct.first_ms_p99


def measure(
    asking: Asking,
    upstream: Upstream,
    server: Server | None,
    *,
    seconds: float,
    cores: Sequence[int],
    settled: Callable[[], None] = lambda: None,
) -> Figures:
    """Measure what answers there. server: whose processor time is counted; None for the upstream alone.

    settled: returns when the work that the answers left behind is done; its processor time counts too.
    """

    def spent(load: Load) -> tuple[Outcome, float, float]:
        """What came of it, and processor time in milliseconds an answer: until all is done, and at once."""
        run(replace(load, seconds=min(WARM_UP_S, seconds)))
        settled()
        looks_s = [server.cpu_s() if server else 0.0]
        outcome = run(load)
        looks_s.append(server.cpu_s() if server else 0.0)
        settled()
        looks_s.append(server.cpu_s() if server else 0.0)
        at_once_s, in_all_s = looks_s[1] - looks_s[0], looks_s[2] - looks_s[0]
        answered = outcome.answered or float("nan")
        return outcome, in_all_s * 1000 / answered, at_once_s * 1000 / answered

    burst = Load(asking=asking, connections=CONNECTIONS, seconds=seconds, cores=tuple(cores))
    upstream.pace(delay_ms=0, chunk_ms=0)
    chats, cpu_ms_request, at_once_ms_request = spent(burst)
    streams, cpu_ms_stream, at_once_ms_stream = spent(replace(burst, stream_every=1))
    upstream.pace(delay_ms=PACED_DELAY_MS, chunk_ms=PACED_CHUNK_MS)
    short = replace(asking, max_tokens=PACED_TOKENS)
    slow = replace(burst, asking=short, stream_every=1, seconds=2 * seconds, pause_ms=PACED_PAUSE_MS)
    paced, _, _ = spent(slow)
    return Figures(
        cpu_ms_request=cpu_ms_request,
        requests_s=chats.requests_s,
        cpu_ms_stream=cpu_ms_stream,
        streams_s=streams.requests_s,
        first_ms_p50=paced.first_ms_at(0.5),
        first_ms_p99=paced.first_ms_at(0.99),
        at_once_ms_request=at_once_ms_request,
        at_once_ms_stream=at_once_ms_stream,
        failed=sum(sum(outcome.failed.values()) for outcome in (chats, streams, paced)),
    )


def middle(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure, and all failures."""
    medians = {
        field.name: statistics.median(getattr(figures, field.name) for figures in rounds)
        for field in fields(Figures)
        if field.name != "failed"
    }
    return Figures(**medians, failed=sum(figures.failed for figures in rounds))


def as_result(figures: Figures, direct: Figures) -> dict[str, float | int | None]:
    """The figures as the last line has them, with the delay that is added; JSON knows no NaN."""
    added_p50_ms, added_p99_ms = figures.over(direct)
    named = asdict(figures) | {"first_byte_p50_ms": added_p50_ms, "first_byte_p99_ms": added_p99_ms}
    del named["first_ms_p50"], named["first_ms_p99"]
    return {name: None if value != value else round(value, 3) for name, value in named.items()}  # noqa: PLR0124 - NaN
