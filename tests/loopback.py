"""A model hub of our own on loopback: as much of one as huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from conftest import TOP

MODEL = "lab/tiny-llama"
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """As much of a hub as huggingface_hub asks of one: repositories are folders, each with one revision."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.cut: dict[str, int] = {}  # file name -> bytes after which its download breaks off
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        self.server.asked.append(f"{self.command} {self.path}")

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        asked = re.fullmatch(
            r"/(?:api/models/|api/datasets/|datasets/)?([^/]+/[^/]+)/(tree|revision|resolve)/([^/]+)/?(.*)", path
        )
        if asked is None or asked[1] not in self.server.repositories:
            return self.refuse(401 if "Authorization" not in self.headers else 404, "RepoNotFound")
        repository, kind, revision, name = asked.groups()
        folder = self.server.repositories[repository]
        if revision not in (REVISION, "main"):
            return self.refuse(404, "RevisionNotFound")
        if kind == "revision":
            return self.answer({"id": repository, "sha": REVISION})
        if kind == "tree":
            found = (folder / name).rglob("*") if "recursive=true" in self.path.lower() else (folder / name).glob("*")
            return self.answer([entry(folder, path) for path in sorted(found)])
        if repository in self.server.gated:
            return self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        if not (folder / name).is_file():
            return self.refuse(404, "EntryNotFound")
        return self.send_file(folder / name)

    do_HEAD = do_GET

    def answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, file: Path) -> None:
        body = file.read_bytes()
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(ranged[1]), int(ranged[2] or len(body) - 1)) if ranged else (0, len(body) - 1)
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
        self.send_header("ETag", f'"{tag(file)}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        if self.command == "GET":
            stop = min(end + 1, self.server.cut.get(file.name, end + 1))
            self.wfile.write(body[start:stop])
            self.close_connection = stop <= end


def entry(folder: Path, path: Path) -> dict[str, Any]:
    """A line of the repository's listing."""
    at = {"path": str(path.relative_to(folder))}
    if path.is_dir():
        return {**at, "type": "directory", "oid": "0" * 40, "size": 0}
    return {**at, "type": "file", "oid": tag(path), "size": path.stat().st_size}


def tag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def environment_of(hub: Hub, home: Path, **environment: str) -> dict[str, str]:
    """A process's environment in which this is the hub; huggingface_hub reads it when imported."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(TOP / "src"),
    }
    return inherited | settings | environment
