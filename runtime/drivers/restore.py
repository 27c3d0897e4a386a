"""`microvm-restore`: a microvm that is not booted but restored from a saved state, each with an identity of its own.

The state is saved once from a guest that has booted and is ready, and kept for as long as nothing it depends on
changes (`runtime.vm.saved`). A guest that is to have a network is saved with a card that it has not been told to use:
so no two restored ones ever speak with the same address.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from runtime.driver import Host
from runtime.drivers.libvirt import MicrovmDriver, PreparedGuest, find_qemu
from runtime.errors import TareError, UsageError
from runtime.instance import Availability
from runtime.spec import ImageRef, InstanceSpec, Limits, NetworkSpec, Ready
from runtime.vm import accelerator
from runtime.vm.domain import Tuning
from runtime.vm.guest import Guest
from runtime.vm.plan import Plan
from runtime.vm.saved import Saved, SavedStates, key

_READY_S = 180.0
_NOBODY = InstanceSpec(image=ImageRef("saved"))  # what tells instances apart stands in no key


class RestoreDriver(MicrovmDriver):
    """The third lane of startup: neither a process nor a boot."""

    name = "microvm-restore"

    def __init__(self, host: Host, asked: Tuning | None = None) -> None:
        super().__init__(host, asked)
        self._states = SavedStates(host.root)
        self._states_used = ExitStack()

    def _asked(self) -> Tuning:
        """A restored guest's disk is always an overlay: of the disk that the state was saved with."""
        return replace(super()._asked(), reflink=False)

    def probe(self) -> Availability:
        """As a microvm's, with what is different."""
        found = super().probe()
        return replace(found, facts={**found.facts, "start": "restored from a saved state, not booted"})

    def prepare(self, spec: InstanceSpec) -> PreparedGuest:
        """Also boot a guest and save it, unless that was done before; a corrupt state is made anew."""
        if not self._connect().embedded:
            raise UsageError("restored guest", "a daemon's libvirt is not possible yet", "use qemu:///embed")
        prepared = super().prepare(spec)
        plan = prepared.plan
        name = self._key(plan)
        saved = self._find(name)
        if saved is None:
            self._states.make(name, lambda state, disk: self._save(plan, state, disk))
            saved = self._find(name)
        if saved is None:
            raise TareError(f"saved state {name}", "it went while it was made", "try again")
        restored = replace(plan, base=saved.disk, base_format="qcow2", lowest=plan.base, saved=saved)
        return replace(prepared, plan=restored)

    def leftovers(self) -> list[str]:
        """Also half-written states."""
        return [*super().leftovers(), *self._states.half_written()]

    def sweep(self) -> list[str]:
        """Remove them."""
        return [*super().sweep(), *self._states.sweep()]

    def close(self) -> None:
        """Also let others remove the states."""
        self._states_used.close()
        super().close()

    def _find(self, name: str) -> Saved | None:
        held = ExitStack()
        try:
            saved = held.enter_context(self._states.using(name))
            if saved is not None:
                saved.require_intact()
        except TareError:
            held.close()
            if not self._states.remove(name):
                raise  # in use elsewhere, and so not ours to replace
            return None
        self._states_used.enter_context(held)
        return saved

    def _save(self, plan: Plan, state: Path, disk: Path) -> None:
        spec = InstanceSpec(
            image=plan.spec.image,
            limits=Limits(memory_bytes=plan.spec.limits.memory_bytes),
            network=NetworkSpec(mode=plan.spec.network.mode),
            ready=Ready.SERVICE,
        )
        with Guest.launch(replace(plan, spec=spec, nameless=True), self.host, self._connect()) as guest:
            guest.wait_ready(_READY_S)
            guest.save(state, disk)

    def _key(self, plan: Plan) -> str:
        qemu = find_qemu().stat()
        files = [plan.base, plan.boot.kernel, plan.boot.initrd]  # type: ignore[union-attr]
        nobody = replace(_NOBODY, network=NetworkSpec(mode=plan.spec.network.mode))
        neutral = replace(plan, spec=nobody, env=(), driver="", quota=plan.quota)
        return key(
            {
                "plan": repr(neutral),
                "files": repr([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]),
                "qemu": f"{find_qemu()} {qemu.st_size} {qemu.st_mtime_ns}",
                "libvirt": repr(sorted(self._connect().facts().items())),
                "host": accelerator.key(plan.emulator),
            }
        )
