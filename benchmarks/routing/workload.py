"""Requests that arrive by chance, for adapters by Zipf's law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Load:
    """What arrives. arrivals_s is Poisson; drift: how many times over the run the ranks are dealt anew, in part."""

    requests: int = 24_000
    adapters: int = 1000
    zipf: float = 1.0
    rate_s: float = 24.0
    mean_tokens: float = 100.0
    drift: int = 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request: when it comes, for which adapter, and how many tokens it will be answered with."""

    at_s: float
    adapter: str
    tokens: int


def popularity(load: Load) -> np.ndarray:
    """The part of the requests that each rank gets, most popular first."""
    weights = 1 / np.arange(1, load.adapters + 1) ** load.zipf
    parts: np.ndarray = weights / weights.sum()
    return parts


def generate(load: Load, seed: int) -> list[Request]:
    """The same requests for the same seed. Answers have geometric lengths."""
    random = np.random.default_rng(seed)
    at_s = np.cumsum(random.exponential(1 / load.rate_s, load.requests))
    ranks = random.choice(load.adapters, size=load.requests, p=popularity(load))
    tokens = random.geometric(1 / load.mean_tokens, load.requests)
    names = _names(load, random)
    period = -(-load.requests // len(names))
    return [
        Request(at_s=float(at), adapter=names[number // period][rank], tokens=int(length))
        for number, (at, rank, length) in enumerate(zip(at_s, ranks, tokens, strict=True))
    ]


def _names(load: Load, random: np.random.Generator) -> list[Sequence[str]]:
    """Which adapter has which rank, for each part of the run: at each change a tenth of the ranks trade places."""
    named = [np.array([f"lora-{number:016x}" for number in random.permutation(load.adapters)])]
    for _ in range(load.drift):
        moved = random.choice(load.adapters, size=load.adapters // 10, replace=False)
        changed = named[-1].copy()
        changed[moved] = changed[random.permutation(moved)]
        named.append(changed)
    return [[str(name) for name in names] for names in named]
