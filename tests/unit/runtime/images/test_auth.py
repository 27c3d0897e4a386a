"""Who we are to a registry is read where other tools left it, and said only to whom it is meant for."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import TareError, UsageError
from runtime.images.auth import (
    Challenge,
    Credentials,
    find_credentials,
    parse_challenges,
    parse_credentials,
    token_in,
    token_request,
)

BEARER = 'Bearer realm="https://auth.example/token?x=1",service="reg, \\"quoted\\"",scope="repository:a/b:pull"'


def test_challenges_are_read_in_order() -> None:
    found = parse_challenges(f'Negotiate, {BEARER}, Basic realm="r", charset=UTF-8')
    assert [challenge.scheme for challenge in found] == ["negotiate", "bearer", "basic"]
    assert found[1].parameters["service"] == 'reg, "quoted"'
    assert found[2].parameters == {"realm": "r", "charset": "UTF-8"}


@given(st.text(st.sampled_from('Bearer basic=",\\ realm\n\0é'), max_size=60))
def test_any_header_is_read_without_an_error(header: str) -> None:
    parse_challenges(header)


def test_a_token_is_asked_for_where_the_challenge_says() -> None:
    (challenge,) = parse_challenges(BEARER)
    url, form = token_request(challenge, "scope", None)
    assert url.startswith("https://auth.example/token?x=1&service=reg")
    assert "scope=repository%3Aa%2Fb%3Apull" in url
    assert form is None
    url, form = token_request(challenge, "scope", Credentials(identity_token="secret"))
    assert "secret" not in url
    assert form is not None
    assert b"refresh_token=secret" in form


@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "https://user@host/", "token"])
def test_a_challenge_to_nowhere_is_refused(realm: str) -> None:
    with pytest.raises(TareError, match="no place"):
        token_request(Challenge("bearer", {"realm": realm}), "scope", None)


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\nb"}', b'"x"'])
def test_no_token_is_a_sentence(answer: bytes) -> None:
    with pytest.raises(TareError, match="no token"):
        token_in(answer)
    assert token_in(b'{"access_token": "abc"}') == "abc"


def test_credentials_of_a_command_line() -> None:
    assert parse_credentials("user:pa:ss") == Credentials("user", "pa:ss")
    assert "pa:ss" not in repr(parse_credentials("user:pa:ss"))
    for wrong in ("user", ":x", ""):
        with pytest.raises(UsageError):
            parse_credentials(wrong)


def test_credentials_are_found_where_log_ins_leave_them(tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:secret").decode()
    (tmp_path / ".docker").mkdir()
    config = {"auths": {"reg:5000": {"auth": auth}, "https://index.docker.io/v1/": {"identitytoken": "t"}}}
    (tmp_path / ".docker/config.json").write_text(json.dumps(config))
    home = {"HOME": str(tmp_path)}
    assert find_credentials("reg:5000", home) == Credentials("me", "secret")
    assert find_credentials("registry-1.docker.io", home) == Credentials(identity_token="t")
    assert find_credentials("other", home) is None
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {"https://other/v1/": {"auth": auth}}}))
    assert find_credentials("other", {**home, "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}) is not None
    (tmp_path / "auth.json").write_text("{")
    with pytest.raises(TareError, match="not JSON"):
        find_credentials("other", {**home, "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")})


def test_a_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-fake"
    helper.write_text('#!/bin/sh\nread host; echo "{\\"Username\\": \\"u\\", \\"Secret\\": \\"$host\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "fake"}))
    assert find_credentials("reg", {"DOCKER_CONFIG": str(tmp_path)}) == Credentials("u", "reg")
