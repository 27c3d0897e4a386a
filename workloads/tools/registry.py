"""A registry of images on loopback, and a client that puts files into it and gets them back.

The registry is `docker-registry`; the client speaks the OCI distribution specification. Not for images of the store.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from runtime.errors import TareError

_PROGRAM = "docker-registry"
_REPOSITORY = "tare/delivery"
_START_S = 30.0
_TRANSFER_S = 600.0
_CHUNK_BYTES = 1 << 20
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@contextmanager
def serving(directory: Path) -> Iterator[Registry]:
    """A registry on a free port of loopback with its data below `directory`; it ends with this process.

    Raises TareError when the program is not installed or does not start.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise TareError("registry", f"{_PROGRAM} is not installed", f"install the package {_PROGRAM}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration, log = directory / "registry.yml", directory / "registry.log"
    configuration.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{directory}/data'}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    argv = ("setpriv", "--pdeathsig", "KILL", program, "serve", str(configuration))
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    with process:
        try:
            _await(port, process, log)
            yield Registry(port)
        finally:
            process.kill()


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < ends:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    said = log.read_text(errors="replace").strip()[-300:] or "it said nothing"
    raise TareError("registry", f"{_PROGRAM} does not start: {said}")


class Registry:
    """A registry that listens on `port` of loopback."""

    def __init__(self, port: int) -> None:
        self._port = port

    def put(self, file: Path, tag: str) -> int:
        """Send `file` as the one layer of an image called `tag`; the bytes of all bodies that were sent."""
        with closing(self._connect()) as connection:
            layer = self._upload(connection, file)
            empty = file.with_suffix(".config")
            empty.write_bytes(b"{}")
            config = self._upload(connection, empty)
            document = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": [layer]}
            body = json.dumps(document).encode()
            self._ask(connection, "PUT", f"manifests/{tag}", 201, body, {"Content-Type": _MANIFEST})
        return int(layer["size"]) + int(config["size"]) + len(body)

    def get(self, tag: str, file: Path) -> None:
        """Fetch the layer of `tag` into the new `file`. Raises TareError when it is not what its digest says."""
        with closing(self._connect()) as connection:
            manifest = json.loads(self._ask(connection, "GET", f"manifests/{tag}", 200, headers={"Accept": _MANIFEST}))
            digest = manifest["layers"][0]["digest"]
            connection.request("GET", f"/v2/{_REPOSITORY}/blobs/{digest}")
            response = connection.getresponse()
            if response.status != 200:
                raise TareError("registry", f"answers {response.status} to the request for a blob")
            found = hashlib.sha256()
            with file.open("xb") as out:
                while data := response.read(_CHUNK_BYTES):
                    found.update(data)
                    out.write(data)
        if f"sha256:{found.hexdigest()}" != digest:
            raise TareError("registry", f"sent something else than {digest}")

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TRANSFER_S)

    def _upload(self, connection: http.client.HTTPConnection, file: Path) -> dict[str, str | int]:
        size_bytes = file.stat().st_size
        with file.open("rb") as content:
            digest = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
            connection.request("POST", f"/v2/{_REPOSITORY}/blobs/uploads/", headers={"Content-Length": "0"})
            response = connection.getresponse()
            response.read()
            if response.status != 202:
                raise TareError("registry", f"answers {response.status} to the begin of an upload")
            place = urlsplit(response.headers["Location"])
            content.seek(0)
            headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
            path = f"{place.path}?{place.query}&{urlencode({'digest': digest})}"
            connection.request("PUT", path, body=content, headers=headers)
            response = connection.getresponse()
            response.read()
            if response.status != 201:
                raise TareError("registry", f"answers {response.status} to an upload")
        return {"mediaType": "application/octet-stream", "digest": digest, "size": size_bytes}

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        status: int,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        connection.request(method, f"/v2/{_REPOSITORY}/{path}", body=body, headers=headers or {})
        response = connection.getresponse()
        data = response.read()
        if response.status != status:
            raise TareError("registry", f"answers {response.status} to {method} {path}: {data[:200]!r}")
        return data
