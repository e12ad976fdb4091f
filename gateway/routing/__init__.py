"""Where a request goes: which replica of a fleet answers it, and which adapters each replica holds."""
