"""Who we are to a registry: challenges, credentials, tokens. Not for sending requests (`transport.py`).

Formats: RFC 9110 section 11 (challenges), distribution's token authentication, Docker's config.json.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from runtime.command import run
from runtime.errors import TareError, UsageError

_CHALLENGE = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)(?:\s+(?=[A-Za-z0-9_-]+=)|\s*$|\s*,)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token; never shown."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, …)"

    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for: `scheme` in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def parse_credentials(text: str) -> Credentials:
    """Credentials from a command line's USER:PASSWORD. Raises UsageError for anything else."""
    username, colon, password = text.partition(":")
    if not colon or not username:
        raise UsageError("credentials", "not a user and a password", "write them like --creds USER:PASSWORD")
    return Credentials(username, password)


def parse_challenges(header: str) -> list[Challenge]:
    """Every challenge of a WWW-Authenticate header, in its order; what cannot be read is left out."""
    found = []
    at = 0
    while (match := _CHALLENGE.match(header, at)) is not None:
        at = max(match.end(), at + 1)
        parameters = {}
        while (parameter := _PARAMETER.match(header, at)) is not None:
            key, quoted, plain = parameter.groups()
            parameters[key.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            at = parameter.end()
        found.append(Challenge(match.group(1).lower(), parameters))
    return found


def token_request(challenge: Challenge, scope: str, credentials: Credentials | None) -> tuple[str, bytes | None]:
    """The URL to ask for a token, and the form to post to it; None means GET.

    Raises TareError when the challenge names no place that may be asked.
    """
    realm = urlsplit(challenge.parameters.get("realm", ""))
    if realm.scheme not in ("http", "https") or not realm.netloc or "@" in realm.netloc:
        raise TareError("registry", "it names no place to ask for a token", "it does not speak the protocol")
    fields = {"service": challenge.parameters.get("service", ""), "scope": challenge.parameters.get("scope") or scope}
    if credentials is not None and credentials.identity_token:
        form = {"grant_type": "refresh_token", "client_id": "tare", "refresh_token": credentials.identity_token}
        return urlunsplit(realm), urlencode({**fields, **form}).encode()
    query = [realm.query] if realm.query else []
    query.append(urlencode({key: value for key, value in fields.items() if value}))
    return urlunsplit(realm._replace(query="&".join(query))), None


def token_in(document: bytes) -> str:
    """The token that an authorization server answered with. Raises TareError when there is none."""
    try:
        answer = json.loads(document)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError):
        token = None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise TareError("registry", "its authorization server gave no token", "it does not speak the protocol")
    return token


def find_credentials(registry: str, environment: Mapping[str, str] | None = None) -> Credentials | None:
    """What this user's files say of `registry`: $REGISTRY_AUTH_FILE, containers' auth.json, Docker's config.json.

    The first file that knows the registry decides. Raises TareError for a file that cannot be read as JSON.
    """
    for path in _files(os.environ if environment is None else environment):
        try:
            document = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except ValueError as error:
            raise TareError(f"credentials {path}", f"not JSON: {error}", "repair it or name another file") from error
        found = _in_document(document, registry) if isinstance(document, dict) else None
        if found is not None:
            return found
    return None


def _files(environment: Mapping[str, str]) -> Iterable[Path]:
    if environment.get("REGISTRY_AUTH_FILE"):
        yield Path(environment["REGISTRY_AUTH_FILE"])
        return
    if environment.get("XDG_RUNTIME_DIR"):
        yield Path(environment["XDG_RUNTIME_DIR"]) / "containers" / "auth.json"
    home = Path(environment.get("HOME") or "/root")
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"


def _in_document(document: dict[str, Any], registry: str) -> Credentials | None:
    keys = _HUB_KEYS if registry in _HUB_KEYS else (registry, f"https://{registry}", f"https://{registry}/v1/")
    helpers = document.get("credHelpers") or {}
    helper = next((helpers[key] for key in keys if key in helpers), document.get("credsStore"))
    entry = next((document["auths"][key] for key in keys if key in (document.get("auths") or {})), None)
    if isinstance(entry, dict) and entry.get("identitytoken"):
        return Credentials(identity_token=str(entry["identitytoken"]))
    if isinstance(entry, dict) and entry.get("auth"):
        try:
            return parse_credentials(base64.b64decode(entry["auth"]).rstrip(b"\0").decode())
        except ValueError as error:
            raise TareError(f"credentials for {registry}", "not base64", "log in again") from error
    if isinstance(helper, str) and _HELPER.fullmatch(helper):
        return _from_helper(helper, keys[0])
    return None


def _from_helper(helper: str, key: str) -> Credentials | None:
    try:
        answer = json.loads(run([f"docker-credential-{helper}", "get"], input=key.encode(), timeout_s=30).stdout)
    except (TareError, ValueError):
        return None  # it knows nothing of this registry, or is not installed
    username, secret = str(answer.get("Username", "")), str(answer.get("Secret", ""))
    return Credentials(identity_token=secret) if username == "<token>" else Credentials(username, secret)
