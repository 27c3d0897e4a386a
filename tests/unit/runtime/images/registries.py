"""A registry in this process, honest or not: what it stores is plain data, and faults are switched on by name."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from runtime.images.layout import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    LAYER_GZIP,
    MANIFEST,
    architecture,
)
from tests.unit.runtime.images.trees import Member, archive


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class FakeRegistry:
    """Content, faults, and what was asked. Content is kept as (media type, bytes) by `NAME/REFERENCE`."""

    def __init__(self) -> None:
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.fail_first: dict[str, int] = {}  # path part -> answers of 503 before it works
        self.cut: dict[str, int] = {}  # digest -> bytes after which the connection breaks, each time
        self.no_ranges = False
        self.basic: str | None = None  # USER:PASSWORD that is asked for
        self.token: str | None = None  # the bearer token that is asked for; given to `basic`
        self.answer_digest: str | None = None
        self.port = 0
        self.numbers = itertools.count()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add_blob(self, data: bytes) -> dict[str, Any]:
        self.blobs[sha256(data)] = data
        return {"digest": sha256(data), "size": len(data)}

    def add_image(
        self, name: str, layers: Sequence[Sequence[Member]], *, tag: str = "latest", docker: bool = False, **config: Any
    ) -> dict[str, Any]:
        """Store an image of these layers; return its manifest."""
        plain = [archive(members).getvalue() for members in layers]
        document = {
            "architecture": architecture(),
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in plain]},
            **config,
        }
        kinds = (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER) if docker else (MANIFEST, CONFIG, LAYER_GZIP)
        manifest = {
            "schemaVersion": 2,
            "mediaType": kinds[0],
            "config": {"mediaType": kinds[1], **self.add_blob(json.dumps(document).encode())},
            "layers": [{"mediaType": kinds[2], **self.add_blob(gzip.compress(data, mtime=0))} for data in plain],
        }
        self.add_manifest(name, tag, manifest)
        return manifest

    def add_manifest(self, name: str, tag: str, manifest: Any, kind: str | None = None) -> str:
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        kind = kind or str(manifest["mediaType"])
        self.manifests[f"{name}/{tag}"] = self.manifests[f"{name}/{sha256(data)}"] = (kind, data)
        return sha256(data)

    def asked(self, method: str, part: str) -> list[dict[str, str]]:
        """The headers of the requests of this method whose path has this part."""
        return [headers for verb, path, headers in self.requests if verb == method and part in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: FakeRegistry

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def handle_any(self) -> None:
        registry, path = self.registry, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        registry.requests.append((self.command, self.path, dict(self.headers.items())))
        for part, left in registry.fail_first.items():
            if part in path and left:
                registry.fail_first[part] -= 1
                return self.answer(503, b"later")
        if path == "/token":
            right = self.headers.get("Authorization") == _basic(registry.basic)
            return self.answer(200, json.dumps({"token": registry.token}).encode()) if right else self.answer(401)
        if not self.allowed():
            return None
        manifest = re.fullmatch(r"/v2/(.+)/manifests/(.+)", path)
        blob = re.fullmatch(r"/v2/(.+)/blobs/(sha256:.+)", path)
        if manifest is not None:
            return self.manifest(f"{manifest[1]}/{manifest[2]}", body)
        if blob is not None:
            return self.blob(blob[2])
        if "/blobs/uploads/" in path:
            return self.upload(path, body)
        return self.answer(404)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = handle_any  # noqa: N815

    def allowed(self) -> bool:
        registry, said = self.registry, self.headers.get("Authorization")
        if registry.token is not None and said != f"Bearer {registry.token}":
            realm = f'Bearer realm="http://{registry.host}/token",service="test",scope="repository:x:pull"'
            self.answer(401, headers={"WWW-Authenticate": realm})
            return False
        if registry.token is None and registry.basic is not None and said != _basic(registry.basic):
            self.answer(401, headers={"WWW-Authenticate": 'Basic realm="test"'})
            return False
        return True

    def manifest(self, key: str, body: bytes) -> None:
        if self.command == "PUT":
            name, _, tag = key.rpartition("/")
            digest = self.registry.add_manifest(name, tag, body, self.headers["Content-Type"])
            digest = self.registry.answer_digest or digest
            return self.answer(201, headers={"Docker-Content-Digest": digest})
        if key not in self.registry.manifests:
            return self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
        kind, data = self.registry.manifests[key]
        digest = self.registry.answer_digest or sha256(data)
        return self.answer(200, data, {"Content-Type": kind, "Docker-Content-Digest": digest})

    def blob(self, digest: str) -> None:
        data = self.registry.blobs.get(digest)
        if data is None:
            return self.answer(404)
        status, headers = 200, {}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = 0
        if wanted is not None and not self.registry.no_ranges:
            start = int(wanted[1])
            status, headers = 206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return self.answer(status, data[start:], headers, cut=self.registry.cut.get(digest))

    def upload(self, path: str, body: bytes) -> None:
        uploads, key = self.registry.uploads, path.rpartition("/")[2]
        query = parse_qs(urlsplit(self.path).query)
        if self.command == "POST":
            if query.get("mount", [""])[0] in self.registry.blobs:
                return self.answer(201)
            key = str(next(self.registry.numbers))
            uploads[key] = b""
            return self.answer(202, headers={"Location": f"{path}{key}?state=secret"})
        if self.command == "GET":
            headers = {"Location": self.path, "Range": f"0-{len(uploads[key]) - 1}"}
            return self.answer(204, headers=headers)
        uploads[key] += body
        if self.command == "PATCH":
            return self.answer(202, headers={"Location": self.path, "Range": f"0-{len(uploads[key]) - 1}"})
        digest = query["digest"][0]
        if sha256(uploads[key]) != digest:
            return self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        self.registry.blobs[digest] = uploads.pop(key)
        return self.answer(201, headers={"Docker-Content-Digest": digest})

    def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, *, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


def _basic(credentials: str | None) -> str:
    import base64

    return "Basic " + base64.b64encode((credentials or "").encode()).decode()


@contextmanager
def serving() -> Iterator[FakeRegistry]:
    """A registry that listens on a free port of loopback."""
    registry = FakeRegistry()
    handler = type("Handler", (_Handler,), {"registry": registry})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    registry.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
