"""A tiny hub on loopback: serves folders as repositories and takes uploads, as the hub's own addresses do."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.loopback import Loopback, Quiet


class HubServer(Loopback):
    """Repositories by name; each has one commit, also under "main" and the tags given.

    Args:
        repositories: "owner/name" -> folder.
        tags: further names of the one commit.
        home: folder in which repositories are made that are uploaded.
        token: who may upload; others are refused.
        datasets: names that belong to datasets.
    """

    def __init__(
        self,
        repositories: dict[str, Path],
        tags: tuple[str, ...] = ("v1",),
        home: Path | None = None,
        token: str = "",
        datasets: tuple[str, ...] = (),
    ) -> None:
        self.repositories, self.tags = repositories, tags
        self.home, self.token, self.datasets = home, token, datasets
        self.made: dict[str, dict[str, Any]] = {}
        self.messages: list[str] = []
        self._large: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Path and lower-case headers of every GET."""
        self.large_bytes = 1 << 30
        """From this size on a file lies elsewhere, where a redirect leads, under its SHA-256."""
        self.elsewhere = ""
        """The root of that other server; empty: this one."""
        self.cuts: list[int] = []
        """Bytes after which the next answers of that server end."""
        self.statuses: list[int] = []
        """Statuses that it gives first."""
        self.ranges = True
        """Whether it gives parts."""
        outer = self

        class Handler(Quiet, BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests[f"{self.command} {self.path}"] += 1
                path = self.path.partition("?")[0]
                told = {name.lower(): value for name, value in self.headers.items()}
                if self.command == "GET":
                    outer.asked.append((path, told))
                if not path.startswith("/elsewhere/"):
                    self.say(*outer.answer(path))
                    return
                status, headers, body = outer.part(path, told)
                cut = outer.cuts.pop(0) if outer.cuts and status < 400 else None
                if cut is None:
                    self.say(status, headers, body)
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut])
                self.close_connection = True

            def do_POST(self) -> None:
                outer.requests[f"{self.command} {self.path}"] += 1
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                known = self.headers.get("Authorization") == f"Bearer {outer.token}"
                self.say(*outer.take(self.path.partition("?")[0], content, known))

            def do_PUT(self) -> None:
                self.do_POST()

            def do_HEAD(self) -> None:
                self.do_GET()

        super().__init__(Handler)

    @staticmethod
    def commit(folder: Path) -> str:
        """Changes with the folder's content."""
        digest = hashlib.sha1()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        words = path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            return self._info("/".join(words[2:4]), words[5] if words[4:5] == ["revision"] else "main")
        if words[:2] == ["api", "datasets"] and "/".join(words[2:4]) in self.datasets:
            return self._json({"id": "/".join(words[2:4]), "sha": "0" * 40, "siblings": [], "tags": []})
        if len(words) < 5:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        name, revision, file = "/".join(words[:2]), words[3], "/".join(words[4:])
        folder = self.repositories.get(name)
        if folder is None or words[2] != "resolve" or revision not in self._names(folder):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if not (folder / file).is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        body = (folder / file).read_bytes()
        tag = hashlib.sha256(body).hexdigest()
        if len(body) < self.large_bytes:
            return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": self.commit(folder)}, body
        place = f"{self.elsewhere or self.url}/elsewhere/{name}/{file}"
        headers = {"Location": place, "X-Linked-ETag": f'"{tag}"', "X-Linked-Size": str(len(body))}
        return 302, {**headers, "X-Repo-Commit": self.commit(folder)}, b""

    def part(self, path: str, told: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """A file that lies elsewhere, or what is asked of it."""
        if self.statuses:
            return self.statuses.pop(0), {}, b""
        words = path.removeprefix("/elsewhere/").split("/")
        body = (self.repositories["/".join(words[:2])] / "/".join(words[2:])).read_bytes()
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        first = int(told.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if not self.ranges or "range" not in told or told.get("if-range", tag) != tag:
            return 200, {"ETag": tag}, body
        if first >= len(body):
            return 416, {"Content-Range": f"bytes */{len(body)}"}, b""
        reach = f"bytes {first}-{len(body) - 1}/{len(body)}"
        return 206, {"ETag": tag, "Content-Range": reach}, body[first:]

    def take(self, path: str, content: bytes, is_known: bool) -> tuple[int, dict[str, str], bytes]:
        """What an upload asks for, in the order in which it asks."""
        if path.startswith("/large/"):
            self._large[path.removeprefix("/large/")] = content
            return 200, {}, b""
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not is_known:
            return 401, {}, b'{"error": "Invalid username or password."}'
        words = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(content))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(content))
        name, step = "/".join(words[2:4]), words[4]
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if step == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(content)["files"]
            ]
            return self._json({"files": files})
        assert step == "commit", path
        return self._commit(self.repositories[name], name, content)

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {}, json.dumps({"url": f"{self.url}/{name}"}).encode()
        assert self.home is not None
        folder = self.home / asked["organization"] / asked["name"]
        folder.mkdir(parents=True)
        self.repositories[name], self.made[name] = folder, asked
        return self._json({"url": f"{self.url}/{name}", "name": name, "id": name})

    def _batch(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        def place(oid: str) -> dict[str, Any]:
            return {"upload": {"href": f"{self.url}/large/{oid}"}}

        objects = [{**one, "actions": place(one["oid"])} for one in asked["objects"]]
        return self._json({"transfer": "basic", "objects": objects})

    def _commit(self, folder: Path, name: str, content: bytes) -> tuple[int, dict[str, str], bytes]:
        for line in content.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.messages.append(value["summary"])
            elif entry["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                large = self._large[value["oid"]]
                assert hashlib.sha256(large).hexdigest() == value["oid"]
                (folder / value["path"]).write_bytes(large)
        commit = self.commit(folder)
        return self._json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}
        )

    @staticmethod
    def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

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
