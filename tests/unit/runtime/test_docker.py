"""An engine that hangs, dies or lies about success: an error that says so, a container removed, nothing left."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from runtime.container import dockerapi
from runtime.driver import Host
from runtime.drivers import docker as driver_module
from runtime.drivers.docker import DockerDriver, PreparedDocker
from runtime.errors import TareError
from runtime.spec import ImageRef, InstanceSpec, Limits, Mount, MountKind, NetworkMode, NetworkSpec, Ready

SPEC = InstanceSpec(image=ImageRef("nothing"))
PREPARED = PreparedDocker(SPEC, "sha256:0", {"Binds": []}, Path("/"))
Answer = tuple[int, Any] | Callable[[], tuple[int, Any]]


class StandIn(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """An engine that answers by a table of `METHOD /last/words` and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Answer] = {
            "GET /_ping": (200, "OK"),
            "GET /version": (200, {"ApiVersion": "1.41", "Version": "0", "Components": []}),
            "GET /info": (200, {"DefaultRuntime": "runc", "CgroupDriver": "cgroupfs", "Driver": "overlay2"}),
            "POST /create": (201, {"Id": "1" * 64, "Warnings": []}),
            "POST /start": (204, ""),
            "GET /json": (200, {"State": {"Pid": 1, "Running": False}}),
            "GET /logs": (200, ""),
            "DELETE /": (204, ""),
        }
        super().__init__(str(path), Handler)


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.client_address = ("local", 0)
        super().setup()

    def log_message(self, *args: object) -> None:
        return

    def _do(self) -> None:
        path = self.path.partition("?")[0]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        word = "DELETE /" if self.command == "DELETE" else f"{self.command} /{path.rpartition('/')[2]}"
        self.server.asked.append(word)
        code: int
        body: Any
        if word == "GET /json" and "DELETE /" in self.server.asked:
            code, body = 404, {"message": "no such container"}
        else:
            answer = self.server.answers[word]
            code, body = answer() if callable(answer) else answer
        if code == 0:
            self.close_connection = True
            return
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if code != 204:
            self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _do  # noqa: N815 - the base class's names


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn(tmp_path / "s") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/s")
        monkeypatch.setattr("os.geteuid", lambda: 0)
        monkeypatch.setattr(dockerapi, "REQUEST_TIMEOUT_S", 1.0)
        monkeypatch.setattr(driver_module, "CONNECT_TIMEOUT_S", 0.2)
        yield server
        server.shutdown()


@pytest.fixture
def driver(engine: StandIn, tmp_path: Path) -> Iterator[DockerDriver]:
    driver = DockerDriver(Host(root=tmp_path / "lib", run=tmp_path / "run"))
    yield driver
    driver.close()


def slow() -> tuple[int, Any]:
    time.sleep(3)
    return 204, ""


@pytest.mark.parametrize(
    ("word", "answer", "said"),
    [
        ("POST /start", (204, ""), "said success and nothing runs"),
        ("POST /start", (500, {"message": "out of luck"}), "docker start: out of luck"),
        ("POST /start", slow, "docker start: .*timed out"),
        ("POST /start", (0, ""), "docker start: .*(aborted|closed|reset)"),
        ("POST /create", (500, {"message": "no room"}), "docker create: no room"),
        ("POST /create", (201, "babble"), "docker create: "),
        ("POST /create", (201, {"Id": "1", "Warnings": ["memory limit discarded"]}), "memory limit discarded"),
        ("GET /json", (200, {}), "an answer that is none of Docker's"),
    ],
    ids=["lies", "fails", "hangs", "dies", "cannot", "babbles", "leaves a limit out", "says nothing"],
)
def test_an_engine_that_misbehaves_is_an_error_and_its_container_is_removed(
    engine: StandIn, driver: DockerDriver, word: str, answer: Answer, said: str
) -> None:
    engine.answers[word] = answer
    with pytest.raises(TareError, match=said):
        driver.launch(PREPARED)
    assert "DELETE /" in engine.asked
    assert list((driver.host.run / "instances").iterdir()) == []
    assert list((driver.host.run / "channels").iterdir()) == []


def test_a_container_that_did_not_go_is_found_again(engine: StandIn, driver: DockerDriver) -> None:
    engine.answers["DELETE /"] = 500, {"message": "busy"}
    with pytest.raises(TareError, match="nothing runs"):
        driver.launch(PREPARED)
    name = "tare-0123456789ab"
    engine.answers["GET /json"] = 200, [{"Names": [f"/{name}"]}]
    engine.asked.clear()
    assert driver.leftovers() == [f"{name}: container"]
    engine.answers["DELETE /"] = 204, ""
    assert driver.sweep() == [f"{name}: container"]


def test_an_engine_that_does_not_answer_any_more_is_an_error_of_the_probe(
    engine: StandIn, driver: DockerDriver
) -> None:
    engine.answers["GET /info"] = 500, {"message": "shutting down"}
    found = driver.probe()
    assert not found.usable
    assert "shutting down" in found.reason


@pytest.mark.parametrize(
    ("host", "said"), [("tcp://10.0.0.1:2375", "not a socket of this host"), ("unix:///nowhere", "no engine answers")]
)
def test_an_engine_elsewhere_or_nowhere_is_refused(
    driver: DockerDriver, monkeypatch: pytest.MonkeyPatch, host: str, said: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    found = driver.probe()
    assert not found.usable
    assert said in found.reason
    monkeypatch.delenv("DOCKER_HOST")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (InstanceSpec(image=SPEC.image, argv=("true",), ready=Ready.SPAWNED), "guest agent only"),
        (InstanceSpec(image=SPEC.image, network=NetworkSpec(mode=NetworkMode.BRIDGE)), "network bridge"),
        (InstanceSpec(image=SPEC.image, limits=Limits(memory_bytes=5 << 20)), "memory_bytes"),
        (InstanceSpec(image=SPEC.image, limits=Limits(io_weight=5)), "io_weight"),
        (
            InstanceSpec(image=SPEC.image, mounts=(Mount(kind=MountKind.BIND, target="/x", source="/nowhere/at/all"),)),
            "no such path",
        ),
    ],
    ids=["command", "bridge", "memory", "weight", "mount"],
)
def test_what_docker_cannot_do_is_refused_before_it_is_asked(
    engine: StandIn, driver: DockerDriver, spec: InstanceSpec, said: str
) -> None:
    with pytest.raises(TareError, match=said):
        driver.prepare(spec)
    assert engine.asked == []


def test_without_docker_py_the_driver_says_so_and_finds_nothing(
    driver: DockerDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dockerapi, "find_spec", lambda name: None)
    assert "docker is not installed" in driver.probe().reason
    assert driver.leftovers() == []
