from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gateway.engines import AdapterFiles, AdapterRejected, adapters, linear_shapes

from .adapter_kit import RANK, tensors, write

BASE = "smollm2-135m-instruct"
SHAPES = {
    f"model.layers.{layer}.{module}": shape
    for layer in range(2)
    for module, shape in {
        "self_attn.q_proj": (16, 16),
        "self_attn.v_proj": (16, 4),
        "mlp.up_proj": (16, 32),
    }.items()
}


def test_an_adapter_is_read_with_what_the_gateway_needs_of_it(tmp_path: Path) -> None:
    write(tmp_path, tensors(SHAPES))
    files = AdapterFiles.read(tmp_path)
    content = [(tmp_path / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")]
    assert files.digest == hashlib.sha256(content[0] + content[1]).hexdigest()
    assert files.name == f"lora-{files.digest[:16]}"
    assert (files.rank, files.alpha, files.rank_stabilised) == (RANK, 16.0, False)
    assert files.target_modules == ("q_proj", "v_proj")
    assert files.shapes == {module: shape for module, shape in SHAPES.items() if "mlp" not in module}
    assert files.size_bytes == len(content[0]) + len(content[1])
    assert files.read_weights() == content[1]
    files.check_fits(base_model=BASE, base_shapes=SHAPES)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it on its own
def test_what_peft_itself_saves_is_accepted(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  seconds to import, for this test alone
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    directory = tmp_path / f"{BASE}-0123456789ab-1"
    base = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
    base.save_pretrained(directory)
    base.name_or_path = str(directory)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(base, lora).save_pretrained(str(tmp_path))
    files = AdapterFiles.read(tmp_path)
    assert {module.rpartition(".")[2] for module in files.shapes} == adapters.TARGET_MODULES
    files.check_fits(base_model=BASE, base_shapes=linear_shapes(directory))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter.pt"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, name: str) -> None:
    write(tmp_path, tensors(SHAPES))
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps({}))
    with pytest.raises(AdapterRejected, match=rf"{name} is a pickle.*convert it to adapter_model\.safetensors"):
        AdapterFiles.read(tmp_path)


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path: Path) -> None:
    write(tmp_path, tensors(SHAPES))
    (tmp_path / "adapter_model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(AdapterRejected, match="not a safetensors file"):
        AdapterFiles.read(tmp_path)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA"),
        ({"task_type": ["CAUSAL_LM"]}, "task_type must be CAUSAL_LM"),
        ({"bias": "all"}, "bias must be none"),
        ({"r": 65}, "from 1 to 64"),
        ({"r": 8.0}, "from 1 to 64"),
        ({"r": True}, "from 1 to 64"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"target_modules": "all-linear"}, "must be a list"),
        ({"target_modules": ["lm_head"]}, "target_modules names lm_head"),
        ({"target_modules": ["q_proj"]}, "other modules than target_modules"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "other modules than target_modules"),
        ({"layers_to_transform": [True]}, "layers_to_transform"),
        ({"layers_to_transform": []}, "layers_to_transform"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"auto_mapping": {"base_model_class": "Evil"}}, "uses auto_mapping"),
        ({"use_dora": True}, "uses use_dora"),
        ({"an_option_of_tomorrow": 1}, "uses an_option_of_tomorrow"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
    ],
)
def test_a_configuration_that_is_not_a_plain_lora_is_refused(
    tmp_path: Path, changed: dict[str, object], reason: str
) -> None:
    write(tmp_path, tensors(SHAPES), **changed)
    with pytest.raises(AdapterRejected, match=reason):
        AdapterFiles.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"r": 1, "r": 2}', b"\xff", b"[" * 60_000])
def test_a_configuration_that_is_not_an_object_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, tensors(SHAPES))
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterRejected, match=r"adapter_config\.json"):
        AdapterFiles.read(tmp_path)


def _rename(old: str, new: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(weights: dict[str, np.ndarray]) -> None:
        name = next(name for name in weights if old in name)
        weights[name.replace(old, new)] = weights.pop(name)

    return change


def _replace(part: str, value: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    def change(weights: dict[str, np.ndarray]) -> None:
        weights[next(name for name in weights if part in name)] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.popitem(), "only one half"),
        (_rename("lora_A.weight", "bias"), "not a LoRA weight"),
        (_replace("lora_A", np.zeros((4, 16), np.float32)), "has rank 4, but r"),
        (_replace("lora_A", np.zeros((8, 16), np.int32)), "must be a matrix of F32"),
        (_replace("lora_A", np.zeros((8, 4, 4), np.float32)), "must be a matrix of F32"),
        (_replace("lora_A", np.zeros((8, 0), np.float32)), "must be a matrix of F32"),
        (_replace("lora_A", np.full((8, 16), np.nan, np.float32)), "no number"),
        (_replace("lora_A", np.full((8, 16), -np.inf, np.float16)), "holds an infinity"),
    ],
)
def test_weights_that_are_not_whole_loras_are_refused(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], reason: str
) -> None:
    weights = tensors(SHAPES)
    change(weights)
    write(tmp_path, weights)
    with pytest.raises(AdapterRejected, match=reason):
        AdapterFiles.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content + b"\0", "bytes after its last tensor"),
        (lambda content: content[:-1], "cut short"),
        (lambda content: content[:7], "not a safetensors file"),
        (lambda content: b"\xff" * 8 + content[8:], "not a safetensors file"),
        (lambda content: content.replace(b"data_offsets", b"date_offsets", 1), "must be a matrix"),
        (lambda content: content.replace(b'"F32"', b'"F16"', 1), "must be a matrix"),
    ],
)
def test_a_damaged_weights_file_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    file = write(tmp_path, tensors(SHAPES)) / "adapter_model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(AdapterRejected, match=reason):
        AdapterFiles.read(tmp_path)


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, tensors(SHAPES)) / "adapter_model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    first, second = (name for name in header if "q_proj.lora_A" in name)
    header[second]["data_offsets"] = header[first]["data_offsets"]
    changed = json.dumps(header).encode()
    file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + size :])
    with pytest.raises(AdapterRejected, match="overlap"):
        AdapterFiles.read(tmp_path)


def test_files_beyond_the_size_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, tensors(SHAPES))
    monkeypatch.setitem(adapters.FILE_LIMITS_BYTES, "adapter_model.safetensors", 100)
    with pytest.raises(AdapterRejected, match="larger than the 100 bytes"):
        AdapterFiles.read(tmp_path)


def test_a_rank_over_the_limit_of_the_engine_is_refused(tmp_path: Path) -> None:
    write(tmp_path, tensors(SHAPES))
    assert AdapterFiles.read(tmp_path, max_rank=RANK).rank == RANK
    with pytest.raises(AdapterRejected, match="from 1 to 4, not 8"):
        AdapterFiles.read(tmp_path, max_rank=4)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_only_plain_files_are_opened(tmp_path: Path, name: str) -> None:
    """A link would be followed out of the folder, and a pipe waited for."""
    write(tmp_path / "elsewhere", tensors(SHAPES))
    for make, reason in (
        (lambda file: file.symlink_to(tmp_path / "elsewhere" / name), "is a link"),
        (os.mkfifo, "no plain file"),
        (Path.mkdir, "no plain file"),
    ):
        folder = write(tmp_path / reason / make.__name__, tensors(SHAPES))
        (folder / name).unlink()
        make(folder / name)
        with pytest.raises(AdapterRejected, match=reason):
            AdapterFiles.read(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match=r"holds no adapter_model\.safetensors"):
        AdapterFiles.read(tmp_path)
    save_file(tensors(SHAPES), tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterRejected, match=r"holds no adapter_config\.json"):
        AdapterFiles.read(tmp_path)


def test_files_changed_after_they_were_verified_are_refused(tmp_path: Path) -> None:
    files = AdapterFiles.read(write(tmp_path, tensors(SHAPES)))
    write(tmp_path, tensors(SHAPES, seed=1))
    with pytest.raises(AdapterRejected, match="changed after they were registered"):
        files.read_weights()


def test_an_adapter_of_some_layers_needs_only_those(tmp_path: Path) -> None:
    last = {module: shape for module, shape in SHAPES.items() if ".1." in module}
    write(tmp_path, tensors(last))
    with pytest.raises(AdapterRejected, match=r"both have model\.layers\.0\.self_attn\.q_proj"):
        AdapterFiles.read(tmp_path).check_fits(base_model=BASE, base_shapes=SHAPES)
    for layers in ([1], 1):
        write(tmp_path, tensors(last), layers_to_transform=layers)
        files = AdapterFiles.read(tmp_path)
        assert files.layers == {1}
        files.check_fits(base_model=BASE, base_shapes=SHAPES)


@pytest.mark.parametrize(
    ("changed", "base_shapes", "reason"),
    [
        ({"base_model_name_or_path": "meta/Llama-3-8B"}, SHAPES, "made for meta/Llama-3-8B, but the base model here"),
        ({"base_model_name_or_path": "other/xsmollm2-135m-instruct"}, SHAPES, "made for other/xsmollm2"),
        ({}, SHAPES | {"model.layers.0.self_attn.q_proj": (16, 8)}, r"have \(inputs, outputs\) \(16, 16\)"),
        ({}, SHAPES | {"model.layers.2.self_attn.q_proj": (16, 16)}, r"both have model\.layers\.2\.self_attn\.q_proj"),
        ({}, {"model.layers.0.self_attn.q_proj": (16, 16)}, "and 2 more modules"),
    ],
)
def test_an_adapter_for_another_base_is_refused(
    tmp_path: Path, changed: dict[str, object], base_shapes: dict[str, tuple[int, int]], reason: str
) -> None:
    files = AdapterFiles.read(write(tmp_path, tensors(SHAPES), **changed))
    with pytest.raises(AdapterRejected, match=reason):
        files.check_fits(base_model=BASE, base_shapes=base_shapes)
