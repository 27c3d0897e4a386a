"""Statistics out of recorded accounting files."""

from __future__ import annotations

from pathlib import Path

from runtime.cgroups.statistics import DeviceIo, Level, Pressure
from runtime.cgroups.v1 import V1Cgroup
from runtime.cgroups.v2 import V2Cgroup


def test_v1_tells_it_by_hierarchy(v1_mounts: dict[str, Path], v2_mount: Path) -> None:
    for name, text in {
        "cpuacct.stat": "user 200\nsystem 50\n",
        "cpuacct.usage_percpu": "100000000 23456789 \n",
        "cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 4000\nnr_bursts 1\nburst_time 70\n",
        "memory.stat": "cache 1\ntotal_cache 10\ntotal_rss 20\ntotal_swap 30\ntotal_inactive_file 4\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "memory.failcnt": "5\n",
        "memory.kmem.usage_in_bytes": "7\n",
        "pids.events": "max 6\n",
        "blkio.throttle.io_serviced_recursive": "254:0 Read 4\n254:0 Write 1\n254:0 Total 5\nTotal 5\n",
    }.items():
        (v1_mounts[name.partition(".")[0]] / "tare/tare-0" / name).write_text(text)
    (v2_mount / "tare/tare-0/hugetlb.2MB.current").write_text("4194304\n")
    (v2_mount / "tare/tare-0/hugetlb.2MB.max").write_text("max\n")
    group = V1Cgroup("tare-0", v1_mounts, unified=(v2_mount, {"hugetlb"}))
    told = group.statistics()
    assert (told.cpu.total_ns, told.cpu.user_ns, told.cpu.system_ns) == (123456789, 2_000_000_000, 500_000_000)
    assert told.cpu.per_cpu_ns == (100000000, 23456789)
    assert (told.cpu.periods, told.cpu.throttled_periods, told.cpu.throttled_ns) == (9, 3, 4000)
    assert told.memory.memory == Level(current_bytes=4096, peak_bytes=8192, failures=5)
    assert (told.memory.cache_bytes, told.memory.anonymous_bytes, told.memory.swap.current_bytes) == (10, 20, 30)
    assert (told.memory.working_set_bytes, told.memory.killed, told.memory.kernel.current_bytes) == (4092, 2, 7)
    assert (told.pids.current, told.pids.limit, told.pids.failures) == (3, None, 6)
    assert told.io[1] == DeviceIo(device="254:0", read_bytes=1000, write_bytes=20, discard_bytes=0, reads=4, writes=1)
    assert told.huge_pages == {"2MB": Level(current_bytes=4 << 20)}
    assert told.usage() == group.usage()


def test_v2_tells_it_in_one_place(v2_mount: Path) -> None:
    for name, text in {
        "cpu.stat": "usage_usec 2500\nuser_usec 2000\nsystem_usec 500\nnr_periods 9\nnr_throttled 3\n"
        "throttled_usec 4\nnr_bursts 1\nburst_usec 7\n",
        "memory.stat": "anon 20\nfile 10\nkernel 7\nsock 2\ninactive_file 5000\n",
        "memory.events": "low 0\nhigh 4\nmax 5\noom 3\noom_kill 2\n",
        "memory.swap.current": "30\n",
        "pids.events": "max 6\n",
        "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0 avg300=0 total=3\n",
        "hugetlb.2MB.current": "0\n",
        "hugetlb.2MB.rsvd.current": "0\n",
        "hugetlb.2MB.max": "4194304\n",
        "hugetlb.2MB.events": "max 1\n",
    }.items():
        (v2_mount / "tare/tare-0" / name).write_text(text)
    group = V2Cgroup("tare-0", v2_mount)
    told = group.statistics()
    assert (told.cpu.total_ns, told.cpu.user_ns, told.cpu.throttled_ns, told.cpu.burst_ns) == (
        2_500_000,
        2_000_000,
        4000,
        7000,
    )
    assert told.memory.memory == Level(current_bytes=4096, peak_bytes=8192, failures=5)
    assert told.memory.swap == Level(current_bytes=30)
    assert (told.memory.out_of_memory, told.memory.killed, told.memory.working_set_bytes) == (3, 2, 0)
    assert told.pressure == {"cpu": Pressure(some_us=12, full_us=3)}
    assert told.huge_pages == {"2MB": Level(current_bytes=0, limit_bytes=4 << 20, failures=1)}
    assert [(device.device, device.reads) for device in told.io] == [("254:0", 1), ("253:0", 1)]
    assert told.usage() == group.usage()


def test_of_an_absent_group_nothing_is_told(tmp_path: Path) -> None:
    told = V2Cgroup("tare-0", tmp_path).statistics()
    assert (told.cpu.total_ns, told.memory.memory, told.io, told.usage().io_read_bytes) == (None, Level(), (), None)
