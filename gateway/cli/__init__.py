"""The `tributary` command, one module for each group of commands."""

from gateway.cli.main import main

__all__ = ["main"]
