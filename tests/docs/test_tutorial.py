"""The tutorial is run, command by command, as a newcomer would."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path.cwd()
TUTORIAL = ROOT / "docs" / "tutorial.md"


def commands(text: str) -> str:
    """The indented blocks, but for the one that makes the environment, which this test runs in."""
    blocks = re.findall(r"(?:^(?: {4}.*\n)+)", text, re.MULTILINE)
    return "\n".join(re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in blocks if "make install" not in block)


@pytest.mark.model
def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TRIBUTARY__SERVER__PORT": str(port),
    }
    script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + commands(TUTORIAL.read_text())
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "unchanged" not in said
    assert "Petra Voss" in said
    assert "receipt verified" in said
    assert "fsck: ok" in said
    ada, ben = (int(re.search(rf"{who} earned (\d+) nano", said)[1]) for who in ("ada", "ben"))
    assert ada > 10 * ben
