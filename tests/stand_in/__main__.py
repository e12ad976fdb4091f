"""Serve until it is ended; the first line on standard output is the URL."""

from __future__ import annotations

import argparse
import asyncio
import signal

from tests.stand_in.faults import FAULTS
from tests.stand_in.server import Options, StandIn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stand_in", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 for any that is free")
    parser.add_argument("--model", default=Options.model, help="name that it serves under")
    parser.add_argument("--context", type=int, default=Options.context, help="tokens")
    parser.add_argument("--slots", type=int, default=Options.slots, help="adapters that it says it has room for")
    parser.add_argument("--chunks", type=int, default=Options.chunks, help="tokens of an answer, one a chunk")
    parser.add_argument("--delay-ms", type=float, default=0, help="before the first byte")
    parser.add_argument("--chunk-ms", type=float, default=0, help="between chunks; 0 sends them in one burst")
    parser.add_argument("--load-ms", type=float, default=0, help="to load an adapter")
    parser.add_argument("--seed", type=int, default=0, help="of the answers and of which of them fail")
    parser.add_argument("--fail-rate", type=float, default=0, help="part of the generations that fail")
    parser.add_argument("--fail-kinds", nargs="+", choices=FAULTS, default=Options.fail_kinds)
    parser.add_argument("--no-scale-out", dest="scale_out", action="store_false", help="no /inference/v1/generate")
    arguments = vars(parser.parse_args())
    port = arguments.pop("port")
    arguments["fail_kinds"] = tuple(arguments["fail_kinds"])
    asyncio.run(serve(Options(**arguments), port))


async def serve(options: Options, port: int) -> None:
    stand_in = StandIn(options)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(stand_in.connection, "127.0.0.1", port, reuse_address=True, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGINT, ended.set)
    await ended.wait()
    server.close()
    for connection in list(stand_in.connections):
        connection.transport.abort()


if __name__ == "__main__":
    main()
