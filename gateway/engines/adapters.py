"""A LoRA adapter's files, read as hostile input and verified before an engine sees them. Imports no torch.

An adapter is two files, as peft writes them: `adapter_config.json` and `adapter_model.safetensors`. Only what is
checked here reaches an engine: it builds the adapter from the fields of AdapterFiles and the verified bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gateway.engines.base import AdapterRejected

MAX_RANK = 64
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FILE_LIMITS_BYTES = {CONFIG_FILE: 64 << 10, WEIGHTS_FILE: 256 << 20}
TARGET_MODULES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})

_MAX_HEADER_BYTES = 4 << 20
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# The bits that are all set in infinities and in what is no number, and in nothing else.
_EXPONENTS: Mapping[str, np.unsignedinteger[Any]] = {
    "F32": np.uint32(0x7F800000),
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
}
_TENSOR = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]{1,200})\.lora_(?P<half>[AB])\.weight")
_LAYER = re.compile(r"\.layers\.([0-9]{1,3})\.")

# Fields of the configuration that change nothing about inference, or that are read below. Any other field must be off
# (null, false, 0 or empty): an option that this module does not know might change the arithmetic, or run code.
_KNOWN_FIELDS = frozenset(
    {
        "base_model_name_or_path", "bias", "inference_mode", "init_lora_weights", "layers_to_transform", "lora_alpha",
        "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision",
        "target_modules", "task_type", "use_rslora",
    }
)  # fmt: skip


def resident_name(digest: str) -> str:
    """Content-addressed name in an engine, so that other weights never answer under a name already used."""
    return f"lora-{digest[:16]}"


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """A verified adapter on disk.

    digest: SHA-256 hex over the bytes of the configuration followed by those of the weights. layers: the numbers of
    the layers that are adapted, None for all. shapes: for each adapted module, (inputs, outputs). base_model: what
    the maker's configuration calls the base.
    """

    path: Path
    digest: str
    rank: int
    alpha: float
    rank_stabilised: bool
    target_modules: tuple[str, ...]
    layers: frozenset[int] | None
    shapes: Mapping[str, tuple[int, int]]
    base_model: str
    size_bytes: int

    @property
    def name(self) -> str:
        """Name in an engine."""
        return resident_name(self.digest)

    @classmethod
    def read(cls, path: Path, *, max_rank: int = MAX_RANK) -> AdapterFiles:
        """Verify the adapter in a folder. max_rank: of the engine. Raises AdapterRejected with what to change."""
        config_bytes, weights = _read_files(path)
        config = _parse_config(config_bytes)
        rank = _rank(config, max_rank)
        target_modules = _target_modules(config)
        shapes = _parse_shapes(weights, rank)
        idle = [target for target in target_modules if not _targeted(shapes, [target])]
        if idle or _targeted(shapes, target_modules) != shapes.keys():
            raise AdapterRejected("the weights adapt other modules than target_modules in adapter_config.json names")
        return cls(
            path=path,
            digest=_digest(config_bytes, weights),
            rank=rank,
            alpha=_alpha(config),
            rank_stabilised=config.get("use_rslora") is True,
            target_modules=target_modules,
            layers=_layers(config),
            shapes=shapes,
            base_model=_base_model(config),
            size_bytes=len(config_bytes) + len(weights),
        )

    def read_weights(self) -> bytes:
        """The verified safetensors bytes. Raises AdapterRejected if the files changed since they were verified."""
        config, weights = _read_files(self.path)
        if _digest(config, weights) != self.digest:
            raise AdapterRejected(f"the files in {self.path} changed after they were registered; register them again")
        return weights

    def check_base(self, base_model: str) -> None:
        """Raise AdapterRejected unless the maker's configuration names this base."""
        # peft records the base as its maker called it: a hub name, or the folder that it was loaded from.
        recorded = self.base_model.rstrip("/").rpartition("/")[2].lower()
        if recorded != base_model and not recorded.startswith(f"{base_model}-"):
            raise AdapterRejected(
                f"the adapter was made for {self.base_model}, but the base model here is "
                f"{base_model}; train it on this base"
            )

    def check_fits(self, *, base_model: str, base_shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raise AdapterRejected unless the adapter was made for this base.

        base_shapes: (inputs, outputs) of every linear module of the base, as `linear_shapes` gives them.
        """
        self.check_base(base_model)
        targeted = _targeted(base_shapes, self.target_modules)
        if missing := _in_layers(targeted, self.layers).symmetric_difference(self.shapes):
            raise AdapterRejected(
                f"the adapter was made for another base: it and {base_model} do not both have {min(missing)}"
                + (f" and {len(missing) - 1} more modules" if len(missing) > 1 else "")
            )
        for module, shape in self.shapes.items():
            if shape != base_shapes[module]:
                raise AdapterRejected(
                    f"the adapter was made for another base: it takes {module} to have (inputs, outputs) {shape}, "
                    f"but {base_model} has {base_shapes[module]}"
                )


def open_plain(file: Path) -> BinaryIO:
    """Open a file that is one, and lies where its name says. Raises AdapterRejected for a link, a pipe or a device."""
    if file.is_symlink():
        raise AdapterRejected(f"{file.name} is a link to elsewhere; put the file itself in its place")
    # O_NONBLOCK, or a pipe that nobody writes to would be waited for; O_NOFOLLOW for a link made this very moment.
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AdapterRejected(f"{file.name} is no plain file")
    return os.fdopen(descriptor, "rb")


def linear_shapes(directory: Path) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every two-dimensional weight in a model's safetensors files, by module name."""
    shapes = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, tensor in header.items():
            if name.endswith(".weight") and len(tensor["shape"]) == 2:
                outputs, inputs = tensor["shape"]
                shapes[name.removesuffix(".weight")] = (inputs, outputs)
    return shapes


def _read_files(path: Path) -> tuple[bytes, bytes]:
    try:
        names = {file.name for file in path.iterdir()}
    except OSError as error:
        raise AdapterRejected(f"{path} cannot be read: {error.strerror}") from error
    if WEIGHTS_FILE not in names:
        if pickles := sorted(name for name in names if name.endswith((".bin", ".pt", ".pth"))):
            raise AdapterRejected(
                f"{pickles[0]} is a pickle, which can run code when it is opened; convert it to {WEIGHTS_FILE} "
                "(peft's save_pretrained writes that by default)"
            )
        raise AdapterRejected(f"{path} holds no {WEIGHTS_FILE}")
    if CONFIG_FILE not in names:
        raise AdapterRejected(f"{path} holds no {CONFIG_FILE}")
    return _read_bounded(path / CONFIG_FILE), _read_bounded(path / WEIGHTS_FILE)


def _read_bounded(file: Path) -> bytes:
    limit_bytes = FILE_LIMITS_BYTES[file.name]
    with open_plain(file) as opened:
        content = opened.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise AdapterRejected(f"{file.name} is larger than the {limit_bytes} bytes allowed")
    return content


def _digest(config: bytes, weights: bytes) -> str:
    return hashlib.sha256(config + weights).hexdigest()


def _parse_json(content: bytes, what: str) -> dict[str, object]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(pairs) != len(dict(pairs)):
            raise AdapterRejected(f"{what} names a field twice")
        return dict(pairs)

    try:
        parsed = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise AdapterRejected(f"{what} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise AdapterRejected(f"{what} is not a JSON object")
    return parsed


def _parse_config(content: bytes) -> dict[str, object]:
    config = _parse_json(content, CONFIG_FILE)
    if config.get("peft_type") != "LORA":
        raise AdapterRejected(f"peft_type must be LORA, not {config.get('peft_type')!r}")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterRejected(f"task_type must be CAUSAL_LM, not {config['task_type']!r}")
    if config.get("bias", "none") != "none":
        raise AdapterRejected("bias must be none: this adapter also replaces biases of the base model")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise AdapterRejected(
            f"init_lora_weights {config['init_lora_weights']!r} goes with a base model that it changed"
        )
    if unknown := sorted(field for field, value in config.items() if field not in _KNOWN_FIELDS and value):
        raise AdapterRejected(f"{CONFIG_FILE} uses {unknown[0]}, which is not supported; train a plain LoRA without it")
    return config


def _rank(config: Mapping[str, object], max_rank: int) -> int:
    rank = config.get("r")
    if type(rank) is not int or not 1 <= rank <= max_rank:
        raise AdapterRejected(f"r must be a whole number from 1 to {max_rank}, not {rank!r}")
    return rank


def _layers(config: Mapping[str, object]) -> frozenset[int] | None:
    layers = config.get("layers_to_transform")
    if layers is None:
        return None
    numbers = layers if isinstance(layers, list) else [layers]
    if not numbers or not all(type(number) is int and 0 <= number < 1000 for number in numbers):
        raise AdapterRejected("layers_to_transform must list the numbers of the layers that are adapted, or be null")
    return frozenset(numbers)


def _alpha(config: Mapping[str, object]) -> float:
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise AdapterRejected(f"lora_alpha must be a positive number, not {alpha!r}")
    return float(alpha)


def _target_modules(config: Mapping[str, object]) -> tuple[str, ...]:
    modules = config.get("target_modules")
    if not isinstance(modules, list) or not modules or not all(isinstance(module, str) for module in modules):
        raise AdapterRejected("target_modules must be a list of module names")
    if unknown := sorted(module for module in modules if module.rpartition(".")[2] not in TARGET_MODULES):
        raise AdapterRejected(
            f"target_modules names {unknown[0]}; only {', '.join(sorted(TARGET_MODULES))} can be adapted"
        )
    return tuple(sorted(set(modules)))


def _targeted(modules: Iterable[str], targets: Iterable[str]) -> set[str]:
    """The modules that peft takes targets to mean: by their whole name, or by the end of it."""
    endings = tuple(f".{target}" for target in targets)
    return {module for module in modules if f".{module}".endswith(endings)}


def _in_layers(modules: Iterable[str], layers: frozenset[int] | None) -> set[str]:
    """The modules of those layers; all of them where layers is None."""
    numbered = ((module, _LAYER.search(module)) for module in modules)
    return {module for module, layer in numbered if layers is None or (layer and int(layer[1]) in layers)}


def _base_model(config: Mapping[str, object]) -> str:
    base_model = config.get("base_model_name_or_path")
    if not isinstance(base_model, str) or not base_model:
        raise AdapterRejected("base_model_name_or_path must name the model that the adapter was trained on")
    return base_model


def _parse_shapes(weights: bytes, rank: int) -> dict[str, tuple[int, int]]:
    """Check a safetensors file to its last byte; return (inputs, outputs) of each adapted module."""
    header_bytes = int.from_bytes(weights[:8], "little")
    if len(weights) < 8 or header_bytes > min(_MAX_HEADER_BYTES, len(weights) - 8):
        raise AdapterRejected(f"{WEIGHTS_FILE} is not a safetensors file")
    header = _parse_json(weights[8 : 8 + header_bytes], f"the header of {WEIGHTS_FILE}")
    header.pop("__metadata__", None)
    data = memoryview(weights)[8 + header_bytes :]
    halves: dict[str, dict[str, int]] = {}
    tensors = []
    for name, described in header.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise AdapterRejected(f"{WEIGHTS_FILE} holds {name[:200]!r}, which is not a LoRA weight")
        tensor = _parse_tensor(name, described)
        tensors.append(tensor)
        inner, outer = (tensor.rows, tensor.columns) if match["half"] == "A" else (tensor.columns, tensor.rows)
        if inner != rank:
            raise AdapterRejected(f"{name} has rank {inner}, but r in {CONFIG_FILE} is {rank}")
        halves.setdefault(match["module"], {})[match["half"]] = outer
    # Spans that neither overlap nor leave room hide no bytes between or behind the tensors.
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start != position:
            raise AdapterRejected(f"the tensors of {WEIGHTS_FILE} overlap or leave gaps")
        position = tensor.end
    if position != len(data):
        raise AdapterRejected(f"{WEIGHTS_FILE} is cut short or has bytes after its last tensor")
    for tensor in tensors:
        _check_numbers(tensor, data)
    for module, outers in halves.items():
        if len(outers) != 2:
            raise AdapterRejected(f"{module} has only one half of its LoRA")
    return {module: (outers["A"], outers["B"]) for module, outers in halves.items()}


class _Tensor(NamedTuple):
    """What a header says of a matrix. start, end: its bytes, counted from the end of the header."""

    name: str
    dtype: str
    rows: int
    columns: int
    start: int
    end: int


def _parse_tensor(name: str, described: object) -> _Tensor:
    """One header entry whose size agrees with its shape."""
    match described:
        case {"dtype": str(dtype), "shape": [int(rows), int(columns)], "data_offsets": [int(start), int(end)]} if (
            dtype in _DTYPE_BYTES
            and rows > 0
            and columns > 0
            and start >= 0
            and end - start == rows * columns * _DTYPE_BYTES[dtype]
        ):
            return _Tensor(name, dtype, rows, columns, start, end)
    raise AdapterRejected(f"{name} must be a matrix of F32, F16 or BF16 with offsets that agree with its shape")


def _check_numbers(tensor: _Tensor, data: memoryview) -> None:
    """Refuse infinities and what is no number: one of them would turn every answer of the adapter into noise."""
    exponent = _EXPONENTS[tensor.dtype]
    bits = np.frombuffer(data[tensor.start : tensor.end], exponent.dtype.newbyteorder("<"))
    if ((bits & exponent) == exponent).any():
        raise AdapterRejected(f"{tensor.name} holds an infinity, or what is no number")
