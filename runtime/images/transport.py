"""HTTP as registries need it: authorised, retried, redirected, never sending a secret where it does not belong.

Connections are kept for the next request. Not for what is asked and answered (`registry.py`).
"""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Self
from urllib.parse import SplitResult, urljoin, urlsplit

from runtime.errors import TareError
from runtime.images.auth import Credentials, parse_challenges, token_in, token_request

ATTEMPTS = 5
TIMEOUT_S = 60.0
_REDIRECTS = (301, 302, 303, 307, 308)
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)
_TOKEN_BYTES = 1 << 20
_LONGEST_WAIT_S = 30.0
BROKEN = (OSError, http.client.HTTPException)  # a connection that ended: what may be tried again

Body = bytes | Callable[[], IO[bytes]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a registry: as whom, and whether without encryption.

    A registry on loopback is asked without, and with TLS if it wants that; as nobody is between, unverified.
    """

    credentials: Credentials | None = None
    plain_http: bool = False
    attempts: int = ATTEMPTS
    wait: Callable[[float], None] = field(default=time.sleep)


@dataclass(slots=True)
class _Exchange:
    """A response that is being read, and the connection it comes over, to the host `key`."""

    response: http.client.HTTPResponse
    connection: http.client.HTTPConnection
    key: str


class Transport:
    """Requests to one registry, `HOST[:PORT]`, from several threads. A context manager: its connections end with it."""

    def __init__(self, registry: str, access: Access) -> None:
        self.registry, self.access = registry, access
        self._loopback = _is_loopback(registry)
        self._may_speak_tls = self._loopback and not access.plain_http
        plain = access.plain_http or self._loopback
        self.base = f"{'http' if plain else 'https'}://{registry}"
        self._authorization: dict[str, str] = {}
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._tls: ssl.SSLContext | None = None
        self._guard, self._turning = threading.Lock(), threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()

    @contextmanager
    def request(
        self, method: str, url: str, scope: str, *, headers: Mapping[str, str] | None = None, body: Body = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and give the response to read, of whatever status is not worth another try.

        `url` may be relative to the registry. Raises TareError when the registry cannot be reached, keeps failing,
        or lets nobody in; what breaks while the response is read is the caller's.
        """
        for attempt in range(self.access.attempts):
            last = attempt == self.access.attempts - 1
            try:
                exchange = self._spoken(method, url, scope, headers or {}, body)
            except ssl.SSLCertVerificationError as error:
                do = "install its authority's certificate, or use --plain-http if it speaks no TLS"
                raise TareError(f"registry {self.registry}", f"its certificate: {error.verify_message}", do) from error
            except ValueError as error:  # an address that none can be: of a redirection, or of a token's realm
                why = f"it sends us to an impossible address: {error}"
                raise TareError(f"registry {self.registry}", why, "it does not speak the protocol") from error
            except BROKEN as error:
                self._forget()
                if last:
                    why = str(error) or type(error).__name__
                    raise TareError(f"registry {self.registry}", why, "is it running, and reachable?") from error
                self.access.wait(_pause_s(attempt, None))
                continue
            if exchange.response.status in _TRY_AGAIN and not last:
                self._finish(exchange)
                self.access.wait(_pause_s(attempt, exchange.response.headers.get("Retry-After")))
                continue
            try:
                yield exchange.response
            finally:
                self._finish(exchange)
            return

    def _spoken(self, method: str, url: str, scope: str, headers: Mapping[str, str], body: Body) -> _Exchange:
        """An exchange; a registry on loopback that answers as one that wants TLS does is spoken to so from then on."""
        base = self.base
        try:
            exchange = self._authorised(method, urljoin(base, url), scope, headers, body)
        except BROKEN:
            if not self._turn_to_tls(base):
                raise
        else:
            if exchange.response.status != 400 or not self._turn_to_tls(base):
                self._may_speak_tls = False
                return exchange
            self._finish(exchange)
        return self._authorised(method, urljoin(self.base, url), scope, headers, body)

    def _turn_to_tls(self, base: str) -> bool:
        """Whether the registry, spoken to at `base`, wants TLS instead: then we speak it now."""
        place = urlsplit(base)
        with self._turning:
            if self.base != base:
                return True  # another thread was faster
            if not self._may_speak_tls:
                return False
            try:
                with (
                    socket.create_connection((place.hostname or "", place.port or 80), timeout=5.0) as plain,
                    self._trust().wrap_socket(plain, server_hostname=place.hostname),
                ):
                    self.base = f"https://{self.registry}"
            except ConnectionError:
                return False  # it may be starting
            except OSError:
                self._may_speak_tls = False
            return self.base != base

    def _authorised(self, method: str, url: str, scope: str, headers: Mapping[str, str], body: Body) -> _Exchange:
        exchange = self._redirected(method, url, self._with_authorization(scope, headers), body)
        if exchange.response.status != 401:
            return exchange
        challenge = ",".join(exchange.response.headers.get_all("WWW-Authenticate") or [])
        self._finish(exchange)
        self._authorization[scope] = self._answer(challenge, scope)
        return self._redirected(method, url, self._with_authorization(scope, headers), body)

    def _with_authorization(self, scope: str, headers: Mapping[str, str]) -> dict[str, str]:
        known = self._authorization.get(scope)
        return {**headers, **({"Authorization": known} if known else {})}

    def _answer(self, header: str, scope: str) -> str:
        """The Authorization header that a challenge asks for. Raises TareError when we have nothing to say."""
        credentials = self.access.credentials
        for challenge in parse_challenges(header):
            if challenge.scheme == "basic" and credentials is not None and credentials.username:
                return credentials.basic()
            if challenge.scheme == "bearer":
                url, form = token_request(challenge, scope, credentials)
                self._must_be_safe(url)
                headers = {"Accept": "application/json"}
                if form is not None:
                    headers["Content-Type"] = "application/x-www-form-urlencoded"
                elif credentials is not None:
                    headers["Authorization"] = credentials.basic()
                exchange = self._redirected("GET" if form is None else "POST", url, headers, form)
                document, status = exchange.response.read(_TOKEN_BYTES), exchange.response.status
                self._finish(exchange)
                if status != 200:
                    raise self._denied(f"its authorization server answered {status}")
                return f"Bearer {token_in(document)}"
        raise self._denied("it wants to know who you are")

    def _denied(self, why: str) -> TareError:
        do = "give --creds USER:PASSWORD, or log in with a tool that keeps credentials"
        return TareError(f"registry {self.registry}", why, do)

    def _must_be_safe(self, url: str) -> None:
        """Refuse to leave encryption: what is sent or fetched there would be anybody's."""
        parts = urlsplit(url)
        if parts.scheme == "https" or (parts.scheme == "http" and self.base.startswith("http:")):
            return
        if parts.scheme == "http" and _is_loopback(parts.netloc):
            return
        raise TareError(f"registry {self.registry}", f"it sends us to {url[:120]}, without encryption", "do not use it")

    def _redirected(self, method: str, url: str, headers: Mapping[str, str], body: Body) -> _Exchange:
        sent = dict(headers)
        for _ in range(6):
            exchange = self._send(method, urlsplit(url), sent, body)
            place = exchange.response.headers.get("Location")
            if exchange.response.status not in _REDIRECTS or not place or method not in ("GET", "HEAD"):
                return exchange
            self._finish(exchange)
            target = urljoin(url, place)
            self._must_be_safe(target)
            if urlsplit(target).netloc != urlsplit(url).netloc:
                sent.pop("Authorization", None)
            url = target
        raise TareError(f"registry {self.registry}", "it redirects without end", "try again later")

    def _send(self, method: str, url: SplitResult, headers: Mapping[str, str], body: Body) -> _Exchange:
        key, path = f"{url.scheme}://{url.netloc}", (url.path or "/") + (f"?{url.query}" if url.query else "")
        with self._guard:
            idle = self._idle.setdefault(key, [])
            kept = idle.pop() if idle else None
        if kept is not None:
            with suppress(*BROKEN):  # the other side may have closed it meanwhile: then on a fresh one
                return _Exchange(_exchange(kept, method, path, headers, body), kept, key)
        fresh = self._connect(url)
        try:
            return _Exchange(_exchange(fresh, method, path, headers, body), fresh, key)
        except BaseException:
            fresh.close()
            raise

    def _connect(self, url: SplitResult) -> http.client.HTTPConnection:
        host, port = url.hostname or "", url.port
        if url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        proxy = urllib.request.getproxies().get("https")
        if proxy and not _is_loopback(url.netloc) and not urllib.request.proxy_bypass(host):
            way = urlsplit(proxy if "//" in proxy else f"//{proxy}")
            tunnel = http.client.HTTPSConnection(way.hostname or "", way.port, timeout=TIMEOUT_S, context=self._trust())
            tunnel.set_tunnel(host, port)
            return tunnel
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self._trust())

    def _trust(self) -> ssl.SSLContext:
        """The system's authorities, and those that Docker's directory names for this registry."""
        with self._guard:
            if self._tls is None:
                self._tls = ssl.create_default_context()
                certificates = list(Path("/etc/docker/certs.d", self.registry).glob("*.crt"))
                if self._loopback and not certificates:
                    self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
                for certificate in certificates:
                    self._tls.load_verify_locations(certificate)
            return self._tls

    def _finish(self, exchange: _Exchange) -> None:
        """Keep the connection for the next request, or drop it if much is left to read."""
        response = exchange.response
        with suppress(*BROKEN):
            if not response.isclosed() and response.length is not None and response.length < 1 << 16:
                response.read()
        clean = response.isclosed() and not response.will_close
        response.close()
        if not clean:
            exchange.connection.close()
            return
        with self._guard:
            self._idle.setdefault(exchange.key, []).append(exchange.connection)

    def _forget(self) -> None:
        with self._guard:
            idle, self._idle = self._idle, {}
        for connection in (connection for several in idle.values() for connection in several):
            connection.close()


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str], body: Body
) -> http.client.HTTPResponse:
    """Send a request and read the response's head; the connection is closed if that fails."""
    content = body() if callable(body) else body
    try:
        connection.request(method, path, content, {"User-Agent": "tare", **headers})
        return connection.getresponse()
    except BaseException:
        connection.close()
        raise
    finally:
        if content is not None and not isinstance(content, bytes):
            content.close()


def _is_loopback(registry: str) -> bool:
    host = urlsplit(f"//{registry}").hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return False


def _pause_s(attempt: int, retry_after: str | None) -> float:
    """Seconds to wait before the next try: as the server asks, else twice as long each time, never in step."""
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), _LONGEST_WAIT_S)
    return float(min(0.25 * 2.0**attempt, _LONGEST_WAIT_S)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
