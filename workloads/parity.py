"""What an instance looks like from inside, asked of every kind with the same script: the parity table's raw material.

Not a workload: nothing here is timed or compared as a figure.
"""

from __future__ import annotations

from runtime.instance import Instance

TIMEOUT_S = 60.0
# Each line prints `key=value` where the value can be had; an absent value is absent.
SCRIPT = r"""
say() { [ -n "$2" ] && printf '%s=%s\n' "$1" "$2"; }
first() { for file in "$@"; do [ -r "$file" ] && head -n 1 "$file" && return; done; }
cpu() { sed -n "s/^$1[[:space:]]*: //p" /proc/cpuinfo | head -n 1; }
say cpus "$(nproc)"
say cpu_model "$(cpu 'model name')"
say cpu_flags "$(cpu flags | tr ' ' '\n' | sort | md5sum | cut -c 1-12)"
say cpu_flag_count "$(cpu flags | wc -w)"
say memory_total_kib "$(sed -n 's/^MemTotal:[[:space:]]*\([0-9]*\) kB/\1/p' /proc/meminfo)"
say swap_total_kib "$(sed -n 's/^SwapTotal:[[:space:]]*\([0-9]*\) kB/\1/p' /proc/meminfo)"
say clocksource "$(first /sys/devices/system/clocksource/clocksource0/current_clocksource)"
say kernel "$(uname -r)"
say machine "$(uname -m)"
say init "$(first /proc/1/comm)"
say root_type "$(stat -f -c %T /)"
say root_mount "$(sed -n 's|^[^ ]* / \([^ ]* [^ ]*\) .*|\1|p' /proc/mounts | tail -n 1 | sed 's/,[a-z]*dir=[^,]*//g')"
for disk in vda sda nvme0n1; do
  say "disk_cache_$disk" "$(first /sys/block/$disk/queue/write_cache)"
done
say sched_autogroup "$(first /proc/sys/kernel/sched_autogroup_enabled)"
say cgroup_cpu_max "$(first /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us)"
say cgroup_memory_max "$(first /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes)"
say cgroup_pids_max "$(first /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max)"
say open_files "$(ulimit -n)"
say libc "$(ldd --version 2>/dev/null | head -n 1)"
say sysbench "$(sysbench --version 2>/dev/null | head -n 1)"
say fio "$(fio --version 2>/dev/null | head -n 1)"
say stress_ng "$(stress-ng --version 2>/dev/null | cut -d ' ' -f 3 | tr -d ,)"
exit 0
"""


def describe(instance: Instance) -> dict[str, str]:
    """The facts of `instance` by name: CPUs, memory, clock source, kernel, root file system, limits, tool versions.

    Values are as the instance prints them; names carry units. Raises TareError when the script cannot run.
    """
    output = instance.exec(("/bin/sh", "-c", SCRIPT), TIMEOUT_S).check().stdout.decode(errors="replace")
    pairs = (line.partition("=") for line in output.splitlines())
    return {key: value.strip() for key, equals, value in pairs if equals and value.strip()}
