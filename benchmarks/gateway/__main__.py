"""The gateway's hot path beside its peers': processor time, throughput, delay, memory, and the log under fire."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.gateway import faults, memory, sharing, speed, vllm
from benchmarks.gateway.ours import ADAPTED, BASE_ONLY, LORA, Gateway
from benchmarks.gateway.peers import PEERS, Peer, PeerAbsent
from benchmarks.gateway.processes import running, split_cores
from benchmarks.gateway.speed import Figures
from benchmarks.gateway.upstream import CHUNKS, MODEL, Upstream
from benchmarks.ledger import postgres
from benchmarks.machine import machine

KEYS = (
    "cpu_ms_request",
    "cpu_ms_stream",
    "requests_s",
    "first_byte_p99_ms",
    "unlogged_answers",
    "memory_growth",
    "peers",
)

OURS, OURS_ADAPTED = "Tributary", "Tributary, adapter"

_Result: TypeAlias = dict[str, Any]
NewDatabase: TypeAlias = Callable[[], AbstractContextManager[str | None]]


@contextmanager
def in_its_folder() -> Iterator[None]:
    """No URL of a database: a gateway then keeps its books in SQLite, in its own folder."""
    yield None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. seconds: of each load, of which there are three a gateway and round."""

    rounds: int = 3
    seconds: float = 6
    early: int = memory.EARLY
    late: int = memory.LATE
    requests: int = faults.REQUESTS
    peers: tuple[Peer, ...] = PEERS
    new_database: NewDatabase = in_its_folder


QUICK = Sizes(rounds=1, seconds=0.3, early=60, late=120, requests=120, peers=())


def main() -> None:
    """Measure, print tables for people, and last the line that scripts read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS), help="the parts to measure")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", choices=names, nargs="*", default=names, help="those to measure beside it")
    parser.add_argument("--rounds", type=int, help="of the whole table, of which each figure is the median")
    parser.add_argument("--seconds", type=float, help="of each load")
    parser.add_argument(
        "--late", type=int, help="requests before the second look at memory; the first is after a tenth"
    )
    parser.add_argument("--requests", type=int, help="under fire")
    parser.add_argument(
        "--database",
        choices=["sqlite", "postgres"],
        default="sqlite",
        help="postgres: DATABASE_URL's, else one of ours",
    )
    parser.add_argument("--quick", action="store_true", help="everything but peers, so small that it says nothing")
    real = parser.add_argument_group("a real vLLM, in place of the parts", "for a machine with a GPU")
    real.add_argument("--vllm", type=Path, metavar="FOLDER", help="of a model of the Llama family, to be served")
    real.add_argument("--vllm-command", default="vllm", help="what runs vLLM, with arguments if need be")
    real.add_argument("--vllm-flags", default="", help="further flags of `vllm serve`")
    real.add_argument("--loras", type=int, nargs="+", default=[8, 16, 32, 64], help="how many answer in turn")
    real.add_argument("--connections", type=int, default=64, help="that ask at once")
    real.add_argument("--tokens", type=int, default=128, help="of an answer")
    arguments = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is stopped
    if arguments.vllm:
        print_vllm(arguments)
        return
    sizes = QUICK if arguments.quick else replace(Sizes(), peers=tuple(p for p in PEERS if p.name in arguments.peers))
    given = {name: getattr(arguments, name) for name in ("rounds", "seconds", "late", "requests")}
    sizes = replace(sizes, **{name: value for name, value in given.items() if value is not None})
    if arguments.late is not None:
        sizes = replace(sizes, early=max(1, arguments.late // 10))
    print(machine())
    result: _Result = dict.fromkeys(KEYS)
    with ExitStack() as opened:
        if arguments.database == "postgres":
            server = opened.enter_context(postgres.postgresql())
            sizes = replace(sizes, new_database=partial(postgres.postgresql_schema, server))
        for part in arguments.only:
            print(flush=True)
            with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
                result |= PARTS[part](Path(folder), sizes)
    print("\nRESULT " + json.dumps(result))


# -- speed -------------------------------------------------------------------------------------------------------------


def print_speed(folder: Path, sizes: Sizes) -> _Result:
    """Direct, ours with two models, and each peer, in turn, round by round."""
    own, others = split_cores()
    where = f"core {own[0]}, everything else on {len(others)} more" if own else "the same core as everything else"
    print(
        f"Each gateway on {where}; {speed.CONNECTIONS} connections, chats of 0.4 KB, streams of {CHUNKS} chunks.\n"
        "CPU: all of the gateway's processes, from their own accounting, work left behind included. Chats and streams\n"
        "a second: as fast as answered, the server at once. First byte: of streams that come as from a real server\n"
        f"({speed.PACED_DELAY_MS:.0f} ms, then {speed.PACED_CHUNK_MS:.0f} ms a chunk), and what is added to direct.\n"
    )
    found: dict[str, list[Figures]] = {}
    absent: dict[str, str] = {}
    with running_upstream(folder, others) as upstream:
        for number in range(sizes.rounds):
            turns = _turns(folder / str(number), upstream, sizes, own, others)
            for name, turn in turns.items():
                if name in absent:
                    continue
                try:
                    found.setdefault(name, []).append(turn())
                except PeerAbsent as error:
                    absent[name] = str(error)
    medians = {name: speed.middle(rounds) for name, rounds in found.items() if rounds}
    direct = medians["direct"]
    _print_speed(medians, direct, absent)
    results = {name: speed.as_result(figures, direct) for name, figures in medians.items()}
    ours = results.pop(OURS)
    return {
        **{key: ours[key] for key in ("cpu_ms_request", "cpu_ms_stream", "requests_s", "first_byte_p99_ms")},
        "first_byte_p50_ms": ours["first_byte_p50_ms"],
        "streams_s": ours["streams_s"],
        "failed": ours["failed"],
        "adapted": results.pop(OURS_ADAPTED),
        "direct": results.pop("direct"),
        "peers": results | {name: {"absent": why} for name, why in absent.items()},
    }


def _turns(
    folder: Path, upstream: Upstream, sizes: Sizes, own: Sequence[int], others: Sequence[int]
) -> dict[str, Callable[[], Figures]]:
    """What is measured in one round, in order, by the name that the table gives it."""

    def ours(model: str) -> Figures:
        loras = {ADAPTED: LORA} if model == ADAPTED else {}
        with sizes.new_database() as database:
            gateway = Gateway(folder / model, [upstream.url], database=database, loras=loras, cores=own)
            with running(gateway.serve()) as server:
                figures = speed.measure(
                    gateway.asking(model), upstream, server, seconds=sizes.seconds, cores=others, settled=gateway.drain
                )
                assert gateway.gauges().answers > 0, "the metrics are off"
                return figures

    def theirs(peer: Peer) -> Figures:
        with peer.before(upstream.url, MODEL, log=folder / f"{peer.name}.log", cores=own) as (server, asking):
            return speed.measure(asking, upstream, server, seconds=sizes.seconds, cores=others)

    folder.mkdir(exist_ok=True)
    direct = {"direct": lambda: speed.measure(upstream.asking, upstream, None, seconds=sizes.seconds, cores=others)}
    own_models = {OURS: lambda: ours(BASE_ONLY), OURS_ADAPTED: lambda: ours(ADAPTED)}
    return direct | own_models | {peer.name: lambda peer=peer: theirs(peer) for peer in sizes.peers}


def _print_speed(medians: dict[str, Figures], direct: Figures, absent: dict[str, str]) -> None:
    print(f"{'':20}{'CPU ms':>9}{'chats':>9}{'CPU ms':>9}{'streams':>9}{'first byte ms':>16}{'added ms':>16}{'not':>7}")
    print(f"{'':20}{'a chat':>9}{'/s':>9}{'a stream':>9}{'/s':>9}{'p50':>8}{'p99':>8}{'p50':>8}{'p99':>8}{'whole':>7}")
    for name, figures in medians.items():
        p50_ms, p99_ms = figures.over(direct)
        print(
            f"{name:20}{figures.cpu_ms_request:9.3f}{figures.requests_s:9,.0f}{figures.cpu_ms_stream:9.3f}"
            f"{figures.streams_s:9,.0f}{figures.first_ms_p50:8.1f}{figures.first_ms_p99:8.1f}"
            f"{p50_ms:8.2f}{p99_ms:8.2f}{figures.failed:7,}"
        )
    for name, figures in medians.items():
        if name.startswith(OURS):
            print(
                f"{name}: of that CPU, {figures.at_once_ms_request:.3f} ms a chat and {figures.at_once_ms_stream:.3f} "
                "ms a stream while the load was on, the rest to attribute afterwards"
            )
    for name, why in absent.items():
        print(f"{name:20} not measured: {why}")
    print(
        "Tributary: the base model alone, with authentication, admission, usage and its split committed durably, and\n"
        "metrics on; of the peers, none commits a record. Tributary, adapter: each answer is also attributed to a\n"
        "LoRA by scoring on the same server. direct: what the server and the load generator do without a gateway."
    )


@contextmanager
def running_upstream(folder: Path, cores: Sequence[int]) -> Iterator[Upstream]:
    """A server to put gateways before."""
    upstream = Upstream(folder, cores=cores)
    try:
        yield upstream
    finally:
        upstream.server.stop()


# -- memory and faults -------------------------------------------------------------------------------------------------


def print_memory(folder: Path, sizes: Sizes) -> _Result:
    """Resident memory early and late."""
    own, others = split_cores()
    with running_upstream(folder, others) as upstream, sizes.new_database() as database:
        gateway = Gateway(folder / "memory", [upstream.url], database=database, cores=own)
        growth = memory.measure(gateway, early=sizes.early, late=sizes.late, cores=others)
    print("Resident memory of the gateway, MiB, one request in ten a stream")
    for requests, size_bytes in (
        (growth.early_requests, growth.early_bytes),
        (growth.late_requests, growth.late_bytes),
    ):
        print(f"after {requests:9,} requests{size_bytes / 2**20:10.1f}")
    print(f"{'growth':24}{growth.part:+10.1%}", flush=True)
    return {"memory_growth": round(growth.part, 4), "memory_mib": round(growth.late_bytes / 2**20, 1)}


def print_faults(folder: Path, sizes: Sizes) -> _Result:
    """The log under fire."""
    print(
        f"Under fire: {sizes.requests:,} requests, half of them streams, to two engines of which each is killed once;\n"
        "a twentieth of what they do fails, and a tenth of the clients leave"
    )
    with sizes.new_database() as database:
        outcome = faults.measure(folder, requests=sizes.requests, cores=split_cores(), database=database)
    print("\n".join(outcome.lines()), flush=True)
    reconciled = outcome.reconciled
    return {
        "unlogged_answers": outcome.unlogged_answers,
        "unasked_entries": reconciled.unasked,
        "miscounted_answers": reconciled.miscounted,
        "open_intents": outcome.open_intents,
        "fsck_findings": len(outcome.findings),
    }


def print_sharing(folder: Path, sizes: Sizes) -> _Result:
    """A quiet caller beside a flood."""
    own, others = split_cores()
    with running_upstream(folder, others) as upstream, sizes.new_database() as database:
        limits = f"concurrent = {sharing.CONCURRENT}"
        gateway = Gateway(folder / "sharing", [upstream.url], database=database, cores=own, limits=limits)
        shared = sharing.measure(gateway, upstream, seconds=3 * sizes.seconds, cores=others)
    print(
        f"{sharing.CONCURRENT} turns; a quiet key, and one with {sharing.FLOOD_CONNECTIONS} connections. Whole answers"
    )
    print(f"{'':20}{'answers/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'not whole':>10}")
    rows = {"quiet, alone": shared.alone, "quiet, beside flood": shared.beside, "flood": shared.flood}
    for name, outcome in rows.items():
        failed = sum(outcome.failed.values())
        p50_ms, p99_ms = outcome.total_ms_at(0.5), outcome.total_ms_at(0.99)
        print(f"{name:20}{outcome.requests_s:10.1f}{p50_ms:10.1f}{p99_ms:10.1f}{failed:10,}")
    print(f"p99 of the quiet key beside the flood: {shared.ratio:.2f} times that alone", flush=True)
    return {"flood_p99_ratio": round(shared.ratio, 3)}


# -- a real server -----------------------------------------------------------------------------------------------------


def print_vllm(arguments: argparse.Namespace) -> None:
    """Through the gateway against direct, on a real vLLM server with many LoRAs."""
    print(f"{machine()}; {vllm.hardware()}")
    print(
        f"{arguments.connections} connections, streams of {arguments.tokens} tokens, each from the next LoRA; through\n"
        "the gateway every answer is committed, and attributed by scoring on the same server at low priority\n"
    )
    asked = vllm.Asked(
        connections=arguments.connections, tokens=arguments.tokens, seconds=arguments.seconds or vllm.SECONDS
    )
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
        compared = vllm.measure(
            Path(folder),
            arguments.vllm.resolve(),
            command=shlex.split(arguments.vllm_command),
            flags=shlex.split(arguments.vllm_flags),
            counts=arguments.loras,
            asked=asked,
        )
    print(f"{'':8}{'answers/s':>20}{'of':>8}{'first byte p50 ms':>20}{'first byte p99 ms':>20}{'not whole':>14}")
    print(f"{'LoRAs':8}{'direct':>10}{'through':>10}{'direct':>8}" + f"{'direct':>10}{'through':>10}" * 2, flush=True)
    for one in compared:
        direct, through = one.direct, one.through
        print(
            f"{one.loras:<8}{direct.requests_s:10.2f}{through.requests_s:10.2f}{one.part:8.1%}"
            f"{direct.first_ms_at(0.5):10.1f}{through.first_ms_at(0.5):10.1f}"
            f"{direct.first_ms_at(0.99):10.1f}{through.first_ms_at(0.99):10.1f}"
            f"{sum(direct.failed.values()):7,}{sum(through.failed.values()):7,}"
        )
    print("\nRESULT " + json.dumps({"vllm": [one.as_result() for one in compared]}))


PARTS: dict[str, Callable[[Path, Sizes], _Result]] = {
    "speed": print_speed,
    "memory": print_memory,
    "faults": print_faults,
    "sharing": print_sharing,
}

if __name__ == "__main__":
    main()
