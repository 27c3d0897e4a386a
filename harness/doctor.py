"""Can this host measure? Each check is ok, warn or block, with the command that mends it.

Drivers are asked by their own probes. The race between hardware virtualisation and emulation boots the
bench's image: it is run by the first bench, not by the doctor, who shows its answer once there is one.
Questions about the host itself stand in `harness.hostchecks`.
"""

from __future__ import annotations

import os
import shutil
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness import environment
from harness.hostchecks import Check, Sight, Status, host_checks
from harness.hoststate import host_state
from runtime import tuning
from runtime.driver import Driver, Host, Kind, drivers
from runtime.errors import TareError
from runtime.images.store import ImageStore
from runtime.instance import Availability
from runtime.ledger import Ledger
from runtime.linux import procfs, syscalls
from runtime.network.remarks import remarks
from runtime.spec import ImageRef

IMAGE = ImageRef.parse("tare/debian:bookworm")
# What runs a container or a virtual machine, as /proc/PID/comm shows it (15 characters).
OTHERS = (
    "qemu-system-x86", "qemu-system-aar", "qemu-kvm", "firecracker", "cloud-hyperviso", "crosvm", "VBoxHeadless",
    "containerd-shim", "conmon", "lxc-start", "systemd-nspawn",
)  # fmt: skip
TOOLS = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "gcc", "mke2fs", "mkfs.vfat", "mcopy", "sfdisk")
LOOK_S = 0.5
MARKS = {Status.OK: "✓ ok", Status.WARN: "! warn", Status.BLOCK: "✗ block"}


def checks(host: Host) -> list[Check]:
    """Every check of this host, in the order of the report. About a second, once the probes' answers are kept."""
    sight = look(host)
    found = [*host_checks(sight), check_clone3(), check_tools(), check_firmware(), check_image(host)]
    found.append(check_network(host))
    found += check_drivers(host, drivers(), root=sight.uid == 0)
    return [*found, check_live(host), check_tuning(host)]


def exit_code(found: Sequence[Check]) -> int:
    """1 if anything blocks, else 0."""
    return 1 if any(check.status is Status.BLOCK for check in found) else 0


def look(host: Host, *, proc: Path = environment.PROC, sys: Path = environment.SYS) -> Sight:
    """Capture the host, and watch it for half a second."""
    captured = environment.capture(proc=proc, sys=sys, storage=host.root)
    before = host_state(proc, sys)  # after capturing, which runs programs
    time.sleep(LOOK_S)
    return Sight(
        uid=os.geteuid(),
        environment=captured,
        activity=before.delta(host_state(proc, sys)),
        available_bytes=environment.meminfo(proc).get("MemAvailable"),
        filesystems=_filesystems(proc),
        others=_others(proc),
        boot_editor=next((name for name in ("grubby", "update-grub") if shutil.which(name)), ""),
    )


def _filesystems(proc: Path) -> frozenset[str]:
    try:
        return frozenset(line.split()[-1] for line in (proc / "filesystems").read_text().splitlines())
    except OSError:
        return frozenset()


def _others(proc: Path) -> Mapping[str, int]:
    names: Counter[str] = Counter()
    for pid in procfs.pids(proc):
        try:
            names[(proc / str(pid) / "comm").read_text().strip()] += 1
        except OSError:
            continue
    return {name: names[name] for name in OTHERS if names[name]}


def check_clone3() -> Check:
    """Whether clone3(2) is there and no filter forbids it, by calling it."""
    try:
        pid, pidfd = syscalls.clone3(0, signal.SIGCHLD)
    except OSError as error:
        return Check("clone3", Status.BLOCK, f"{error.strerror}: instances cannot be launched; a filter may forbid it")
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(pidfd)
    return Check("clone3", Status.OK, "works")


def check_tools() -> Check:
    """The programs that images and virtual machines are made with."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        return Check("tools", Status.WARN, f"not on PATH: {', '.join(missing)}", "./bootstrap")
    return Check("tools", Status.OK, f"all {len(TOOLS)} on PATH")


def check_firmware() -> Check:
    """UEFI firmware for the VM that boots from its disk."""
    from runtime.drivers.libvirt import find_firmware

    try:
        find_firmware()
    except TareError as error:
        return Check("firmware", Status.WARN, f"{error.why}: the `vm` driver cannot boot its disk", "./bootstrap")
    return Check("firmware", Status.OK, "UEFI (OVMF) is there")


def check_network(host: Host) -> Check:
    """Whether containers on bridges reach each other and the world, however many they are."""
    found = remarks(host.root)
    if not found:
        return Check("network", Status.OK, "nothing stands in the way of bridges")
    return Check("network", Status.WARN, "; ".join(remark.text for remark in found), found[0].do)


def check_image(host: Host) -> Check:
    """Whether the bench's image is built; it is built on first use otherwise."""
    try:
        image = ImageStore(host.root).resolve(IMAGE)
    except TareError as error:
        return Check("image", Status.WARN, f"{IMAGE} is not built yet; the first bench builds it", _command(error.do))
    except OSError as error:
        return Check("image", Status.WARN, f"cannot be looked for: {error.strerror}")
    return Check("image", Status.OK, f"{IMAGE} {image.digest[:19]}")


def _command(advice: str) -> str:
    return advice[advice.rindex("tare ") :] if "tare " in advice else "tare build"


def check_drivers(host: Host, known: Mapping[str, Callable[[Host], Driver]], *, root: bool = True) -> Iterator[Check]:
    """Each driver's own probe, what it left behind, and whether there is anything to compare."""
    usable: set[Kind] = set()
    facts: Mapping[str, str] = {}
    for name, make in sorted(known.items()):
        if not root:
            yield Check(f"driver {name}", Status.WARN, "not asked: probes need root")
            continue
        driver = make(host)
        try:
            found = _probe(driver)
            usable |= {driver.kind} if found.usable else set()
            facts = found.facts if "accelerator" in found.facts else facts
            yield _driver_check(driver, found)
            yield from _leftovers(driver)
        finally:
            driver.close()
    if facts:
        yield check_accelerator(facts)
    if root and not usable >= {Kind.CONTAINER, Kind.VM}:
        absent = " or ".join(kind for kind in (Kind.CONTAINER, Kind.VM) if kind not in usable)
        yield Check("comparison", Status.BLOCK, f"no driver for a {absent} works here; see the reasons above")


def _probe(driver: Driver) -> Availability:
    try:
        return driver.probe()
    except Exception as error:  # noqa: BLE001 - a driver that cannot even say so is a finding, not the doctor's end
        return Availability(usable=False, reason=f"its probe failed: {str(error) or type(error).__name__}")


def _driver_check(driver: Driver, found: Availability) -> Check:
    name = f"driver {driver.name}"
    if not found.usable and driver.optional:
        return Check(name, Status.OK, f"not here, and not needed: {found.reason}")
    if not found.usable:
        return Check(name, Status.WARN, found.reason or "unusable, without a reason", found.mend)
    accelerator = found.facts.get("accelerator", "")
    return Check(name, Status.OK, f"works, on {accelerator.upper()}" if accelerator in ("kvm", "tcg") else "works")


def check_accelerator(facts: Mapping[str, str]) -> Check:
    """On what virtual machines run, from the facts of a driver of theirs, and how that was found."""
    name, accelerator = "accelerator", facts["accelerator"]
    why = facts.get("accelerator reason") or "the driver does not say why"
    if accelerator == "kvm" and facts.get("accelerator forced") == "yes":
        return Check(name, Status.WARN, f"KVM, unproven: {why}, and no race was run", "unset TARE_ACCELERATOR")
    if accelerator == "kvm":
        return Check(name, Status.OK, f"KVM: {why}; this holds until the next boot or another QEMU")
    if accelerator == "tcg":
        refused = "software emulation (TCG): figures of VMs are marked, verdicts on their speed and isolation refused"
        mend = "" if Path("/dev/kvm").exists() else "modprobe kvm_intel || modprobe kvm_amd"
        return Check(name, Status.WARN, f"{refused}; {why}", mend)
    return Check(name, Status.WARN, "KVM makes a machine; whether in hardware, the first bench finds out by a race")


def _leftovers(driver: Driver) -> Iterator[Check]:
    try:
        left = driver.leftovers()
    except Exception as error:  # noqa: BLE001 - as in _probe
        left = [f"cannot be listed: {error}"]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        yield Check(f"leftovers {driver.name}", Status.WARN, f"{left[0]}{more}", "tare clean")


def check_live(host: Host) -> Check:
    """Whether another Tare measures at this moment."""
    try:
        live = [instance_id for instance_id, pid in Ledger(host.run).live() if pid != os.getpid()]
    except OSError as error:
        return Check("another Tare", Status.WARN, f"cannot be looked for: {error.strerror}")
    if live:
        return Check("another Tare", Status.WARN, f"{len(live)} of its instances are running: let it end first")
    return Check("another Tare", Status.OK, "none runs")


def check_tuning(host: Host) -> Check:
    """Whether settings of this host are changed for a run, or still are after one that was killed."""
    try:
        note = tuning.note(host.run)
    except TareError as error:
        return Check("tuning", Status.WARN, f"{error.what} {error.why}", f"cat {host.run / tuning.NOTE}")
    if note is None:
        return Check("tuning", Status.OK, "no setting is changed for a run")
    changes = ", ".join(map(str, note.changes)) or "nothing"
    if note.live:
        return Check("tuning", Status.WARN, f"a run that goes on has changed {changes}: let it end first")
    return Check("tuning", Status.WARN, f"a killed run has left changed {changes}", "tare clean")


def to_json(check: Check) -> dict[str, str]:
    """The check as a JSON object: name, status, detail, mend."""
    return asdict(check)


def render(found: Sequence[Check], *, width: int | None = None) -> str:
    """A table for a terminal: mark and word, name, detail; below it the mend, never wrapped, fit for pasting."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    names = max((len(check.name) for check in found), default=0)
    indent = 9 + names + 2
    lines: list[str] = []
    for check in found:
        head = f"{MARKS[check.status]:<9}{check.name:<{names}}  "
        lines += textwrap.wrap(
            head + check.detail, max(width, indent + 30), subsequent_indent=" " * indent, drop_whitespace=True
        )
        if check.mend:
            lines.append(f"{' ' * indent}→ {check.mend}")
    counts = Counter(check.status for check in found)
    verdict = "this host cannot measure yet" if counts[Status.BLOCK] else "this host can measure"
    lines += ["", f"{counts[Status.OK]} ok, {counts[Status.WARN]} warn, {counts[Status.BLOCK]} block: {verdict}"]
    return "\n".join(lines)
