"""`./bootstrap` decides rightly on systems that are not this one: fake package managers on PATH, nothing installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).resolve().parents[2] / "bootstrap"
DEBIAN = 'ID=debian\nVERSION_ID="12"\n'
UBUNTU = "ID=ubuntu\nID_LIKE=debian\n"
FEDORA = "ID=fedora\n"
ARCH = "ID=arch\n"


class System:
    """A directory of fake programs that stands for a whole PATH, and an os-release file."""

    def __init__(self, root: Path, os_release: str) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.os_release = root / "os-release"
        self.os_release.write_text(os_release)
        for tool in ("sh", "tr", "dirname", "mktemp", "rm", "tail", "id", "env", "cat"):
            (self.bin / tool).symlink_to(f"/bin/{tool}" if Path(f"/bin/{tool}").exists() else f"/usr/bin/{tool}")

    def fake(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "TARE_OS_RELEASE": str(self.os_release)}
        return subprocess.run(
            ["/bin/sh", str(BOOTSTRAP), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.mark.parametrize("os_release", [DEBIAN, UBUNTU])
def test_debian_family_installs_only_what_dpkg_does_not_know(tmp_path: Path, os_release: str) -> None:
    system = System(tmp_path, os_release)
    system.fake("dpkg-query", 'case "$*" in *mtools*) exit 1;; *gcc*) printf config-files;; *) printf installed;; esac')
    outcome = system.run("--print")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip() == "bootstrap: would install with apt: mtools gcc"


def test_fedora_is_asked_by_what_provides(tmp_path: Path) -> None:
    system = System(tmp_path, FEDORA)
    system.fake("rpm", 'case "$*" in *edk2-ovmf*|*libvirt-devel*) exit 1;; esac')
    outcome = system.run("--print")
    assert outcome.stdout.strip() == "bootstrap: would install with dnf: edk2-ovmf libvirt-devel"


def test_other_systems_get_the_list_of_what_is_missing_and_nothing_is_done(tmp_path: Path) -> None:
    system = System(tmp_path, ARCH)
    system.fake("pkg-config", "exit 0")
    system.fake("gcc", "exit 0")
    outcome = system.run()
    assert outcome.returncode == 1
    assert "neither Debian, Ubuntu nor Fedora" in outcome.stderr
    assert "mmdebstrap" in outcome.stderr
    assert " gcc" not in outcome.stderr


def test_not_root_is_told_what_needs_root(tmp_path: Path) -> None:
    system = System(tmp_path, DEBIAN)
    system.fake("dpkg-query", "exit 1")
    system.fake("id", "echo 1000")
    outcome = system.run()
    assert outcome.returncode == 1
    assert "needs root to install: qemu-system-x86" in outcome.stderr


def test_a_failing_package_manager_shows_its_last_words(tmp_path: Path) -> None:
    system = System(tmp_path, FEDORA)
    system.fake("rpm", "exit 1")
    system.fake("id", "echo 0")
    system.fake("dnf", "echo 'No match for argument: mtools' >&2; exit 1")
    outcome = system.run()
    assert outcome.returncode == 1
    assert "No match for argument: mtools" in outcome.stderr
    assert "failed: dnf install" in outcome.stderr


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    outcome = System(tmp_path, DEBIAN).run("--frobnicate")
    assert outcome.returncode == 1
    assert "unknown option --frobnicate" in outcome.stderr
