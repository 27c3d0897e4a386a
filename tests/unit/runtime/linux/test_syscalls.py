"""The typed calls: what they return, and what their errors say. Without privileges."""

from __future__ import annotations

import errno
import os
import signal
from types import SimpleNamespace

import pytest

from runtime.linux import syscalls


def test_an_error_names_call_errno_and_path() -> None:
    with pytest.raises(OSError, match=r"umount2: .*/nowhere") as caught:
        syscalls.umount2(b"/nowhere", 0)
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)


def test_a_mount_error_names_the_target() -> None:
    with pytest.raises(OSError, match=r"mount proc: .*'/nowhere'"):
        syscalls.mount(b"none", b"/nowhere", b"proc", 0, None)


def test_clone3_gives_pid_and_pidfd() -> None:
    pid, pidfd = syscalls.clone3(0, signal.SIGCHLD)
    if pid == 0:
        os._exit(7)
    try:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    finally:
        os.close(pidfd)
    assert ended is not None
    assert (ended.si_pid, ended.si_status) == (pid, 7)


def test_clone3_with_impossible_flags_fails() -> None:
    with pytest.raises(OSError, match="clone3"):
        syscalls.clone3(0x80000000000, signal.SIGCHLD)


def test_close_range_marks_descriptors() -> None:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        os.set_inheritable(descriptor, True)
        syscalls.close_range(descriptor, descriptor, syscalls.CLOSE_RANGE_CLOEXEC)
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_prctl_answers() -> None:
    assert syscalls.prctl(syscalls.PR_CAPBSET_READ, 0) in (0, 1)


def test_an_unknown_machine_has_no_such_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(machine="vax"))
    with pytest.raises(OSError, match="not implemented") as caught:
        syscalls._check(syscalls._call("clone3")(), "clone3")
    assert caught.value.errno == errno.ENOSYS


def test_masks_hold_each_capability_once() -> None:
    assert syscalls.capability_mask([0, 3, 3]) == 0b1001
