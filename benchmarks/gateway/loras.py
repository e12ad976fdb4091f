"""LoRAs with random weights for a model of the Llama family: they say nothing sensible and cost what real ones cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

RANK = 16
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


def write(folder: Path, config: dict[str, Any], *, base: str, seed: int) -> None:
    """Write a LoRA on the attention of every layer as peft would.

    config: of the model, as its config.json has it. base: the model's name.
    """
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head = int(config.get("head_dim") or hidden // heads)
    outer = {"q_proj": heads * head, "o_proj": hidden}
    outer["k_proj"] = outer["v_proj"] = int(config.get("num_key_value_heads") or heads) * head
    inner = {"q_proj": hidden, "k_proj": hidden, "v_proj": hidden, "o_proj": heads * head}
    dice = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    for layer in range(int(config["num_hidden_layers"])):
        for module in MODULES:
            at = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            for part, shape in (("lora_A", (RANK, inner[module])), ("lora_B", (outer[module], RANK))):
                weights[f"{at}.{part}.weight"] = dice.normal(0, 0.02, shape).astype(np.float16)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(MODULES),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))
