"""The gateway: HTTP API, engines, the pipeline of an answer, and the command line."""
