"""Hosts as trees of files below /proc and /sys, for tests that read a host without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_PROCESSOR = """processor\t: {number}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 106
model name\t: Example Xeon 8000
stepping\t: 6
microcode\t: 0xd0003b9
physical id\t: {socket}
core id\t\t: {core}
flags\t\t: {flags}
"""
_CGROUPS_FILE = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n" + "".join(
    f"{name}\t0\t1\t1\n" for name in ("cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "pids")
)
_MEMINFO = "MemTotal:       65536000 kB\nMemFree:  1000 kB\nMemAvailable:   32768000 kB\nSwapTotal:  {swap} kB\n"
_PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total={some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={full}\n"

V2_MOUNTS = """22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /sys rw - sysfs sysfs rw
30 24 0:26 / {v2} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
"""
HYBRID_MOUNTS = """22 1 8:2 / / rw,relatime - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 24 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 24 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
34 24 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
35 24 0:31 / {v2} rw - cgroup2 cgroup2 rw
"""


def grow(root: Path, files: Mapping[str, str]) -> Path:
    """Write `files` (relative path → text) below `root` and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def bare_metal(root: Path) -> tuple[Path, Path]:
    """A tuned-for-nothing two-socket server on cgroup v2: the (proc, sys) directories."""
    v2 = grow(root / "v2", {"cgroup.controllers": "cpuset cpu io memory hugetlb pids\n"})
    places = [(socket, core) for _thread in range(2) for socket in range(2) for core in range(2)]
    proc = grow(
        root / "proc",
        {
            "cpuinfo": "\n".join(
                _PROCESSOR.format(number=number, socket=socket, core=core, flags="fpu vmx avx2 sse")
                for number, (socket, core) in enumerate(places)
            ),
            "meminfo": _MEMINFO.format(swap=1024),
            "cgroups": _CGROUPS_FILE,
            "cmdline": "root=UUID=0a1b2c3d-1111-2222-3333-0123456789ab mitigations=off ip=10.0.0.7 -- start s3cret\n",
            "filesystems": "nodev\tproc\nnodev\toverlay\n\text4\n",
            "self/mountinfo": V2_MOUNTS.format(v2=v2),
            "sys/kernel/osrelease": "6.1.0-20-amd64\n",
            "sys/kernel/version": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.85-1\n",
            "sys/kernel/hostname": "web01\n",
            "sys/vm/swappiness": "60\n",
            "stat": "cpu  100 0 50 800 20 0 5 25 0 0\ncpu0 1 2 3\nintr 99\n",
            "loadavg": "1.50 1.00 0.50 2/300 4242\n",
            "pressure/cpu": _PRESSURE.format(some=1000, full=0),
            "pressure/io": _PRESSURE.format(some=2000, full=500),
            "100/comm": "containerd-shim\n",
            "101/comm": "qemu-system-x86\n",
            "102/comm": "bash\n",
        },
    )
    cpu = "devices/system/cpu"
    sys = grow(
        root / "sys",
        {
            f"{cpu}/smt/active": "1\n",
            f"{cpu}/isolated": "\n",
            f"{cpu}/intel_pstate/no_turbo": "0\n",
            f"{cpu}/cpufreq/policy0/scaling_driver": "intel_pstate\n",
            f"{cpu}/cpufreq/policy0/scaling_governor": "powersave\n",
            f"{cpu}/cpufreq/policy0/scaling_cur_freq": "2000000\n",
            f"{cpu}/cpufreq/policy1/scaling_governor": "powersave\n",
            f"{cpu}/cpufreq/policy1/scaling_cur_freq": "3000000\n",
            f"{cpu}/vulnerabilities/meltdown": "Not affected\n",
            f"{cpu}/vulnerabilities/retbleed": "Vulnerable\n",
            f"{cpu}/cpu0/cache/index0/level": "1\n",
            f"{cpu}/cpu0/cache/index0/type": "Data\n",
            f"{cpu}/cpu0/cache/index0/size": "48K\n",
            f"{cpu}/cpu0/cache/index3/level": "3\n",
            f"{cpu}/cpu0/cache/index3/type": "Unified\n",
            f"{cpu}/cpu0/cache/index3/size": "54M\n",
            "devices/system/node/node0/cpulist": "0-3\n",
            "devices/system/node/node1/cpulist": "4-7\n",
            "devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
            "devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm\n",
            "kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n",
            "kernel/mm/ksm/run": "1\n",
            "class/dmi/id/sys_vendor": "Example Computers\n",
            "class/dmi/id/product_name": "Rack 2\n",
            "class/dmi/id/product_serial": "SN-12345\n",
            "class/dmi/id/product_uuid": "0a1b2c3d-1111-2222-3333-0123456789ab\n",
        },
    )
    return proc, sys


def cloud_guest(root: Path) -> tuple[Path, Path]:
    """A small KVM guest on hybrid cgroups that shows little of itself."""
    v2 = grow(root / "v2", {"cgroup.controllers": "hugetlb\n"})
    proc = grow(
        root / "proc",
        {
            "cpuinfo": _PROCESSOR.format(number=0, socket=0, core=0, flags="fpu hypervisor sse"),
            "meminfo": _MEMINFO.format(swap=0),
            "cgroups": _CGROUPS_FILE,
            "filesystems": "nodev\tproc\n\text4\n",
            "self/mountinfo": HYBRID_MOUNTS.format(v2=v2),
            "sys/kernel/osrelease": "5.4.0-1\n",
        },
    )
    sys = grow(
        root / "sys",
        {
            "devices/system/clocksource/clocksource0/current_clocksource": "acpi_pm\n",
            "devices/system/clocksource/clocksource0/available_clocksource": "kvm-clock acpi_pm\n",
            "kernel/mm/ksm/run": "0\n",
        },
    )
    return proc, sys
