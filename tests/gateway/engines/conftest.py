from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gateway.engines.embedded import EmbeddedEngine
    from gateway.engines.tokenizer import ChatTokenizer


@pytest.fixture(scope="session")
def tokenizer(model_directory: Path) -> ChatTokenizer:
    from gateway.engines.tokenizer import ChatTokenizer  # noqa: PLC0415  transformers takes seconds to import

    return ChatTokenizer(model_directory)


@pytest.fixture(scope="session")
def tiny_directory(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the real one's kind and vocabulary, too small to say anything, and so fast."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed  # noqa: PLC0415

    directory = tmp_path_factory.mktemp("tiny")
    for file in model_directory.glob("*token*"):
        shutil.copy(file, directory)
    shutil.copy(model_directory / "chat_template.jinja", directory)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_directory: Path) -> Iterator[EmbeddedEngine]:
    """An engine on it that advances two answers at once."""
    from gateway.engines.embedded import EmbeddedEngine  # noqa: PLC0415

    opened = EmbeddedEngine.open(tiny_directory, max_generating=2)
    yield opened
    asyncio.run(opened.close())
