"""The tributary command."""
