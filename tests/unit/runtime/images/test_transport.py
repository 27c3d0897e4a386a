"""Requests reach where they may, with what belongs there, as often as it makes sense."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import TareError
from runtime.images.auth import Credentials
from runtime.images.transport import Access, Transport
from tests.conftest import skip_or_fail

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def answering(answer: Answer, identity: ssl.SSLContext | None = None) -> Iterator[str]:
    """HOST:PORT of a server that answers so, over TLS if it has an identity."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            answer(self)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that does not trust it goes away

        def finish_request(self, request: Any, client_address: Any) -> None:
            if identity is None:
                super().finish_request(request, client_address)
                return
            with identity.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def get(host: str, access: Access, path: str = "/v2/") -> tuple[int, bytes]:
    with Transport(host, access) as transport, transport.request("GET", path, "scope") as response:
        return response.status, response.read()


def test_a_redirect_elsewhere_does_not_take_the_password_along() -> None:
    seen: dict[str, str | None] = {}

    def there(handler: BaseHTTPRequestHandler) -> None:
        seen["there"] = handler.headers.get("Authorization")
        reply(handler, 200, b"content")

    with answering(there) as other:

        def here(handler: BaseHTTPRequestHandler) -> None:
            if handler.headers.get("Authorization") is None:
                reply(handler, 401, WWW_Authenticate='Basic realm="x"')
            else:
                reply(handler, 307, Location=f"http://{other}/blob")

        with answering(here) as host:
            access = Access(credentials=Credentials("user", "secret"), attempts=1)
            assert get(host, access) == (200, b"content")
    assert seen == {"there": None}


def test_an_endless_redirect_ends() -> None:
    with (
        answering(lambda handler: reply(handler, 302, Location="/again")) as host,
        pytest.raises(TareError, match="without end"),
    ):
        get(host, Access(attempts=1))


def test_leaving_encryption_is_refused() -> None:
    transport = Transport("registry.example", Access())
    assert transport.base == "https://registry.example"
    with pytest.raises(TareError, match="without encryption"):
        transport._must_be_safe("http://elsewhere.example/token")
    transport._must_be_safe("https://elsewhere.example/token")


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1", "[::1]:80", "reg.localhost"])
def test_loopback_needs_no_encryption(host: str) -> None:
    assert Transport(host, Access()).base == f"http://{host}"


def test_the_servers_wish_to_wait_is_heard() -> None:
    answers = [429, 503, 200]
    waits: list[float] = []
    with answering(lambda handler: reply(handler, answers.pop(0), Retry_After="7")) as host:
        assert get(host, Access(attempts=5, wait=waits.append))[0] == 200
    assert waits == [7.0, 7.0]


def test_a_kept_connection_that_was_closed_is_opened_again() -> None:
    def once(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 200, b"ok")
        handler.close_connection = True  # without saying so

    with answering(once) as host, Transport(host, Access(attempts=1)) as transport:
        for _ in range(3):
            with transport.request("GET", "/", "scope") as response:
                assert response.read() == b"ok"


def test_what_speaks_no_http_is_a_sentence() -> None:
    def garbage(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-x\r\n")
        handler.close_connection = True

    with answering(garbage) as host, pytest.raises(TareError, match="is it running"):
        get(host, Access(attempts=2, wait=lambda seconds: None))


def identity_in(tmp_path: Path) -> ssl.SSLContext:
    """A server's, which nobody has reason to trust: its certificate is `certificate.pem` there."""
    if shutil.which("openssl") is None:
        skip_or_fail("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    name = ("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.load_cert_chain(certificate, key)
    return identity


def test_encryption_is_with_those_the_system_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, certificate = identity_in(tmp_path), tmp_path / "certificate.pem"
    monkeypatch.setattr("runtime.images.transport._is_loopback", lambda registry: False)
    with answering(lambda handler: reply(handler, 200, b"secret"), identity) as host:
        with pytest.raises(TareError, match=r"certificate.*--plain-http"):
            get(host, Access(attempts=1))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert get(host, Access(attempts=1)) == (200, b"secret")


def test_a_registry_on_loopback_may_want_tls_and_needs_no_authority(tmp_path: Path) -> None:
    """As Docker has it. Several threads may be the first to ask."""
    with (
        answering(lambda handler: reply(handler, 200, b"secret"), identity_in(tmp_path)) as host,
        Transport(host, Access(attempts=1)) as transport,
        ThreadPoolExecutor(4) as pool,
    ):

        def ask(_: int) -> bytes:
            with transport.request("GET", "/v2/", "scope") as response:
                return response.read()

        assert list(pool.map(ask, range(8))) == [b"secret"] * 8
        assert transport.base == f"https://{host}"


def test_plain_http_is_plain_http(tmp_path: Path) -> None:
    with (
        answering(lambda handler: reply(handler, 200, b"secret"), identity_in(tmp_path)) as host,
        pytest.raises(TareError, match="is it running"),
    ):
        get(host, Access(attempts=1, plain_http=True))


def test_who_answers_400_on_loopback_is_believed() -> None:
    with answering(lambda handler: reply(handler, 400, b"no")) as host:
        assert get(host, Access(attempts=1)) == (400, b"no")


@pytest.mark.parametrize(
    "place", ["http://[::1", "http://host:99999999/", "//x:y/", "/\xff", "http://" + "a" * 70 + "/"]
)
def test_a_redirect_to_an_impossible_address_is_a_sentence(place: str) -> None:
    with answering(lambda handler: reply(handler, 302, Location=place)) as host, pytest.raises(TareError):
        get(host, Access(attempts=1))


@pytest.mark.parametrize("realm", ["http://[::1", "http://host:99999999/"])
def test_a_realm_at_an_impossible_address_is_a_sentence(realm: str) -> None:
    answer = f'Bearer realm="{realm}"'
    with answering(lambda handler: reply(handler, 401, WWW_Authenticate=answer)) as host, pytest.raises(TareError):
        get(host, Access(attempts=1))


def test_a_strange_number_of_seconds_is_not_waited_for() -> None:
    waits: list[float] = []
    with answering(lambda handler: reply(handler, 503, Retry_After="\xb2")) as host:
        assert get(host, Access(attempts=2, wait=waits.append))[0] == 503
    assert len(waits) == 1
