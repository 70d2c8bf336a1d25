"""A small server that speaks the part of the Hugging Face hub's HTTP interface that publishing and fetching use.

Files are kept as the hub keeps them: commits of a repository, large files (safetensors, ONNX, WebAssembly) in an LFS
store. Source: huggingface_hub's requests, and huggingface.co/docs/hub/api.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

LARGE = (".safetensors", ".bin", ".onnx", ".wasm")
TOKENS = {"hf_alice": ("alice", True), "hf_reader": ("alice", False)}
"""User, and whether the token may write."""


@dataclass
class Repository:
    """commits: of each its hash and message, and its files: their hash, and whether it is of the LFS store."""

    private: bool
    commits: list[tuple[str, str, dict[str, tuple[str, bool]]]] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, tuple[str, bool]]) -> str:
        said = json.dumps([len(self.commits), message, sorted(files.items())])
        self.commits.append((hashlib.sha1(said.encode()).hexdigest(), message, files))
        return self.commits[-1][0]

    def find(self, revision: str) -> tuple[str, dict[str, tuple[str, bool]]] | None:
        for name, _, files in reversed(self.commits):
            if revision in ("main", name):
                return name, files
        return None


class StandIn(ThreadingHTTPServer):
    """asked: method and path of every request.  blobs: contents by their hash."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.store_address = f"http://localhost:{self.server_port}"  # another host, as the hub has
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []

    def keep(self, content: bytes, *, large: bool) -> tuple[str, bool]:
        """Stores a content; its hash as git or LFS calls it."""
        name = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
        self.blobs[name.hexdigest()] = content
        return name.hexdigest(), large

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Commits files to a repository, a new one if there is none; the commit's name."""
        repository = self.repositories.setdefault(name, Repository(private=False))
        return repository.commit(
            "added", {file: self.keep(content, large=file.endswith(LARGE)) for file, content in files.items()}
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, *said: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.route()

    def do_HEAD(self) -> None:
        self.route()

    def do_POST(self) -> None:
        self.route()

    def do_PUT(self) -> None:
        self.route()

    def route(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.user, self.writes = TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "), ("", False))
        for pattern, method in ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                method(self, *found.groups())
                return
        self.refuse(404, "no such address")

    def answer(self, status: int, content: bytes | dict[str, Any] = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        told = {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers
        for name, value in told.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, why: str, code: str = "") -> None:
        self.answer(status, {"error": why}, X_Error_Message=why, **({"X_Error_Code": code} if code else {}))

    def open(self, name: str) -> Repository | None:
        """The repository if there is one that the asking one may see, else a refusal is sent."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and name.partition("/")[0] != self.user):
            self.refuse(404, "Repository not found", "RepoNotFound")
            return None
        return found

    def whoami(self) -> None:
        if not self.user:
            self.refuse(401, "Invalid username or password.")
            return
        role = "write" if self.writes else "read"
        self.answer(200, {"name": self.user, "orgs": [], "auth": {"accessToken": {"role": role}}})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner, name = asked.get("organization") or self.user, asked["name"]
        if owner != self.user or not self.writes:
            self.refuse(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
            return
        url = {"url": f"{self.server.address}/{owner}/{name}"}
        if f"{owner}/{name}" in self.server.repositories:
            self.answer(409, {"error": "You already created this model repo", **url})
            return
        made = self.server.repositories[f"{owner}/{name}"] = Repository(asked.get("visibility") == "private")
        made.commit("initial commit", {".gitattributes": self.server.keep(b"*.safetensors filter=lfs\n", large=False)})
        self.answer(200, url)

    def describe(self, name: str) -> None:
        if found := self.open(name):
            commit, _, files = found.commits[-1]
            siblings = [{"rfilename": file} for file in files]
            self.answer(200, {"id": name, "sha": commit, "private": found.private, "siblings": siblings})

    def validate(self) -> None:
        text = json.loads(self.body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", text, re.S)
        metadata = yaml.safe_load(found[1]) if found else {}
        missing = [key for key in ("license", "library_name", "pipeline_tag") if not metadata.get(key)]
        errors = [{"message": f'"{key}" is required'} for key in missing]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if found := self.open(name):
            there = found.commits[-1][2]
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    **({"oid": there[file["path"]][0]} if file["path"] in there else {}),
                }
                for file in json.loads(self.body)["files"]
            ]
            self.answer(200, {"files": files})

    def batch(self, name: str) -> None:
        objects = [
            {
                "oid": file["oid"],
                "size": file["size"],
                "actions": {"upload": {"href": f"{self.server.store_address}/lfs/{file['oid']}"}},
            }
            for file in json.loads(self.body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, name: str) -> None:
        same = self.server.keep(self.body, large=True)[0] == name
        self.answer(200 if same else 400)

    def take_commit(self, name: str, revision: str) -> None:
        found = self.open(name)
        if not found:
            return
        if name.partition("/")[0] != self.user or not self.writes:
            self.refuse(403, "You don't have write access to this repo")
            return
        head, *lines = [json.loads(line) for line in self.body.splitlines()]
        if head["value"].get("parentCommit", found.commits[-1][0]) != found.commits[-1][0]:
            self.refuse(412, "A commit has happened since. Please refresh and try again.")
            return
        files = dict(found.commits[-1][2])
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = self.server.keep(base64.b64decode(value["content"]), large=False)
            elif kind == "lfsFile":
                assert value["oid"] in self.server.blobs
                files[value["path"]] = value["oid"], True
            else:
                assert kind == "deletedFile"
                del files[value["path"]]
        commit = found.commit(head["value"]["summary"], files)
        self.answer(200, {"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit})

    def resolve(self, name: str, revision: str, file: str) -> None:
        if not (repository := self.open(name)):
            return
        found = repository.find(revision)
        if found is None:
            self.refuse(404, "Revision not found", "RevisionNotFound")
            return
        commit, files = found
        if file not in files:
            self.refuse(404, "Entry not found", "EntryNotFound")
            return
        blob, large = files[file]
        content = self.server.blobs[blob]
        if large:
            place = f"{self.server.store_address}/lfs/{blob}"
            size = str(len(content))
            self.answer(302, Location=place, X_Repo_Commit=commit, X_Linked_ETag=f'"{blob}"', X_Linked_Size=size)
        else:
            self.answer(200, content, X_Repo_Commit=commit, ETag=f'"{blob}"', Content_Type="text/plain")

    def give(self, name: str) -> None:
        self.answer(200, self.server.blobs[name], ETag=f'"{name}"', Content_Type="application/octet-stream")


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"([\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/models/{NAME}", _Handler.describe),
    (rf"POST /api/models/{NAME}/preupload/{REVISION}", _Handler.preupload),
    (rf"POST /api/models/{NAME}/commit/{REVISION}", _Handler.take_commit),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(\w+)", _Handler.store),
    (r"(?:GET|HEAD) /lfs/(\w+)", _Handler.give),
    (rf"(?:GET|HEAD) /{NAME}/resolve/{REVISION}/(.+)", _Handler.resolve),
]


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A running server, empty."""
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
