"""A model hub on loopback, as far as reading one goes, and the host that it sends readers of large files on to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Hub:
    """`commits` are folders by revision name; `token`, if there is one, must be shown to it."""

    url: str = ""
    files_url: str = ""
    token: str | None = None
    says_commit: bool = True
    commits: dict[str, Path] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # host, path, authorization

    def commit(self, revision: str) -> str:
        """The commit that a revision names now."""
        return hashlib.sha1(str(self.commits[revision]).encode()).hexdigest()  # noqa: S324  as git names commits


@contextmanager
def hub() -> Iterator[Hub]:
    state = Hub()

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            self._answer(send=True)

        def _answer(self, *, send: bool) -> None:
            authorization = self.headers.get("Authorization")
            host = "files" if f":{self.server.server_port}" in state.files_url else "hub"  # type: ignore[attr-defined]
            state.asked.append((host, self.path, authorization))
            *_, revision, name = self.path.split("/")
            at = next((key for key in state.commits if revision in {key, state.commit(key)}), None)
            if host == "hub" and state.token and authorization != f"Bearer {state.token}":
                return self._end(401)
            if at is None or not (state.commits[at] / name).is_file():
                return self._end(404)
            about = {"X-Repo-Commit": state.commit(at)} if state.says_commit else {}
            if host == "hub" and name.endswith(".safetensors"):
                return self._end(302, **about, Location=f"{state.files_url}/{revision}/{name}")
            content = (state.commits[at] / name).read_bytes()
            self._end(200, content if send else b"", **about | {"Content-Length": str(len(content))})
            return None

        def _end(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": "0"} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Answer) for _ in range(2)]
    state.url = f"http://127.0.0.1:{servers[0].server_port}"
    state.files_url = f"http://localhost:{servers[1].server_port}"
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield state
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
