"""Cold loads and waits of the gateway's placement, of simpler ones, and of the best possible, in simulated time."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.routing.bounds import fewest_loads, without_foresight
from benchmarks.routing.policies import OURS, policies
from benchmarks.routing.simulation import Death, Machine, Simulation
from benchmarks.routing.workload import Load, Request, generate, popularity

WARM_UP = 0.25  # part of the requests that fills the slots, and is not counted
DEATH_AT = 0.5  # part of the requests after which a replica dies
BACK_S = 60.0
QUICK = 2500


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One policy, over the requests after the warm-up. Waits in seconds, of requests that were not lost.

    cold: loads on demand for each request. wait: from the arrival until the request runs. excess: from its arrival
    to its end, beyond what it would have taken alone on a replica that holds its adapter.
    """

    cold: float
    wait_p50_s: float
    wait_p99_s: float
    excess_p99_s: float
    copies: int
    deferred: int
    lost: int


def main() -> None:
    """Simulate, print a table for people, and last the line that scripts read."""
    load, machine = Load(), Machine()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the requests and of every draw (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=load.requests, help="default: %(default)s")
    parser.add_argument("--zipf", type=float, default=load.zipf, help="exponent (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=load.rate_s, help="requests a second (default: %(default)s)")
    parser.add_argument("--drift", type=int, default=0, help="times that a tenth of the ranks trade places")
    parser.add_argument("--slots", type=int, default=machine.slots, help="of each replica (default: %(default)s)")
    parser.add_argument("--load-s", type=float, default=machine.load_s, help="of an adapter (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="so few requests that the figures say nothing")
    arguments = parser.parse_args()

    load = Load(
        requests=QUICK if arguments.quick else arguments.requests,
        zipf=arguments.zipf,
        rate_s=arguments.rate,
        drift=arguments.drift,
    )
    machine = Machine(slots=arguments.slots, load_s=arguments.load_s)
    print("RESULT " + json.dumps(compare(load, machine, arguments.seed)))


def compare(load: Load, machine: Machine, seed: int) -> dict[str, Any]:
    """Print both tables, and return the figures under their published names."""
    started_s = time.monotonic()
    requests = generate(load, seed)
    death = Death(replica=machine.names()[0], at_s=requests[int(len(requests) * DEATH_AT)].at_s, back_s=BACK_S)
    counted = requests[warm_up(requests) :]
    slots = machine.replicas * machine.slots
    best = fewest_loads([request.adapter for request in counted], slots) / len(counted)
    # Each load has a request that waits all of it: if more than one in a hundred loads, the 99th percentile does.
    best_p99_s = machine.load_s if best > 0.01 else 0.0
    known = without_foresight(popularity(load).tolist(), slots)

    print(
        f"{load.requests:,} requests at {load.rate_s:g}/s for {load.adapters:,} adapters (Zipf {load.zipf:g}, "
        f"seed {seed}); {machine.replicas} replicas of {machine.slots} slots, {machine.load_s:g} s a load"
    )
    calm = _table("\nall replicas well", load, machine, seed, None, best, best_p99_s)
    print(f"{'popularities known, no future':30}{known:8.1%}")
    died = f"\none replica dies half-way and is back, empty, {BACK_S:g} s later"
    dead = _table(died, load, machine, seed, death, best, best_p99_s)
    print(
        "\ncold: loads on demand for each request; copies: loads ahead of it. wait: until a request runs. excess: of"
        "\nits whole time over that on an idle replica with its adapter. deferred: requests that came when none had"
        "\nroom. best possible: no placement that loads on demand, in the order of arrival, can load less, or have a"
        "\nshorter p99 wait; it knows the future, and its replicas are never busy.\n"
        f"{time.monotonic() - started_s:.0f} s\n"
    )
    ours = calm[OURS]
    result: dict[str, Any] = {
        "cold_load_rate": round(ours.cold, 4),
        "p99_wait_s": round(ours.wait_p99_s, 3),
        "best_possible": round(best, 4),
        "best_possible_p99_wait_s": best_p99_s,
        "best_without_foresight": round(known, 4),
        "over_best_possible": round(ours.cold / best, 3) if best else None,
        "over_best_without_foresight": round(ours.cold / known, 3) if known else None,
        "copies": ours.copies,
        "deferred": ours.deferred,
        "cold_load_rate_death": round(dead[OURS].cold, 4),
        "p99_wait_s_death": round(dead[OURS].wait_p99_s, 3),
    }
    for name, figures in calm.items():
        if name != OURS:
            key = name.replace(", ", "_").replace(" ", "_").replace("-", "_")
            result[f"cold_load_rate_{key}"] = round(figures.cold, 4)
            result[f"p99_wait_s_{key}"] = round(figures.wait_p99_s, 3)
    return result


def measure(simulation: Simulation, requests: Sequence[Request], machine: Machine) -> Figures:
    """What became of the requests after the warm-up."""
    first = warm_up(requests)
    pairs = list(zip(simulation.outcomes, requests, strict=True))[first:]
    answered = [(outcome, request, outcome.end_s) for outcome, request in pairs if outcome.end_s is not None]
    waits_s = np.array([outcome.wait_s for outcome, _, _ in answered])
    excess_s = [end_s - request.at_s - machine.alone_s(request.tokens) for _, request, end_s in answered]
    return Figures(
        cold=sum(number >= first for number in simulation.load_starts) / len(pairs),
        wait_p50_s=float(np.quantile(waits_s, 0.5)),
        wait_p99_s=float(np.quantile(waits_s, 0.99)),
        excess_p99_s=float(np.quantile(excess_s, 0.99)),
        copies=simulation.copies,
        deferred=simulation.deferred,
        lost=len(pairs) - len(answered),
    )


def warm_up(requests: Sequence[Request]) -> int:
    """How many of the requests are not counted."""
    return int(len(requests) * WARM_UP)


def _table(
    title: str, load: Load, machine: Machine, seed: int, death: Death | None, best: float, best_p99_s: float
) -> dict[str, Figures]:
    print(title)
    print(
        f"{'':30}{'cold':>8}{'wait p50 s':>12}{'p99 s':>9}{'excess p99 s':>14}{'copies':>8}{'deferred':>10}{'lost':>6}"
    )
    print(f"{'best possible':30}{best:8.1%}{0:12.2f}{best_p99_s:9.2f}")
    requests = generate(load, seed)
    found = {}
    for name, policy in policies(machine, seed).items():
        simulation = Simulation(machine, policy, requests, death)
        simulation.run()
        figures = found[name] = measure(simulation, requests, machine)
        print(
            f"{name:30}{figures.cold:8.1%}{figures.wait_p50_s:12.2f}{figures.wait_p99_s:9.2f}"
            f"{figures.excess_p99_s:14.2f}{figures.copies:8}{figures.deferred:10}{figures.lost:6}",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
