"""vLLM servers behind the engine protocol: one engine is one server, over HTTP."""
