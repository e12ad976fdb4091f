"""The base model, and the token ids that it reads and learns to write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gateway.engines.weights import base_model_directory
from gateway.grounding import DEFAULT_INSTRUCTION, Message, Source, ground


def load_base(directory: Path | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base model in fp32 and its tokenizer; without a directory, the one that the embedded engine serves."""
    path = directory or base_model_directory()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    for parameter in model.parameters():
        # Weights left mapped to their file are dropped and read again under memory pressure: ten times slower.
        parameter.data = parameter.data.clone()
    return model, tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, sources: Sequence[Source], question: str | None) -> list[int]:
    """Token ids of a question grounded in sources, up to where the answer begins.

    Without a question: the ids up to where the question begins, which are a prefix of those of any question.
    """
    asked = [] if question is None else [Message(role="user", content=question)]
    messages = [{"role": m.role, "content": m.content} for m in ground(asked, sources, DEFAULT_INSTRUCTION)]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=question is not None, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Token ids of an answer, and of the mark that ends it."""
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
