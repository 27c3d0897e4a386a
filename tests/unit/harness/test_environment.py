"""Reading a host from recorded trees; that nothing identifying is kept; that the absent stays absent."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import environment
from harness.hoststate import HostState, host_state
from harness.redaction import HIDDEN, redact
from harness.software import collect_programs, collect_tare
from tests.unit.harness.trees import bare_metal, cloud_guest, grow

HARMLESS = "isolcpus=1,2 nohz_full=1-3 module.param=5 6.1.0-20-amd64 -- 12:30:59 a:b"


def captured(root: Path, roots: tuple[Path, Path]) -> dict[str, Any]:
    proc, sys = roots
    return environment.capture(proc=proc, sys=sys, storage=root / "not/there/yet")


def test_bare_metal_is_read_whole(tmp_path: Path) -> None:
    found = captured(tmp_path, bare_metal(tmp_path))
    cpu = found["cpu"]
    assert (cpu["model"], cpu["microcode"], cpu["virtualization"]) == ("Example Xeon 8000", "0xd0003b9", "vmx")
    assert (cpu["logical"], cpu["cores"], cpu["sockets"], cpu["smt"]) == (8, 4, 2, True)
    assert (cpu["governors"], cpu["turbo"], cpu["frequency_driver"]) == (["powersave"], True, "intel_pstate")
    assert cpu["caches"] == {"L1d": "48K", "L3": "54M"}
    assert cpu["mitigations"] == {"meltdown": "Not affected", "retbleed": "Vulnerable"}
    assert found["numa"] == {"nodes": 2, "cpus": ["0-3", "4-7"]}
    assert found["memory"]["total_bytes"] == 65536000 * 1024
    assert found["memory"]["huge_pages"] == "always"
    assert found["cgroup"]["mode"] == "v2"
    assert found["cgroup"]["v2"] == ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"]
    assert found["machine"] == {"vendor": "Example Computers", "product": "Rack 2"}
    assert found["storage"]["filesystem"] == "ext4"
    assert found["clock"]["monotonic_step_ns"] > 0


def test_hybrid_guest_names_its_hypervisor_and_only_controllers(tmp_path: Path) -> None:
    found = captured(tmp_path, cloud_guest(tmp_path))
    assert found["machine"] == {"hypervisor": "kvm"}
    assert found["cgroup"]["mode"] == "hybrid"
    assert found["cgroup"]["v1"] == ["cpu", "cpuacct", "cpuset", "memory", "pids"]
    assert found["cgroup"]["v2"] == ["hugetlb"]


def test_what_is_absent_is_left_out(tmp_path: Path) -> None:
    found = captured(tmp_path, cloud_guest(tmp_path))
    assert not {"governors", "turbo", "smt", "mitigations", "caches"} & found["cpu"].keys()
    assert "huge_pages" not in found["memory"]
    assert "command_line" not in found["kernel"]
    assert "numa" not in found


def test_an_empty_host_is_no_error(tmp_path: Path) -> None:
    found = captured(tmp_path, (tmp_path / "proc", tmp_path / "sys"))
    assert not {"cpu", "numa", "memory", "machine", "cgroup"} & found.keys()
    assert len(environment.fingerprint(found)) == 64


def test_nothing_identifying_is_kept(tmp_path: Path) -> None:
    text = json.dumps(captured(tmp_path, bare_metal(tmp_path)))
    for secret in ("web01", "SN-12345", "0a1b2c3d", "10.0.0.7", "s3cret", str(tmp_path)):
        assert secret not in text
    assert "mitigations=off" in text


def test_what_names_the_machine_is_told_to_who_asks(tmp_path: Path) -> None:
    proc, sys = bare_metal(tmp_path)
    grow(sys, {"block/nvme0n1/device/serial": "DISK-7\n"})
    found = environment.identity(proc, sys)
    assert (found["host_name"], found["product_serial"], found["disk_serials"]) == ("web01", "SN-12345", ["DISK-7"])
    assert environment.identity(tmp_path, tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("root=UUID=0a1b2c3d-1111-2222-3333-0123456789ab ro", f"root=UUID={HIDDEN} ro"),
        ("systemd.machine_id=abc quiet", f"systemd.machine_id={HIDDEN} quiet"),
        ("hostname=other machine=q35", f"hostname={HIDDEN} machine=q35"),
        ("--token abc --verbose x", f"--token {HIDDEN} --verbose x"),
        ("ip=dhcp console=ttyS0,115200", f"ip={HIDDEN} console=ttyS0,115200"),
        ("a 192.168.1.20:80 b", f"a {HIDDEN}:80 b"),
        ("fe80::1 2001:db8:0:0:0:0:0:1", f"{HIDDEN} {HIDDEN}"),
        ("mac 52:54:00:12:34:56", f"mac {HIDDEN}"),
        ("0123456789abcdef0123456789abcdef", HIDDEN),
        ("web01 web01-backup myweb01", f"{HIDDEN} web01-backup myweb01"),
        (HARMLESS, HARMLESS),
    ],
)
def test_redaction(text: str, expected: str) -> None:
    assert redact(text, ["web01", ""]) == expected


@pytest.mark.parametrize(
    ("tree", "name", "text"),
    [
        ("proc", "sys/kernel/osrelease", "6.1.0-21-amd64\n"),
        ("sys", "devices/system/cpu/vulnerabilities/retbleed", "Mitigation: IBRS\n"),
        ("sys", "devices/system/cpu/smt/active", "0\n"),
        ("proc", "sys/kernel/numa_balancing", "1\n"),
        ("proc", "cmdline", "quiet\n"),
        ("proc", "meminfo", "MemTotal: 1024 kB\n"),
    ],
)
def test_fingerprint_follows_what_moves_figures(tmp_path: Path, tree: str, name: str, text: str) -> None:
    roots = bare_metal(tmp_path)
    before = environment.fingerprint(captured(tmp_path, roots))
    grow(tmp_path / tree, {name: text})
    assert environment.fingerprint(captured(tmp_path, roots)) != before


def test_fingerprint_ignores_what_moves_by_itself(tmp_path: Path) -> None:
    roots = bare_metal(tmp_path)
    before = environment.fingerprint(captured(tmp_path, roots))
    grow(tmp_path / "proc", {"loadavg": "9.0 9.0 9.0 1/1 1\n", "stat": "cpu 9 9 9 9 9 9 9 9\n"})
    grow(tmp_path / "sys", {"devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1\n"})
    after = captured(tmp_path, roots)
    after["storage"]["free_bytes"] = 1
    assert environment.fingerprint(json.loads(json.dumps(after))) == before


def test_programs_are_read_from_the_path_with_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = grow(tmp_path, {"runc": "#!/bin/sh\necho runc version 9.9\necho more\n", "crun": "#!/bin/sh\nexit 1\n"})
    for path in tools.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = collect_programs(["runc", "crun", "podman-of-another-world"])
    assert found["runc"]["version"] == "runc version 9.9"
    assert len(found["runc"]["sha256"]) == 64
    assert "version" not in found["crun"]
    assert "podman-of-another-world" not in found


def test_tare_knows_itself() -> None:
    assert {"version", "python", "libraries"} <= collect_tare().keys()


def test_network_shows_kinds_and_no_names() -> None:
    found = environment.collect_network()
    assert found["kinds"]["loopback"] == 1
    assert "eth0" not in json.dumps(found)


def test_host_state_reads_the_first_line_of_stat_and_the_pressure(tmp_path: Path) -> None:
    state = host_state(*bare_metal(tmp_path))
    assert state.ticks == (100, 0, 50, 800, 20, 0, 5, 25)
    assert state.stalled_us == {"cpu_some": 1000, "io_some": 2000, "io_full": 500}
    assert (state.load_1min, state.frequency_hz) == (1.5, 2.5e9)


def test_host_state_of_a_silent_host_is_empty(tmp_path: Path) -> None:
    state = host_state(tmp_path, tmp_path)
    assert (state.ticks, state.stalled_us, state.load_1min, state.frequency_hz) == ((), {}, None, None)
    assert state.delta(replace(state, at_ns=state.at_ns + 1_000_000_000)) == {"elapsed_s": 1.0}


def test_delta_gives_shares() -> None:
    before = HostState(at_ns=0, ticks=(0,) * 8, stalled_us={"cpu_some": 0, "io_some": 7})
    after = HostState(
        at_ns=2_000_000_000, ticks=(60, 0, 25, 80, 20, 0, 5, 10), stalled_us={"cpu_some": 500_000}, load_1min=3.0
    )
    assert before.delta(after) == {
        "busy": pytest.approx(0.45),
        "elapsed_s": 2.0,
        "iowait": 0.1,
        "load_1min": 3.0,
        "pressure_cpu_some": 0.25,
        "steal": 0.05,
    }


def test_delta_without_a_tick_tells_no_shares() -> None:
    state = HostState(at_ns=0, ticks=(5,) * 8)
    assert state.delta(replace(state, at_ns=1000)) == {"elapsed_s": 1e-6}


def test_frequency_is_read_from_eight_policies_at_most(tmp_path: Path) -> None:
    grow(tmp_path, {f"devices/system/cpu/cpufreq/policy{n}/scaling_cur_freq": str(2**n) for n in range(50)})
    frequency_hz = host_state(tmp_path, tmp_path).frequency_hz
    assert frequency_hz is not None
    assert (8 * int(frequency_hz / 1000)).bit_count() <= 8


def test_reading_the_host_state_costs_less_than_reading_the_environment() -> None:
    def spent(read: Any) -> float:
        began = time.perf_counter()
        read()
        return time.perf_counter() - began

    cheap = statistics.median(spent(host_state) for _ in range(21))
    assert cheap * 10 < spent(environment.capture)
