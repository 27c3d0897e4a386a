"""Compiled filters, run instruction by instruction as the kernel would; and where they are kept."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.linux import seccomp
from runtime.linux.profile import DENIED, Seccomp, SyscallArgument, SyscallRule, default_profile
from runtime.linux.syscalls import CLONE_NEWUSER

pyseccomp = pytest.importorskip("pyseccomp")

ALLOW, KILL = 0x7FFF0000, 0x80000000
NATIVE = 0xC000003E  # AUDIT_ARCH_X86_64


def refused(number: int) -> int:
    return 0x00050000 | number


def verdict(call: int, *arguments: int, architecture: int | None = None, program: bytes | None = None) -> int:
    """What the filter returns: a classic BPF machine with the few instructions that libseccomp emits."""
    data = struct.pack("<iIQ6Q", call, architecture or pyseccomp.system_arch(), 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code_of = list(struct.iter_unpack("<HBBI", seccomp.default_program() if program is None else program))
    at, accumulator = 0, 0
    while True:
        code, yes, no, k = code_of[at]
        at += 1
        match code:
            case 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:  # and k
                accumulator &= k
            case 0x05:  # ja k
                at += k
            case 0x15:  # jeq
                at += yes if accumulator == k else no
            case 0x25:  # jgt
                at += yes if accumulator > k else no
            case 0x35:  # jge
                at += yes if accumulator >= k else no
            case 0x06:  # ret k
                return int(k)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def number(name: str) -> int:
    return int(pyseccomp.resolve_syscall(pyseccomp.system_arch(), name))


@pytest.mark.parametrize("name", ["read", "write", "openat", "execve", "ptrace", "chroot", "futex", "io_submit"])
def test_ordinary_calls_are_allowed(name: str) -> None:
    assert verdict(number(name)) == ALLOW


@pytest.mark.parametrize(
    "name", ["mount", "setns", "unshare", "bpf", "keyctl", "kexec_load", "io_uring_setup", "reboot"]
)
def test_calls_that_reach_beyond_are_refused(name: str) -> None:
    assert verdict(number(name)) == refused(errno.EPERM)


def test_clone_may_make_threads_and_no_namespaces() -> None:
    assert verdict(number("clone"), 0x50F00) == ALLOW
    assert verdict(number("clone"), CLONE_NEWUSER | 17) == refused(errno.EPERM)


def test_clone3_is_unknown_so_that_libraries_fall_back() -> None:
    assert verdict(number("clone3")) == refused(errno.ENOSYS)


def test_vsock_is_the_only_socket_refused() -> None:
    assert verdict(number("socket"), 40) == refused(errno.EPERM)
    assert verdict(number("socket"), 2) == ALLOW


def test_what_is_not_known_is_not_allowed() -> None:
    assert verdict(5000) == refused(errno.ENOSYS)


def test_other_architectures_are_unknown() -> None:
    assert verdict(number("read"), architecture=0x40000003) == refused(errno.ENOSYS)


def test_a_call_is_decided_in_few_instructions() -> None:
    """The kernel runs the filter for every call number at each launch: a list instead of a tree would be slow."""
    assert len(seccomp.default_program()) // 8 < 4096
    assert len(seccomp.known_calls()) > 300


def test_every_call_is_permitted_or_refused_on_purpose() -> None:
    """A call that a newer libseccomp knows, and this profile not, is ENOSYS: then decide and add it."""
    judged = {verdict(number(name)) for name in seccomp.known_calls() if name != "clone3"}
    assert refused(errno.ENOSYS) not in judged
    assert {name for name in seccomp.known_calls() if verdict(number(name)) == refused(errno.EPERM)} <= DENIED


def test_a_capability_lifts_what_it_stands_for() -> None:
    lifted = seccomp.compile_profile(default_profile(["CAP_SYS_ADMIN", "CAP_CHOWN"]))
    for name in ("mount", "unshare", "setns", "clone3"):
        assert verdict(number(name), program=lifted) == ALLOW
    assert verdict(number("clone"), CLONE_NEWUSER | 17, program=lifted) == ALLOW
    for name in ("keyctl", "kexec_load", "reboot", "init_module"):
        assert verdict(number(name), program=lifted) == refused(errno.EPERM)


def profile(*rules: SyscallRule, default: str = "SCMP_ACT_ALLOW", **more: Any) -> Seccomp:
    return Seccomp(default_action=default, syscalls=rules, **more)


def rule(name: str, action: str = "SCMP_ACT_ERRNO", *args: SyscallArgument, **more: Any) -> SyscallRule:
    return SyscallRule(names=(name,), action=action, args=args, **more)


def argument(index: int, op: str, value: int, value_two: int = 0) -> SyscallArgument:
    return SyscallArgument(index=index, op=f"SCMP_CMP_{op}", value=value, value_two=value_two)


@pytest.mark.parametrize(
    ("action", "errno_ret", "value"),
    [
        ("SCMP_ACT_KILL", None, 0),
        ("SCMP_ACT_KILL_THREAD", None, 0),
        ("SCMP_ACT_KILL_PROCESS", None, KILL),
        ("SCMP_ACT_TRAP", None, 0x00030000),
        ("SCMP_ACT_ERRNO", None, 0x00050000 | errno.EPERM),
        ("SCMP_ACT_ERRNO", 77, 0x00050000 | 77),
        ("SCMP_ACT_TRACE", 5, 0x7FF00005),
        ("SCMP_ACT_LOG", None, 0x7FFC0000),
    ],
)
def test_every_action_is_the_kernels(action: str, errno_ret: int | None, value: int) -> None:
    program = seccomp.compile_profile(profile(rule("getcwd", action, errno_ret=errno_ret)))
    assert verdict(number("getcwd"), program=program) == value
    assert verdict(number("read"), program=program) == ALLOW


@pytest.mark.parametrize(
    ("op", "hit", "missed"),
    [
        ("NE", (4, 6), (5,)),
        ("LT", (4, 0), (5, 6)),
        ("LE", (4, 5), (6,)),
        ("EQ", (5,), (4, 6)),
        ("GE", (5, 6), (4,)),
        ("GT", (6, 2**64 - 1), (5, 4)),
    ],
)
def test_every_comparison_holds_where_it_should(op: str, hit: tuple[int, ...], missed: tuple[int, ...]) -> None:
    program = seccomp.compile_profile(profile(rule("lseek", "SCMP_ACT_ERRNO", argument(1, op, 5))))
    for value in hit:
        assert verdict(number("lseek"), 9, value, program=program) == refused(errno.EPERM)
    for value in missed:
        assert verdict(number("lseek"), 9, value, program=program) == ALLOW


def test_a_mask_comes_before_the_value_it_leaves() -> None:
    program = seccomp.compile_profile(profile(rule("lseek", "SCMP_ACT_ERRNO", argument(0, "MASKED_EQ", 0xF0, 0x10))))
    assert verdict(number("lseek"), 0x1F, program=program) == refused(errno.EPERM)
    assert verdict(number("lseek"), 0x2F, program=program) == ALLOW


def test_all_arguments_must_hold_but_any_on_the_same_one() -> None:
    both = seccomp.compile_profile(profile(rule("lseek", "SCMP_ACT_ERRNO", argument(0, "EQ", 1), argument(1, "EQ", 2))))
    assert verdict(number("lseek"), 1, 2, program=both) == refused(errno.EPERM)
    assert verdict(number("lseek"), 1, 3, program=both) == ALLOW
    either = seccomp.compile_profile(
        profile(rule("lseek", "SCMP_ACT_ERRNO", argument(0, "EQ", 1), argument(0, "EQ", 2)))
    )
    assert [verdict(number("lseek"), value, program=either) == ALLOW for value in (1, 2, 3)] == [False, False, True]


def test_other_architectures_are_filtered_when_they_are_named() -> None:
    x86 = seccomp.ARCHITECTURES["SCMP_ARCH_X86"]
    named = profile(rule("getcwd"), architectures=(seccomp.native_architecture(), "SCMP_ARCH_X86"))
    program = seccomp.compile_profile(named)
    assert verdict(183, architecture=x86, program=program) == refused(errno.EPERM)
    assert verdict(3, architecture=x86, program=program) == ALLOW
    alone = seccomp.compile_profile(profile(rule("getcwd")))
    assert verdict(3, architecture=x86, program=alone) == 0


def test_calls_newer_than_the_profile_are_unknown_not_refused() -> None:
    allowed = profile(rule("read", "SCMP_ACT_ALLOW"), rule("getcwd", "SCMP_ACT_ALLOW"), default="SCMP_ACT_ERRNO")
    program = seccomp.compile_profile(allowed)
    assert verdict(number("getcwd"), program=program) == ALLOW
    assert verdict(number("write"), program=program) == refused(errno.EPERM)
    assert verdict(number("openat2"), program=program) == refused(errno.ENOSYS)


def test_unknown_calls_and_rules_that_change_nothing_are_passed_over() -> None:
    program = seccomp.compile_profile(
        profile(rule("no_such_call"), rule("read", "SCMP_ACT_ALLOW"), rule("getcwd"), rule("getcwd"))
    )
    assert verdict(number("getcwd"), program=program) == refused(errno.EPERM)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (profile(default="ALLOW"), "defaultAction: 'ALLOW' is not one of"),
        (profile(default_errno_ret=1), "defaultAction: SCMP_ACT_ALLOW takes no errno"),
        (profile(rule("read"), rule("read", "SCMP_ACT_NOTIFY")), r"syscalls\[1\].action: SCMP_ACT_NOTIFY needs a list"),
        (profile(architectures=("x86",)), r"architectures\[0\]: 'x86' is not one of"),
        (profile(rule("read", "SCMP_ACT_ERRNO", argument(0, "IS", 1))), r"syscalls\[0\].args: 'SCMP_CMP_IS'"),
        (profile(rule("read", "SCMP_ACT_ERRNO", argument(6, "EQ", 1))), r"syscalls\[0\].args: .* not 6"),
    ],
)
def test_a_bad_profile_is_refused_by_its_field(bad: Seccomp, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        seccomp.compile_profile(bad)


def test_flags_are_for_the_installation() -> None:
    flags = ("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG")
    assert seccomp.flags(profile(flags=flags)) == 6


def forgetful(directory: Path, wanted: Seccomp) -> bytes:
    """As a fresh process would find it."""
    seccomp.cached.cache_clear()
    return seccomp.cached(wanted, directory)


def test_a_kept_program_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = profile(rule("getcwd"))
    program = forgetful(tmp_path / "new", wanted)
    assert program == seccomp.compile_profile(wanted)

    def never(_: Seccomp) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(seccomp, "compile_profile", never)
    assert forgetful(tmp_path / "new", wanted) == program
    with pytest.raises(AssertionError, match="compiled again"):
        forgetful(tmp_path / "new", profile(rule("read")))


@given(st.data())
def test_a_kept_program_that_was_changed_is_not_believed(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    directory = tmp_path_factory.mktemp("kept")
    wanted = profile(rule("getcwd"))
    program = forgetful(directory, wanted)
    (file,) = directory.iterdir()
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    file.write_bytes(content)
    assert forgetful(directory, wanted) == program
    assert file.read_bytes() != content


def test_what_others_could_have_written_is_not_believed(tmp_path: Path) -> None:
    wanted = profile(rule("getcwd"))
    program = forgetful(tmp_path, wanted)
    (file,) = tmp_path.iterdir()
    file.chmod(0o666)
    assert forgetful(tmp_path, wanted) == program
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_directory_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert forgetful(tmp_path / "file" / "below", profile(rule("getcwd")))


def test_a_warm_cache_loads_neither_libseccomp_nor_its_binding(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from runtime.linux import profile, seccomp\n"
        "print(len(seccomp.cached(profile.default_profile(), pathlib.Path(sys.argv[1]))))\n"
        "print('pyseccomp' in sys.modules, 'libseccomp' in pathlib.Path('/proc/self/maps').read_text())\n"
    )
    cold, warm = (
        subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert cold.split("\n")[1] == "True True"
    assert warm.split("\n")[1] == "False False"
    assert cold.split("\n")[0] == warm.split("\n")[0]
