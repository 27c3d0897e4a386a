"""What the doctor says of hosts good and bad, of drivers, and how it says it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from harness import doctor, hostchecks
from harness.hostchecks import Check, Sight, Status
from runtime import tuning
from runtime.driver import Driver, Host, Kind
from runtime.ledger import Ledger
from tests.fakes import Behaviour, FakeDriver
from tests.unit.harness.trees import bare_metal, cloud_guest, grow

GIB = 1 << 30
# A host on which every answer is ok; each case below changes one thing.
GOOD: dict[str, dict[str, Any]] = {
    "cpu": {"governors": ["performance"], "turbo": False, "smt": False},
    "memory": {"swap_bytes": 0, "ksm": 0, "huge_pages": "madvise"},
    "kernel": {"release": "6.1.0-20-amd64", "clock_source": "tsc", "pressure": True},
    "cgroup": {"mode": "v2", "v2": ["cpu", "cpuset", "io", "memory", "pids"]},
    "storage": {"free_bytes": 100 * GIB, "filesystem": "ext4"},
    "clock": {"monotonic_step_ns": 30},
}
SIGHT = Sight(
    uid=0,
    environment=GOOD,
    activity={"busy": 0.01, "steal": 0.0},
    available_bytes=16 * GIB,
    filesystems=frozenset({"overlay"}),
    boot_editor="grubby",
)


def seen(topic: str, **changes: Any) -> Sight:
    return replace(SIGHT, environment={**GOOD, topic: {**GOOD[topic], **changes}})


def named(checks: Iterable[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_good_host_gets_ok_everywhere() -> None:
    assert [check for check in hostchecks.host_checks(SIGHT) if check.status is not Status.OK] == []


CASES: list[tuple[str, Status, Sight, str]] = [
    ("user", Status.BLOCK, replace(SIGHT, uid=1000), "su"),
    ("kernel", Status.BLOCK, seen("kernel", release="5.10.0"), ""),
    ("kernel", Status.BLOCK, seen("kernel", release="4.19"), ""),
    ("kernel", Status.WARN, seen("kernel", release="weird"), ""),
    ("cgroups", Status.BLOCK, seen("cgroup", v2=["cpu", "memory"]), "cgroup2"),
    ("cgroups", Status.BLOCK, replace(SIGHT, environment={}), "cgroup2"),
    ("cgroups", Status.WARN, seen("cgroup", mode="hybrid", v2=[], v1=["cpu", "cpuset", "memory", "pids"]), "grubby"),
    ("overlayfs", Status.WARN, replace(SIGHT, filesystems=frozenset()), "modprobe overlay"),
    ("disk", Status.WARN, seen("storage", free_bytes=5 * GIB), "tare clean"),
    ("disk", Status.BLOCK, seen("storage", free_bytes=GIB - 1), "tare clean"),
    ("disk", Status.WARN, seen("storage", free_bytes=None), ""),
    ("memory", Status.WARN, replace(SIGHT, available_bytes=2 * GIB - 1), "ps"),
    ("memory", Status.BLOCK, replace(SIGHT, available_bytes=GIB - 1), "ps"),
    ("memory", Status.WARN, replace(SIGHT, available_bytes=None), ""),
    ("swap", Status.WARN, seen("memory", swap_bytes=1), "swapoff -a"),
    ("same-page merging", Status.WARN, seen("memory", ksm=1), "ksm/run"),
    ("huge pages", Status.WARN, seen("memory", huge_pages="always"), "madvise"),
    ("NUMA balancing", Status.WARN, replace(SIGHT, environment={"numa": {"nodes": 2, "balancing": 1}}), "sysctl"),
    ("governor", Status.WARN, seen("cpu", governors=["powersave"]), "scaling_governor"),
    ("governor", Status.WARN, seen("cpu", governors=["performance", "powersave"]), "scaling_governor"),
    ("turbo", Status.WARN, seen("cpu", turbo=True, frequency_driver="intel_pstate"), "echo 1 > /sys"),
    ("turbo", Status.WARN, seen("cpu", turbo=True, frequency_driver="acpi-cpufreq"), "echo 0 > /sys"),
    ("hyperthreads", Status.WARN, seen("cpu", smt=True), "smt/control"),
    ("steal", Status.WARN, replace(SIGHT, activity={"steal": 0.02}), ""),
    ("load", Status.WARN, replace(SIGHT, activity={"busy": 0.5}), "ps"),
    ("other instances", Status.WARN, replace(SIGHT, others={"conmon": 2}), "ps"),
    ("clock", Status.WARN, seen("kernel", clock_source="hpet"), "current_clocksource"),
    ("clock", Status.WARN, seen("clock", monotonic_step_ns=4_000_000), ""),
    ("pressure", Status.WARN, seen("kernel", pressure=False), "psi=1"),
]


@pytest.mark.parametrize(("name", "status", "sight", "mend"), CASES)
def test_what_is_wrong_is_named_with_its_mend(name: str, status: Status, sight: Sight, mend: str) -> None:
    check = named(hostchecks.host_checks(sight), name)
    assert check.status is status
    assert check.detail
    assert mend in check.mend
    assert bool(mend) == bool(check.mend)


@pytest.mark.parametrize(("editor", "mend"), [("update-grub", "update-grub"), ("", "")])
def test_boot_parameters_are_mended_with_what_the_host_has(editor: str, mend: str) -> None:
    sight = replace(seen("kernel", pressure=False), boot_editor=editor)
    assert named(hostchecks.host_checks(sight), "pressure").mend.endswith(mend)


def test_a_silent_host_neither_crashes_nor_is_praised() -> None:
    checks = list(hostchecks.host_checks(Sight(uid=0, environment={})))
    assert named(checks, "memory").status is Status.WARN
    assert named(checks, "clock").status is Status.WARN


def test_look_reads_the_recorded_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOOK_S", 0.01)
    proc, sys = bare_metal(tmp_path)
    sight = doctor.look(Host(root=tmp_path, run=tmp_path), proc=proc, sys=sys)
    assert sight.others == {"containerd-shim": 1, "qemu-system-x86": 1}
    assert sight.available_bytes == 32768000 * 1024
    warned = {check.name for check in hostchecks.host_checks(sight) if check.status is Status.WARN}
    wrong = {"swap", "same-page merging", "huge pages", "governor", "turbo", "hyperthreads", "other instances"}
    assert wrong <= warned
    assert "cgroups" not in warned


def test_look_reads_the_recorded_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOOK_S", 0.01)
    proc, sys = cloud_guest(tmp_path)
    checks = list(hostchecks.host_checks(doctor.look(Host(root=tmp_path, run=tmp_path), proc=proc, sys=sys)))
    assert named(checks, "kernel").status is Status.BLOCK
    assert named(checks, "cgroups").status is Status.WARN
    assert named(checks, "clock").status is Status.WARN


def fake(name: str, kind: Kind, behaviour: Behaviour | None = None) -> Callable[[Host], Driver]:
    return lambda host: FakeDriver(host, name=name, kind=kind, behaviour=behaviour)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(root=tmp_path / "lib", run=tmp_path / "run")


def asked(host: Host, **known: Callable[[Host], Driver]) -> list[Check]:
    return list(doctor.check_drivers(host, known))


def test_drivers_that_work_are_ok_and_compared(host: Host) -> None:
    checks = asked(host, container=fake("container", Kind.CONTAINER), vm=fake("vm", Kind.VM))
    assert [(check.name, check.status) for check in checks] == [
        ("driver container", Status.OK),
        ("driver vm", Status.OK),
    ]


def test_an_unusable_driver_warns_with_its_reason_and_the_comparison_blocks(host: Host) -> None:
    broken = Behaviour(usable=False, reason="no QEMU", mend="./bootstrap")
    checks = asked(host, container=fake("container", Kind.CONTAINER), vm=fake("vm", Kind.VM, broken))
    vm = named(checks, "driver vm")
    assert (vm.status, vm.detail, vm.mend) == (Status.WARN, "no QEMU", "./bootstrap")
    assert named(checks, "comparison").status is Status.BLOCK
    assert "vm" in named(checks, "comparison").detail


def test_a_driver_that_a_host_may_be_without_is_no_warning(host: Host) -> None:
    class Spare(FakeDriver):
        optional = True

    absent = Behaviour(usable=False, reason="not installed")
    check = named(asked(host, spare=lambda host: Spare(host, behaviour=absent)), "driver fake")
    assert (check.status, check.detail) == (Status.OK, "not here, and not needed: not installed")


def test_one_driver_a_kind_is_enough(host: Host) -> None:
    broken = Behaviour(usable=False)
    checks = asked(
        host,
        container=fake("container", Kind.CONTAINER),
        runc=fake("runc", Kind.CONTAINER, broken),
        vm=fake("vm", Kind.VM),
    )
    assert doctor.exit_code(checks) == 0


def on(host: Host, **facts: str) -> tuple[Check, Check]:
    """What is said of a VM driver with these facts, and of the accelerator."""
    named_so = {f"accelerator {key}" if key != "accelerator" else key: text for key, text in facts.items()}
    checks = asked(host, vm=fake("vm", Kind.VM, Behaviour(facts=named_so)))
    return named(checks, "driver vm"), named(checks, "accelerator")


def test_emulation_warns_says_why_and_what_is_refused(host: Host) -> None:
    driver, accelerator = on(host, accelerator="tcg", reason="on TCG after 2.0 s, KVM was not there yet")
    assert (driver.status, driver.detail) == (Status.OK, "works, on TCG")
    assert accelerator.status is Status.WARN
    assert "software emulation" in accelerator.detail
    assert "refused" in accelerator.detail
    assert accelerator.detail.endswith("on TCG after 2.0 s, KVM was not there yet")


def test_hardware_virtualisation_is_named_with_the_race(host: Host) -> None:
    driver, accelerator = on(host, accelerator="kvm", reason="on KVM after 0.4 s, TCG was not there yet", forced="no")
    assert (driver.status, driver.detail) == (Status.OK, "works, on KVM")
    assert accelerator.status is Status.OK
    assert "KVM: on KVM after 0.4 s, TCG was not there yet" in accelerator.detail


def test_hardware_that_only_the_user_vouches_for_is_unproven(host: Host) -> None:
    _, accelerator = on(host, accelerator="kvm", reason="TARE_ACCELERATOR says so", forced="yes")
    assert (accelerator.status, accelerator.mend) == (Status.WARN, "unset TARE_ACCELERATOR")
    assert "no race was run" in accelerator.detail


def test_an_accelerator_not_found_out_yet_is_said_so(host: Host) -> None:
    driver, accelerator = on(host, accelerator="unknown")
    assert (driver.status, driver.detail) == (Status.OK, "works")
    assert accelerator.status is Status.WARN
    assert "race" in accelerator.detail


def test_without_a_virtual_machine_driver_nothing_is_said_of_accelerators(host: Host) -> None:
    checks = asked(host, container=fake("container", Kind.CONTAINER))
    assert "accelerator" not in {check.name for check in checks}


class Troubled(FakeDriver):
    """Every question to it fails."""

    def probe(self) -> NoReturn:
        raise RuntimeError("probe exploded")

    def leftovers(self) -> NoReturn:
        raise RuntimeError("cannot look")


def test_a_driver_that_fails_to_answer_is_a_finding_and_is_closed(host: Host) -> None:
    driver = Troubled(host, name="container")
    checks = asked(host, container=lambda _: driver)
    assert "probe exploded" in named(checks, "driver container").detail
    assert "cannot look" in named(checks, "leftovers container").detail
    assert driver.closed


def test_leftovers_are_named_with_their_sweep(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "leftovers", lambda self: ["mount /x", "pid 7", "dir /y"])
    check = named(asked(host, container=fake("container", Kind.CONTAINER)), "leftovers container")
    assert (check.status, check.detail, check.mend) == (Status.WARN, "mount /x and 2 more", "tare clean")


def test_without_root_no_driver_is_asked(host: Host) -> None:
    def explode(host: Host) -> NoReturn:
        raise AssertionError("asked")

    checks = list(doctor.check_drivers(host, {"container": explode}, root=False))
    assert [check.status for check in checks] == [Status.WARN]


def test_clone3_works_here() -> None:
    assert doctor.check_clone3().status is Status.OK


def test_a_forbidden_clone3_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(flags: int, exit_signal: int) -> NoReturn:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("runtime.linux.syscalls.clone3", forbidden)
    check = doctor.check_clone3()
    assert check.status is Status.BLOCK
    assert "Function not implemented" in check.detail


def test_missing_tools_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.TOOLS[1:]:
        grow(tmp_path, {name: "#!/bin/sh\n"})
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor.check_tools()
    assert (check.status, check.mend) == (Status.WARN, "./bootstrap")
    assert check.detail == f"not on PATH: {doctor.TOOLS[0]}"


def test_missing_firmware_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.drivers.libvirt.FIRMWARE", (("/nowhere/code", "/nowhere/variables"),))
    check = doctor.check_firmware()
    assert (check.status, check.mend) == (Status.WARN, "./bootstrap")


def test_firmware_that_is_there_is_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, {"code": "", "variables": ""})
    monkeypatch.setattr("runtime.drivers.libvirt.FIRMWARE", ((f"{tmp_path}/code", f"{tmp_path}/variables"),))
    assert doctor.check_firmware().status is Status.OK


def test_an_absent_image_says_how_to_make_it(host: Host) -> None:
    check = doctor.check_image(host)
    assert check.status is Status.WARN
    assert check.mend.startswith("tare build")


def test_a_live_instance_of_another_process_is_seen(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_live(host).status is Status.OK
    Ledger(host.run).open("tare-0", "container")
    assert doctor.check_live(host).status is Status.OK
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert doctor.check_live(host).status is Status.WARN


def test_settings_changed_for_a_run_are_told_and_those_a_killed_one_left_have_a_mend(tmp_path: Path) -> None:
    host, setting = Host(root=tmp_path / "lib", run=tmp_path / "run"), tmp_path / "setting"
    assert doctor.check_tuning(host).status is Status.OK
    grow(tmp_path, {"setting": "slow", "sys/kernel/x": ""})
    change = tuning.Change(name="governor", path=str(setting), before="slow", during="fast")
    with tuning.changed(host.run, [change], sys=tmp_path / "sys"):
        during = doctor.check_tuning(host)
        note = (host.run / tuning.NOTE).read_text()
    assert (during.status, during.mend) == (Status.WARN, "")
    assert "governor: slow → fast" in during.detail
    grow(host.run, {tuning.NOTE: note})
    assert doctor.check_tuning(host).mend == "tare clean"
    grow(host.run, {tuning.NOTE: "damaged"})
    assert "by hand" not in doctor.check_tuning(host).detail
    assert doctor.check_tuning(host).status is Status.WARN


@pytest.mark.parametrize("question", [doctor.check_image, doctor.check_live])
def test_state_that_may_not_be_read_is_a_finding(
    question: Callable[[Host], Check], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("runtime.images.store.ImageStore.resolve", denied)
    monkeypatch.setattr("runtime.ledger.Ledger.live", denied)
    assert "Permission denied" in question(host).detail


SOME = [
    Check("short", Status.OK, "fine"),
    Check("a longer name", Status.WARN, "many words " * 20, "a very long command " * 10),
    Check("bad", Status.BLOCK, "no"),
]


def test_rendering_marks_by_shape_and_word_and_never_breaks_a_command() -> None:
    text = doctor.render(SOME, width=60)
    lines = text.splitlines()
    assert lines[0].split() == ["✓", "ok", "short", "fine"]
    assert any(line.strip() == f"→ {SOME[1].mend}".strip() for line in lines)
    assert max(len(line) for line in lines if "→" not in line) <= 60
    assert lines[-1] == "1 ok, 1 warn, 1 block: this host cannot measure yet"
    assert "\x1b" not in text


@pytest.mark.parametrize(("checks", "code"), [(SOME, 1), (SOME[:2], 0), ([], 0)])
def test_exit_code_follows_blocks_only(checks: list[Check], code: int) -> None:
    assert doctor.exit_code(checks) == code
    assert ("cannot measure" in doctor.render(checks)) == bool(code)


def test_json_holds_words_not_shapes() -> None:
    assert json.loads(json.dumps(doctor.to_json(SOME[1])))["status"] == "warn"
