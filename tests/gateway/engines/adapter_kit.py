"""Small adapters, written as peft writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RANK = 8


def config(**changed: object) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "r": RANK,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["v_proj", "q_proj"],
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "megatron_core": "megatron.core",
        **changed,
    }


def tensors(base_shapes: Mapping[str, tuple[int, int]], *, seed: int = 0, scale: float = 0.05) -> dict[str, np.ndarray]:
    """Random halves for the attention's query and value projections; a scale of 0 leaves the base as it is."""
    random = np.random.default_rng(seed)
    written = {}
    for module, (inputs, outputs) in base_shapes.items():
        if module.endswith(("q_proj", "v_proj")):
            written[f"base_model.model.{module}.lora_A.weight"] = random.normal(size=(RANK, inputs)) / inputs**0.5
            written[f"base_model.model.{module}.lora_B.weight"] = scale * random.normal(size=(outputs, RANK))
    return {name: tensor.astype(np.float32) for name, tensor in written.items()}


def write(path: Path, weights: Mapping[str, np.ndarray], **changed: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config(**changed)))
    save_file(dict(weights), path / "adapter_model.safetensors")
    return path
