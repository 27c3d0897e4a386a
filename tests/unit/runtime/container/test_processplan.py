"""What makes a child the process that a configuration asks for. No root."""

from __future__ import annotations

import resource

import pytest

from runtime.container import processplan
from runtime.container.becoming import Confine, IoPriority, Personality, SessionKeyring, Terminal
from runtime.container.config import Capabilities, ConsoleSize, Process, Rlimit, User
from runtime.container.config import IoPriority as Priority
from runtime.container.config import Personality as Persona
from runtime.container.processplan import Confinement
from runtime.errors import UsageError


def confined(process: Process, last_capability: int = 40) -> Confine:
    return processplan.confine(process, Confinement(seccomp=None, last_capability=last_capability))


def test_all_five_sets_are_as_given() -> None:
    sets = Capabilities(
        bounding=("CAP_CHOWN", "CAP_KILL"),
        effective=("CAP_CHOWN",),
        permitted=("CAP_CHOWN", "CAP_KILL"),
        inheritable=("CAP_KILL",),
        ambient=("CAP_KILL",),
    )
    step = confined(Process(args=("x",), capabilities=sets))
    assert set(step.dropped) == set(range(41)) - {0, 5}
    assert step.sets == (1, 1 | 1 << 5, 1 << 5)
    assert step.ambient == (5,)


def test_no_capabilities_means_the_runtimes_own() -> None:
    step = confined(Process(args=("x",)))
    assert (step.dropped, step.sets) == ((), None)


def test_what_the_kernel_does_not_know_is_passed_over() -> None:
    sets = Capabilities(bounding=("CAP_MOON", "CAP_CHECKPOINT_RESTORE", "CAP_CHOWN"))
    assert set(confined(Process(args=("x",), capabilities=sets), last_capability=39).dropped) == set(range(1, 40))


def test_a_user_brings_its_groups_and_mask() -> None:
    step = confined(Process(args=("x",), user=User(uid=5, gid=6, umask=0o77, additional_gids=(7, 8))))
    assert (step.uid, step.gid, step.groups, step.umask) == (5, 6, (7, 8), 0o77)
    assert confined(Process(args=("x",))).umask == 0o022


def test_limits_have_the_kernels_numbers() -> None:
    limits = (Rlimit(type="RLIMIT_NOFILE", soft=1, hard=2), Rlimit(type="RLIMIT_CORE", soft=0, hard=2**64 - 1))
    assert processplan.limits(Process(rlimits=limits)) == (
        (resource.RLIMIT_NOFILE, 1, 2),
        (resource.RLIMIT_CORE, 0, resource.RLIM_INFINITY),
    )
    with pytest.raises(UsageError, match=r"process\.rlimits\[0\]\.type"):
        processplan.limits(Process(rlimits=(Rlimit(type="RLIM_INFINITY", soft=0, hard=0),)))


def test_the_environment_is_its_own_with_a_home() -> None:
    step = processplan.execute(Process(args=("sh",), env=("PATH=/a:/b", "A=b=c", "PATH=/c", "broken")))
    assert dict(step.env) == {b"PATH": b"/c", b"A": b"b=c", b"HOME": b"/root"}
    assert step.paths == (b"/c/sh",)


def test_what_is_set_before_is_what_is_asked_for() -> None:
    process = Process(args=("x",), io_priority=Priority(cls="IOPRIO_CLASS_IDLE", priority=3))
    steps = list(processplan.before(process, set_limits=True, keyring=True, persona=Persona(domain="LINUX32")))
    assert steps == [SessionKeyring(), Personality(8), IoPriority(3, 3)]
    assert list(processplan.before(Process(args=("x",)), set_limits=True, keyring=False)) == []


def test_a_terminal_has_the_size_and_owner_of_its_process() -> None:
    process = Process(args=("x",), terminal=True, console_size=ConsoleSize(height=24, width=80), user=User(uid=5))
    assert list(processplan.terminal(process, console=True)) == [Terminal(24, 80, 5, console=True)]
    assert list(processplan.terminal(Process(args=("x",)), console=True)) == []


def test_unknown_words_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"linux\.personality"):
        list(processplan.before(Process(), set_limits=False, keyring=False, persona=Persona(domain="BSD")))
    with pytest.raises(UsageError, match=r"process\.selinuxLabel"):
        processplan.check(Process(args=("x",), selinux_label="x"))
    with pytest.raises(UsageError, match=r"process\.args: empty"):
        processplan.check(Process())
