"""A tiny hub on loopback: serves folders as repositories, the way the hub's own addresses do."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class HubServer:
    """Repositories by name; each has one commit, also under "main" and the tags given.

    Args:
        repositories: "owner/name" -> folder.
        tags: further names of the one commit.
    """

    def __init__(self, repositories: dict[str, Path], tags: tuple[str, ...] = ("v1",)) -> None:
        self.repositories, self.tags = repositories, tags
        self.requests: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests[f"{self.command} {self.path}"] += 1
                status, headers, body = outer.answer(self.path.partition("?")[0])
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @staticmethod
    def commit(folder: Path) -> str:
        """Changes with the folder's content."""
        digest = hashlib.sha1()
        for path in sorted(folder.iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        words = path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            return self._info("/".join(words[2:4]), words[5] if words[4:5] == ["revision"] else "main")
        if len(words) < 5:
            return 404, {}, b""
        name, revision, file = "/".join(words[:2]), words[3], "/".join(words[4:])
        folder = self.repositories.get(name)
        if folder is None or words[2] != "resolve" or revision not in self._names(folder):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if not (folder / file).is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        body = (folder / file).read_bytes()
        tag = hashlib.sha256(body).hexdigest()
        return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": self.commit(folder)}, body

    def _names(self, folder: Path) -> tuple[str, ...]:
        return (self.commit(folder), "main", *self.tags)

    def _info(self, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        folder = self.repositories.get(name)
        if folder is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if revision not in self._names(folder):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
        value = {"id": name, "modelId": name, "sha": self.commit(folder), "siblings": files, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
