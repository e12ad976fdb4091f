"""Run a command that ends when the process that started it does, even by SIGKILL. Linux only; elsewhere it just runs.

A server that outlives its gateway would keep the GPU's memory. Run as a file, so that it imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the command that the arguments are; the first is the process that starts it."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):
            sys.exit("the gateway ended before its vLLM server began")
    os.execvp(command[0], command)  # noqa: S606  the operator's command


if __name__ == "__main__":
    main()
