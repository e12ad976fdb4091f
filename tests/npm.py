"""Packages from npm that tests run under node: installed once, into the user's cache, from a lock in the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock


def modules(source: Path, *, cache: str, required: str) -> Path:
    """The folder node_modules for a package.json and its lock; without node or npm the test that asks is skipped.

    source: their folder. cache: name of the folder in the cache. required: the variable of the environment that is set
    where a missing node or npm is a failure and no excuse.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        (pytest.fail if os.environ.get(required) else pytest.skip)("node and npm are needed for this")
    lock = source / "package-lock.json"
    home = os.environ.get("XDG_CACHE_HOME")
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    folder = (Path(home) if home else Path.home() / ".cache") / "tributary" / cache / digest
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "installed").exists():
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(source / name, folder)
            # No package's own install script is run; none of these needs one.
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(command, cwd=folder, check=True, timeout=300)
            (folder / "installed").touch()
    return folder / "node_modules"


def node(script: Path, *arguments: str, stdin: str = "", timeout_s: float = 120) -> str:
    """Run a script of ours under node and return what it prints."""
    command = ["node", str(script), *arguments]
    ran = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
