"""The weights on a device, their adapters, and the forward pass. Used from one thread only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from peft import LoraConfig
from peft.functional import delete_adapter, inject_adapter_in_model, set_adapter, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from gateway.engines.adapters import AdapterFiles
from gateway.engines.base import AdapterRejected
from gateway.engines.kv_cache import is_plain

Dtype = Literal["fp32", "bf16"]

# Enough to keep the cores busy; short enough that whoever waits behind it waits a fraction of a second.
PREFILL_TOKENS = 256

_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Total change of log-probability over the probe below which an adapter counts as doing nothing: far above rounding, far
# below what any trained adapter does (tens of nats).
_SILENT_NATS = 1e-3


class LanguageModel:
    """A causal language model with full attention, and the LoRA adapters that are resident on it."""

    def __init__(self, directory: Path, *, dtype: Dtype, device: str) -> None:
        """Load a model's folder. Raises ValueError for one whose key-value cache cannot be cut back."""
        self.device = torch.device(device)
        # transformers draws its bars on stderr, terminal or not
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=_TORCH_DTYPES[dtype], local_files_only=True, use_safetensors=True
        )
        # Copied even on the CPU: the weights came as a memory-mapped file, whose pages a small machine keeps dropping,
        # and then runs ten times slower.
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            tensor.data = tensor.data.to(self.device, copy=True)
        self._active: str | None = None
        if not is_plain(self.new_cache()):
            raise ValueError(f"{directory}: models with sliding-window or linear attention are not supported")

    @property
    def max_context_tokens(self) -> int:
        """Most positions that the model was trained for."""
        return int(self._model.config.max_position_embeddings)

    @property
    def vocabulary_size(self) -> int:
        """How many token ids there are, from 0."""
        return int(self._model.config.vocab_size)

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache."""
        return DynamicCache(config=self._model.config)

    def extend(self, ids: Sequence[int], cache: DynamicCache, *, adapter: str | None, keep: int = 1) -> torch.Tensor:
        """Append tokens to one sequence's cache; return the logits (keep, vocabulary) after its last `keep` tokens."""
        self._use(adapter)
        logits: torch.Tensor = self._model(
            torch.tensor([ids], device=self.device), past_key_values=cache, use_cache=True, logits_to_keep=keep
        ).logits
        return logits[0]

    def step(
        self, ids: Sequence[int], lengths: Sequence[int], cache: DynamicCache, *, adapter: str | None
    ) -> torch.Tensor:
        """Append one token to each row of a left-padded cache; return the logits (rows, vocabulary) after it.

        lengths: how many tokens each row has in the cache, its padding not counted.
        """
        self._use(adapter)
        positions = torch.tensor(lengths, device=self.device)
        width = cache.get_seq_length() + 1
        mask = torch.arange(width, device=self.device) >= (width - 1 - positions)[:, None]
        logits: torch.Tensor = self._model(
            torch.tensor(ids, device=self.device)[:, None],
            attention_mask=None if len(set(lengths)) == 1 else mask.long(),
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits[:, -1]

    def load(self, adapter: AdapterFiles, weights: bytes, probe: Sequence[int]) -> None:
        """Put a verified adapter beside those that are resident.

        probe: token ids on which it must change what the base expects. Raises AdapterRejected if it does not.
        """
        config = LoraConfig(
            r=adapter.rank,
            # peft documents whole numbers here but only ever divides by the rank
            lora_alpha=adapter.alpha,  # type: ignore[arg-type]
            use_rslora=adapter.rank_stabilised,
            target_modules=list(adapter.shapes),
            inference_mode=True,
        )
        try:
            tensors = safetensors.torch.load(weights)
        except safetensors.SafetensorError as error:
            raise AdapterRejected(f"the adapter's weights cannot be read: {error}") from error
        inject_adapter_in_model(config, self._model, adapter.name)
        self._switch(None)  # peft makes a new adapter the active one
        set_peft_model_state_dict(self._model, tensors, adapter.name)
        del self._model.peft_config  # peft would take it for a mistake at the next load, and nothing else reads it
        change = (self._logprobs(probe, adapter.name) - self._logprobs(probe, None)).abs().sum().item()
        if not change > _SILENT_NATS:  # nor is a change that is not a number one
            self.unload(adapter.name)
            raise AdapterRejected(
                f"the adapter changes nothing: its log-probabilities differ from the base model's by {change:.1g} nats"
            )

    def unload(self, name: str) -> None:
        """Remove a resident adapter."""
        self._use(None)
        delete_adapter(self._model, name, prefix="lora_")

    def _logprobs(self, ids: Sequence[int], adapter: str | None) -> torch.Tensor:
        logits = self.extend(ids[:-1], self.new_cache(), adapter=adapter, keep=len(ids) - 1)
        return token_logprobs(logits, ids[1:])

    def _use(self, adapter: str | None) -> None:
        if adapter != self._active:
            self._switch(adapter)

    def _switch(self, adapter: str | None) -> None:
        set_adapter(self._model, [] if adapter is None else adapter, inference_mode=True)
        self._active = adapter


def token_logprobs(logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Log p of each id under the logits (len(ids), vocabulary) of its position: float64, nats."""
    # In pieces, for a long answer's logits in double precision take a gigabyte.
    chosen_ids = torch.tensor(ids, device=logits.device)
    pieces = [
        piece.double().log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
        for piece, chosen in zip(torch.split(logits, 64), torch.split(chosen_ids, 64), strict=True)
    ]
    return torch.cat(pieces)
