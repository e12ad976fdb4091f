from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import sys
for name in ("torch", "transformers", "peft", "gguf", "safetensors", "tokenizers"):
    sys.modules[name] = None  # an import of it now fails
import gateway.app, gateway.cli.main
"""


def test_a_gateway_without_a_model_of_its_own_needs_no_model_library() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=120)
