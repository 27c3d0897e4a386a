"""What a hostile container tries on the host that runs it, and is refused. Needs root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.container.options import IdRange
from tests.launches import Launches

HOST_NULL = Path("/dev/null")


@pytest.mark.parametrize("options", [{}, {"id_range": IdRange(host_id=1 << 20)}], ids=["root", "userns"])
def test_what_hides_a_file_is_not_the_hosts_to_change(launches: Launches, options: dict[str, object]) -> None:
    before = HOST_NULL.stat()
    script = "for f in /proc/keys /proc/timer_list /etc/os-release; do chmod 667 $f; chown 1:1 $f; touch -d @1 $f; done"
    masked = ("/proc/keys", "/proc/timer_list", "/etc/os-release")
    try:
        launches.sh(f"({script}) 2>/dev/null; true", masked_paths=masked, **options)
        after = HOST_NULL.stat()
    finally:
        HOST_NULL.chmod(before.st_mode & 0o7777)
        os.chown(HOST_NULL, before.st_uid, before.st_gid)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
