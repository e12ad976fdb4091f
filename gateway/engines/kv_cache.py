"""Cutting, stacking and thinning key-value caches of full-attention layers: (rows, heads, tokens, size) tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps the keys and values of all tokens, which the functions here rely on."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def cut(cache: DynamicCache, tokens: int) -> None:
    """Keep only the first tokens."""
    _change(cache, lambda states: states[:, :, :tokens])


def keep_rows(cache: DynamicCache, rows: Sequence[int], tokens: int) -> None:
    """Keep only these rows, and of them the last tokens: what lies before is padding."""
    kept = list(rows)
    _change(cache, lambda states: states[kept, :, -tokens:])


def stack(cache: DynamicCache, below: DynamicCache) -> None:
    """Append the rows of another cache; the rows of the shorter one are padded on the left."""
    others = (states for keys, values, *_ in below for states in (keys, values))

    def join(states: torch.Tensor) -> torch.Tensor:
        other = next(others)
        width = max(states.shape[2], other.shape[2])
        return torch.cat([pad(part, (0, 0, width - part.shape[2], 0)) for part in (states, other)])

    _change(cache, join)


def _change(cache: DynamicCache, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for layer in cache.layers:
        # Both are None in a layer that no token has reached yet.
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            layer.keys, layer.values = change(layer.keys), change(layer.values)
