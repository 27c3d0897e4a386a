"""Images to and from a real registry on loopback: passwords, tokens, kills, and what other tools make of them."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest

from runtime.command import run
from runtime.errors import TareError
from runtime.images.archives import load
from runtime.images.auth import Credentials
from runtime.images.layout import MANIFEST
from runtime.images.pull import pull
from runtime.images.push import push
from runtime.images.saving import save
from runtime.images.store import Image, ImageStore
from runtime.images.transport import Access
from runtime.spec import ImageRef
from tests.conftest import skip_or_fail
from tests.engines import registry
from tests.unit.runtime.images.trees import archive, census, member

ROOT = Path(__file__).resolve().parents[2]
# `htpasswd -nbB user secret`: a registry takes bcrypt alone.
HTPASSWD = "user:$2b$05$GM7.gIG/hcf2Akmu2uPgeeowNhKOf8GDesyQLMnVtBBmwkWKpAalO\n"
QUICK = Access(attempts=2, wait=lambda seconds: None)

pytestmark = pytest.mark.usefixtures("root_user")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with registry(tmp_path / "registry") as host:
        yield host


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "root")


def image_of(store: ImageStore, *layers: bytes, name: str = "test/image:1") -> Image:
    """An image of these archives."""
    made = []
    for data in layers:
        path = store.root.parent / "layer.tar"
        path.write_bytes(data)
        made.append(store.put_layer(path))
    return store.add(ImageRef.parse(name), made, labels={})


def plain(store: ImageStore, size_bytes: int = 1000) -> Image:
    content = os.urandom(size_bytes)
    return image_of(
        store, archive([member("a", b"1"), member("b", b"2")]).getvalue(), archive([member("big", content)]).getvalue()
    )


def tool(*words: str) -> str:
    if shutil.which(words[0]) is None:
        skip_or_fail(f"{words[0]} is not installed")
    return run(words, timeout_s=120).stdout.decode()


def test_there_and_back(server: str, store: ImageStore, tmp_path: Path) -> None:
    image = plain(store, 40 << 20)  # more than goes in one piece
    ref = ImageRef.parse(f"{server}/deep/path/image:tag")
    assert push(store, image, ref, QUICK) == image.digest
    back = pull(ImageStore(tmp_path / "other"), ref, QUICK)
    assert (back.digest, back.id) == (image.digest, image.id)
    for one, two in zip(image.layers, back.layers, strict=True):
        ours, theirs = census(one.directory), census(two.directory)
        assert list(ours.values())[1:] == list(theirs.values())[1:], "all but the root, which no member describes"
    by_digest = pull(ImageStore(tmp_path / "third"), ImageRef.parse(f"{server}/deep/path/image@{image.digest}"), QUICK)
    assert by_digest.digest == image.digest


def test_other_tools_read_what_is_pushed_and_we_what_they_push(server: str, store: ImageStore, tmp_path: Path) -> None:
    image = plain(store)
    push(store, image, ImageRef.parse(f"{server}/ours"), QUICK)
    insecure = ("--src-tls-verify=false", "--dest-tls-verify=false")
    for kind, form in (("v2s2", "gzip"), ("oci", "zstd")):
        target = f"docker://{server}/{kind}"
        tool(
            "skopeo",
            "copy",
            *insecure,
            "--format",
            kind,
            "--dest-compress-format",
            form,
            f"docker://{server}/ours",
            target,
        )
    for name in ("v2s2", "oci"):
        back = pull(ImageStore(tmp_path / name), ImageRef.parse(f"{server}/{name}"), QUICK)
        assert [layer.digest for layer in back.layers] == [layer.digest for layer in image.layers]
        assert (back.layers[0].directory / "a").read_bytes() == b"1"


def test_unpacking_agrees_with_umoci(server: str, store: ImageStore, tmp_path: Path) -> None:
    """The same layer, unpacked by another tool, is the same tree."""
    tree = tmp_path / "tree"
    (tree / "dir/sub").mkdir(parents=True)
    (tree / "dir/file").write_bytes(os.urandom(5000))
    (tree / "dir/link").symlink_to("../x")
    os.link(tree / "dir/file", tree / "twin")
    os.chown(tree / "dir/file", 12, 34)
    (tree / "dir/sub").chmod(0o2751)
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.mkfifo(tree / "fifo")
    os.setxattr(tree / "dir/file", "user.colour", b"red")
    packed = run(["tar", "-C", str(tree), "--xattrs", "--format=posix", "-c", "."], timeout_s=30).stdout
    image = image_of(store, packed)
    push(store, image, ImageRef.parse(f"{server}/tree"), QUICK)
    tool("skopeo", "copy", "--src-tls-verify=false", f"docker://{server}/tree", f"oci:{tmp_path}/oci:tree")
    tool("umoci", "unpack", "--image", f"{tmp_path}/oci:tree", f"{tmp_path}/umoci")
    ours, theirs = image.layers[0].directory, tmp_path / "umoci/rootfs"
    show = "find . -printf '%p %y %m %U %G %l %T@ %n\\n' | sort; getfattr -R -d . 2>/dev/null | sort"
    assert run(["sh", "-c", show], cwd=ours, timeout_s=30) == run(["sh", "-c", show], cwd=theirs, timeout_s=30)


def test_a_password(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    with registry(tmp_path / "registry", [f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}"]) as host:
        ref, image = ImageRef.parse(f"{host}/private"), plain(store)
        right = Access(credentials=Credentials("user", "secret"))
        push(store, image, ref, right)
        assert pull(ImageStore(tmp_path / "other"), ref, right).digest == image.digest
        with pytest.raises(TareError, match="--creds"):
            pull(ImageStore(tmp_path / "third"), ref, QUICK)
        with pytest.raises(TareError, match="access denied"):
            pull(ImageStore(tmp_path / "third"), ref, Access(credentials=Credentials("user", "wrong")))


def _jwt(key: Path, chain: Path, service: str, scope: str) -> str:
    """A token as the registry's documentation has it, signed by openssl."""
    import time

    name, _, actions = scope.removeprefix("repository:").rpartition(":")
    now = int(time.time())
    certificate = "".join(chain.read_text().split("-----")[2].split())
    claims = {
        "iss": "test",
        "sub": "",
        "aud": service,
        "exp": now + 300,
        "nbf": now - 10,
        "iat": now,
        "jti": "1",
        "access": [{"type": "repository", "name": name, "actions": actions.split(",")}],
    }
    parts = [json.dumps(part).encode() for part in ({"typ": "JWT", "alg": "RS256", "x5c": [certificate]}, claims)]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signed = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=text, capture_output=True, check=True)
    return (text + b"." + base64.urlsafe_b64encode(signed.stdout).rstrip(b"=")).decode()


@contextmanager
def token_server(directory: Path) -> Iterator[str]:
    """HOST:PORT of an authorization server that knows `user:secret`, with its key in `directory`."""
    key, chain = directory / "key.pem", directory / "chain.pem"
    subject = ("-subj", "/CN=test", "-days", "2")
    run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(chain), *subject],
        timeout_s=60,
    )

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            right = self.headers.get("Authorization") == Credentials("user", "secret").basic()
            self.send_response(200 if right else 401)
            self.end_headers()
            if right:
                token = _jwt(key, chain, query["service"][0], query["scope"][0])
                self.wfile.write(json.dumps({"token": token}).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_token(store: ImageStore, tmp_path: Path) -> None:
    with token_server(tmp_path) as tokens:
        lines = f"realm: 'http://{tokens}/token', service: reg, issuer: test, rootcertbundle: {tmp_path}/chain.pem"
        with registry(tmp_path / "registry", [f"auth: {{token: {{{lines}}}}}"]) as host:
            ref, image = ImageRef.parse(f"{host}/with/token"), plain(store)
            right = Access(credentials=Credentials("user", "secret"))
            push(store, image, ref, right)
            assert pull(ImageStore(tmp_path / "other"), ref, right).digest == image.digest
            with pytest.raises(TareError, match="authorization server answered 401"):
                pull(ImageStore(tmp_path / "third"), ref, QUICK)


def test_a_killed_pull_goes_on_where_it_was(server: str, store: ImageStore, tmp_path: Path) -> None:
    image, ref = plain(store, 60 << 20), ImageRef.parse(f"{server}/large")
    push(store, image, ref, QUICK)
    code = (
        "import sys; from pathlib import Path; from runtime.images import pull;"
        "from runtime.images.store import ImageStore; from runtime.spec import ImageRef; pull._CHUNK_BYTES = 4096;"
        "pull.pull(ImageStore(Path(sys.argv[1])), ImageRef.parse(sys.argv[2]))"
    )
    other = ImageStore(tmp_path / "other")
    blob = other.directory / "partial" / f"blob-{image.layers[1].digest[7:]}"
    with subprocess.Popen([sys.executable, "-c", code, str(other.root), str(ref)], cwd=ROOT) as process:
        while not (blob.exists() and blob.stat().st_size > 1 << 20):
            assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
    here = blob.stat().st_size
    assert 0 < here < image.layers[1].directory.joinpath("big").stat().st_size
    assert other.images() == []
    lines: list[str] = []
    assert pull(other, ref, QUICK, say=lines.append).digest == image.digest
    assert not blob.exists()
    assert len(other.sweep(unneeded=True)) <= 1, "the dead one's directory"


def test_a_removal_killed_at_any_moment_spoils_no_later_pull(server: str, store: ImageStore, tmp_path: Path) -> None:
    files = [archive([member(f"{layer}-{number}", b"x") for number in range(1000)]).getvalue() for layer in range(3)]
    image, ref = image_of(store, *files), ImageRef.parse(f"{server}/many")
    push(store, image, ref, QUICK)
    expected = [sorted(os.listdir(layer.directory)) for layer in image.layers]  # noqa: PTH208 - names alone
    code = (
        "import sys; from pathlib import Path; from runtime.images.store import ImageStore;"
        "from runtime.images.collect import remove_image; store = ImageStore(Path(sys.argv[1]));"
        "sys.stdin.read(1); remove_image(store, sys.argv[2], force=True)"
    )
    other = ImageStore(tmp_path / "other")
    for number in range(4):
        pulled = pull(other, ref, QUICK)
        assert [sorted(os.listdir(layer.directory)) for layer in pulled.layers] == expected  # noqa: PTH208
        command = [sys.executable, "-c", code, str(other.root), str(ref)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2 + 0.03 * number)
            process.kill()
        if number % 2:
            other.sweep(unneeded=True)
            assert other.sweep(unneeded=True) == []


def test_a_registry_with_tls_on_loopback(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=elsewhere", "-keyout", str(key)]
    tool("openssl", "req", "-x509", *words, "-out", str(certificate))
    monkeypatch.setenv("REGISTRY_HTTP_TLS_CERTIFICATE", str(certificate))
    monkeypatch.setenv("REGISTRY_HTTP_TLS_KEY", str(key))
    with registry(tmp_path / "registry") as host:
        image, ref = plain(store, 40 << 20), ImageRef.parse(f"{host}/a/b")
        push(store, image, ref, QUICK)
        assert pull(ImageStore(tmp_path / "other"), ref, QUICK).digest == image.digest


def test_what_a_killed_pull_left_is_swept(server: str, store: ImageStore, tmp_path: Path) -> None:
    other = ImageStore(tmp_path / "other")
    (other.directory / "partial").mkdir(parents=True)
    (other.directory / "partial" / f"blob-{'0' * 64}").write_bytes(b"half")
    assert len(other.sweep(unneeded=True)) == 1
    assert list((other.directory / "partial").iterdir()) == []


def test_a_blob_changed_on_the_registrys_disk_is_noticed(server: str, store: ImageStore, tmp_path: Path) -> None:
    image, ref = plain(store, 100_000), ImageRef.parse(f"{server}/x")
    push(store, image, ref, QUICK)
    number = image.layers[1].digest[7:]
    data = tmp_path / "registry/data/docker/registry/v2/blobs/sha256" / number[:2] / number / "data"
    whole = data.read_bytes()
    for wrong, why in ((whole[:-10] + bytes(range(10)), "its content is"), (whole[:5000], "ends at|content")):
        data.write_bytes(wrong)
        other = ImageStore(tmp_path / "other")
        with pytest.raises(TareError, match=why):
            pull(other, ref, QUICK)
        assert other.images() == []
    data.write_bytes(whole)
    assert pull(other, ref, QUICK).digest == image.digest


def test_a_pull_without_room_leaves_nothing_named(server: str, store: ImageStore, tmp_path: Path) -> None:
    image, ref = plain(store, 20 << 20), ImageRef.parse(f"{server}/large")
    push(store, image, ref, QUICK)
    small = tmp_path / "small"
    small.mkdir()
    run(
        ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(small)], timeout_s=10
    )  # the blob fits, its files do not
    try:
        other = ImageStore(small)
        with pytest.raises(TareError, match=r"no space left below .*--root"):
            pull(other, ref, QUICK)
        assert other.images() == []
        other.sweep(unneeded=True)
        left = sum(path.stat().st_size for path in small.rglob("*") if path.is_file())
        assert left < 10_000
    finally:
        run(["umount", str(small)], timeout_s=10)


def test_the_registry_keeps_what_was_there(server: str, store: ImageStore) -> None:
    """A tag's manifest at the registry is byte for byte the store's."""
    image = plain(store)
    push(store, image, ImageRef.parse(f"{server}/bytes:1"), QUICK)
    request = Request(f"http://{server}/v2/bytes/manifests/{image.digest}", headers={"Accept": MANIFEST})
    with urlopen(request) as answer:
        assert answer.read() == store.layout.blob(image.digest).read_bytes()


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_skopeo_and_podman_read_what_is_saved(store: ImageStore, tmp_path: Path, form: str) -> None:
    image, path = plain(store), tmp_path / "saved.tar"
    with path.open("wb") as file:
        save(store, [image], file, form=form)
    kinds = ["oci-archive", "docker-archive"] if form == "oci" else ["docker-archive"]
    for kind in kinds:
        found = json.loads(tool("skopeo", "inspect", "--config", f"{kind}:{path}"))
        assert found["rootfs"]["diff_ids"] == [layer.digest for layer in image.layers]
    with TemporaryDirectory(prefix="t-", dir="/tmp") as run_root:  # podman refuses a long one
        storage = ("--root", str(tmp_path / "podman"), "--runroot", run_root, "--storage-driver", "vfs")
        assert "test/image:1" in tool("podman", *storage, "load", "--input", str(path))
        assert tool("podman", *storage, "images", "--no-trunc", "--quiet").split() == [image.id]


def test_what_skopeo_saves_is_loaded(server: str, store: ImageStore, tmp_path: Path) -> None:
    image = plain(store)
    push(store, image, ImageRef.parse(f"{server}/x"), QUICK)
    for kind in ("docker-archive", "oci-archive", "oci"):
        target = tmp_path / kind
        tool("skopeo", "copy", "--src-tls-verify=false", f"docker://{server}/x", f"{kind}:{target}:name/x:9")
        (back,) = load(ImageStore(tmp_path / f"{kind}-root"), target)
        assert str(back.ref) == "name/x:9"
        assert [layer.digest for layer in back.layers] == [layer.digest for layer in image.layers]


def test_a_compressed_archive_from_a_pipe(store: ImageStore, tmp_path: Path) -> None:
    image, path = plain(store), tmp_path / "saved.tar"
    with path.open("wb") as file:
        save(store, [image], file)
    packed = gzip.compress(path.read_bytes())
    command = [sys.executable, "tare.py", "--root", str(tmp_path / "other"), "load", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, input=packed, capture_output=True, check=True)
    assert done.stdout.decode() == f"{image.ref} {image.digest}\n"
