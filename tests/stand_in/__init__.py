"""A stand-in for a vLLM server: its routes and its exact bytes, pseudo answers, and faults on request.

For load and for failures that a real engine cannot be made to show. `python -m tests.stand_in --port 0` prints its URL
as its first line once it serves; `tests.stand_in.kit` starts one from Python.
"""
