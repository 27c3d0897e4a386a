"""`vm` with its CPU limit on the vCPUs alone, as libvirt is commonly set up: what `vm` is held against.

For the isolation tests: what QEMU's own threads do for such a guest is bounded by nothing.
"""

from __future__ import annotations

from runtime.drivers.libvirt import VmDriver
from runtime.vm.plan import Quota


class VmVcpusDriver(VmDriver):
    """The same machine, another reach of `Limits.cpus`."""

    name = "vm-vcpus"
    quota = Quota.VCPUS
