"""A full file system is told in one line, and nothing else is taken for one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.errors import TareError
from runtime.vm.room import room_for

HOST = Host(root=Path("/s/lib"), run=Path("/s/run"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        TareError("qemu-img create", f"x.qcow2: {os.strerror(errno.ENOSPC)}"),
    ],
)
def test_a_full_disk_is_told_with_where_and_what_to_do(error: Exception) -> None:
    with pytest.raises(TareError, match=r"^disk .*no space is left below /s/lib or /s/run .*--root"), room_for(HOST):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/sys/fs/cgroup/cpuset/tare/x/tasks"),
        OSError(errno.EACCES, os.strerror(errno.EACCES), "/s/lib"),
        TareError("qemu-img create", "no such file"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, room_for(HOST):
        raise error
    assert raised.value is error
