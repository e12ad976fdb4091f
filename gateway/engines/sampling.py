"""Choosing the next token."""

from __future__ import annotations

import torch

from gateway.engines.base import SamplingParams

_GREEDY = 1e-5  # below it, dividing by the temperature could overflow, and only one token has a chance anyway


class Sampler:
    """Draws one generation's tokens, from a random source of its own so that neighbours do not change them."""

    def __init__(self, sampling: SamplingParams) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed % 2**63)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token's id, given the logits (vocabulary,)."""
        if self._temperature < _GREEDY:
            return int(logits.argmax())
        chances = (logits.double().cpu() / self._temperature).softmax(dim=0)
        if self._top_p < 1:
            # The nucleus: the likeliest tokens, up to and including the one that reaches top_p.
            likeliest, ids = chances.sort(descending=True, stable=True)
            chances[ids[likeliest.cumsum(dim=0) - likeliest >= self._top_p]] = 0
        return int(torch.multinomial(chances, 1, generator=self._random))
