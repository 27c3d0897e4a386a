"""Startup's other lanes: cold caches, many at once, and the first answer over a network."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from runtime.driver import Kind
from runtime.errors import TareError
from runtime.spec import NetworkMode
from tests.fakes import PHASES, Behaviour
from tests.unit.workloads.visits import one, values, visit
from workloads import hostview
from workloads.base import Context, Invalid
from workloads.metric import Phase
from workloads.startup_answered import StartupAnswered
from workloads.startup_at_once import StartupAtOnce
from workloads.startup_cold import StartupCold


def test_caches_are_dropped_before_each_cold_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, driver = visit(tmp_path, shared=False, repeats=3)
    seen: list[int] = []
    monkeypatch.setattr(hostview, "drop_caches", lambda: seen.append(len(driver.instances)))
    samples = list(StartupCold().measure(context))
    assert seen == [0, 1, 2]
    assert values(samples, "startup.cold_ready") == pytest.approx([PHASES[Kind.CONTAINER][2]] * 3)


def test_caches_that_cannot_be_dropped_are_a_refusal_before_any_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    context, driver = visit(tmp_path, shared=False)
    monkeypatch.setattr(hostview, "drop_caches", refuse)
    with pytest.raises(Invalid, match="cannot be dropped"):
        list(StartupCold().measure(context))
    assert driver.instances == []


def test_dropping_writes_what_the_kernel_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sys/vm").mkdir(parents=True)
    synced: list[str] = []
    monkeypatch.setattr("os.sync", lambda: synced.append("before"))
    hostview.drop_caches(tmp_path)
    assert (tmp_path / "sys/vm/drop_caches").read_text() == "3"
    assert synced == ["before"]


def test_numbers_double_up_to_the_most_and_all_of_one_number_run_together(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, Behaviour(launch_s=0.05), shared=False, most=5)
    most: list[int] = []
    launch = context.launch

    def noting() -> object:
        instance = launch()
        most.append(len(driver.open_instances()))
        return instance

    context.launch = noting  # type: ignore[assignment] # without a spec, as this workload calls it
    samples = list(StartupAtOnce().measure(context))
    last = {s.labels["n"]: s.value for s in samples if s.metric == "startup.at_once_last"}
    assert list(last) == ["1", "2", "4"]
    each = [s.labels["n"] for s in samples if s.metric == "startup.at_once_ready" and s.phase is Phase.MEASURE]
    assert each == ["1"] + ["2"] * 2 + ["4"] * 4
    assert max(most) == 4
    assert driver.open_instances() == []
    peak = one(samples, "startup.at_once_rate")
    assert peak.value == max(int(n) / seconds for n, seconds in last.items())
    assert peak.value == int(peak.labels["n"]) / last[peak.labels["n"]]


def test_one_failed_launch_of_many_closes_the_others(tmp_path: Path) -> None:
    def fail(ordinal: int) -> Exception | None:
        return TareError("launch", "told to fail") if ordinal == 5 else None

    context, driver = visit(tmp_path, Behaviour(fail_launch=fail), shared=False, most=4)
    with pytest.raises(TareError, match="told to fail"):
        list(StartupAtOnce().measure(context))
    assert len(driver.instances) >= 5
    assert driver.open_instances() == []


def answered(context: Context, monkeypatch: pytest.MonkeyPatch, called: list[tuple[str, int]]) -> list[float]:
    def answer(address: str, port: int, timeout_s: float) -> int:
        called.append((address, port))
        return time.monotonic_ns()

    monkeypatch.setattr(hostview, "first_answer_ns", answer)
    return values(list(StartupAnswered().measure(context)), "startup.answered")


def test_first_answer_comes_from_the_instances_own_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, driver = visit(tmp_path, shared=False, repeats=2)
    called: list[tuple[str, int]] = []
    seconds = answered(context, monkeypatch, called)
    assert called == [(f"10.87.0.{2 + ordinal}", 4000) for ordinal in range(3)]
    assert {instance.spec.network.mode for instance in driver.instances} == {NetworkMode.BRIDGE}
    assert all(second >= PHASES[Kind.CONTAINER][2] for second in seconds)


def test_native_is_called_on_the_loopback_at_a_free_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, driver = visit(tmp_path, kind=Kind.NATIVE, shared=False, repeats=1)
    called: list[tuple[str, int]] = []
    answered(context, monkeypatch, called)
    assert {address for address, _ in called} == {"127.0.0.1"}
    ports = [argv[-1] for instance in driver.instances for argv in instance.commands]
    assert ports == [str(port) for _, port in called]


def test_silence_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> int:
        raise TimeoutError("timed out")

    context, driver = visit(tmp_path, shared=False)
    monkeypatch.setattr(hostview, "first_answer_ns", silent)
    with pytest.raises(Invalid, match=r"nobody answers at 10\.87\.0\.2: timed out"):
        list(StartupAnswered().measure(context))
    assert driver.open_instances() == []


def test_an_answer_is_a_byte_on_a_connection_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            for answer in (b"y", b""):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        began_ns = time.monotonic_ns()
        assert began_ns < hostview.first_answer_ns("127.0.0.1", port, 20) < time.monotonic_ns()
        with pytest.raises(ConnectionError, match="without an answer"):
            hostview.first_answer_ns("127.0.0.1", port, 20)
        thread.join()
