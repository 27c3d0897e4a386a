"""Device rules: what v1 is told and what the program for v2 answers, both against the rules themselves."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cgroups import filter as device_filter
from runtime.cgroups.devices import ACCESS, USUAL, allowed, v1_lists, v1_shown, v1_sorted
from runtime.cgroups.filter import compile_rules, program_name
from runtime.cgroups.resources import DeviceRule
from runtime.errors import TareError, UsageError

NUMBERS = st.one_of(st.none(), st.sampled_from([-1, 1, 3, 5]))
RULES = st.lists(
    st.builds(
        DeviceRule,
        allow=st.booleans(),
        type=st.sampled_from([None, "a", "b", "c", "u"]),
        major=NUMBERS,
        minor=NUMBERS,
        access=st.one_of(st.none(), st.sets(st.sampled_from(ACCESS), min_size=1).map("".join)),
    ),
    max_size=6,
).map(tuple)
REQUESTS = [
    (kind, major, minor, access)
    for kind in "bc"
    for major in (1, 3, 7)
    for minor in (1, 5, 7)
    for access in ("r", "w", "m", "rw", "rwm")
]


def answer(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Run the program as the kernel would, on the few instructions it is made of."""
    bits = {"m": 1, "r": 2, "w": 4}
    word = sum(bits[letter] for letter in access) << 16 | {"b": 1, "c": 2}[kind]
    context, registers, at = struct.pack("<III", word, major, minor), [0] * 10, 0
    for _ in range(10_000):
        opcode, names, offset, immediate = struct.unpack_from("<BBhI", program, at * 8)
        to, source, at = names & 15, names >> 4, at + 1
        match opcode:
            case device_filter.LOAD:
                assert source == 1
                registers[to] = struct.unpack_from("<I", context, offset)[0]
            case device_filter.MOVE:
                registers[to] = immediate
            case device_filter.COPY32:
                registers[to] = registers[source]
            case device_filter.AND32:
                registers[to] &= immediate
            case device_filter.SHIFT32:
                registers[to] >>= immediate
            case device_filter.UNLESS32:
                at += offset if registers[to] != immediate else 0
            case device_filter.WHEN32:
                at += offset if registers[to] == immediate else 0
            case device_filter.EXIT:
                return registers[0] == 1
            case _:
                raise AssertionError(f"opcode {opcode:#x}")
    raise AssertionError("no end")


def v1_answer(rules: tuple[DeviceRule, ...], kind: str, major: int, minor: int, access: str) -> bool:
    """What the v1 controller does with a default and exceptions (security/device_cgroup.c)."""
    default, exceptions = v1_lists(rules)
    rows = [(text.split()[0], *text.split()[1].split(":"), text.split()[2]) for text in exceptions]
    matching = [
        set(letters)
        for type_, wanted_major, wanted_minor, letters in rows
        if type_ == kind and wanted_major in ("*", str(major)) and wanted_minor in ("*", str(minor))
    ]
    if default:
        return not any(set(access) & letters for letters in matching)
    return any(set(access) <= letters for letters in matching)


@given(RULES)
def test_the_program_answers_as_the_last_matching_rule_of_each_letter(rules: tuple[DeviceRule, ...]) -> None:
    program = compile_rules(rules)
    for kind, major, minor, access in REQUESTS:
        expected = set(access) <= set(allowed(rules, (kind, major, minor)))
        assert answer(program, kind, major, minor, access) is expected, (kind, major, minor, access)


@given(RULES)
def test_v1_says_the_same_or_refuses(rules: tuple[DeviceRule, ...]) -> None:
    try:
        v1_lists(rules)
    except TareError:
        return
    for kind, major, minor, access in REQUESTS:
        expected = set(access) <= set(allowed(rules, (kind, major, minor)))
        assert v1_answer(rules, kind, major, minor, access) is expected, (kind, major, minor, access)


def test_every_jump_stays_inside_the_program() -> None:
    program = compile_rules(USUAL)
    count = len(program) // 8
    for at in range(count):
        opcode, _, offset, _ = struct.unpack_from("<BBhI", program, at * 8)
        if opcode in (device_filter.UNLESS32, device_filter.WHEN32):
            assert at < at + 1 + offset < count


def test_an_empty_list_denies_everything() -> None:
    assert v1_lists(()) == (False, ())
    assert not answer(compile_rules(()), "c", 1, 3, "r")


@pytest.mark.parametrize(
    ("device", "access", "expected"),
    [
        (("c", 1, 3), "rw", True),
        (("c", 136, 77), "rwm", True),
        (("b", 8, 0), "m", True),
        (("b", 8, 0), "r", False),
        (("c", 10, 229), "r", False),
    ],
)
def test_the_usual_rules(device: tuple[str, int, int], access: str, expected: bool) -> None:
    assert answer(compile_rules(USUAL), *device, access) is expected
    assert v1_answer(USUAL, *device, access) is expected


def test_the_usual_rules_are_short_on_v1() -> None:
    default, exceptions = v1_lists(USUAL)
    assert not default
    assert sorted(exceptions) == sorted(
        [
            *("b *:* m", "c *:* m", "c 136:* rwm"),
            *(f"c 1:{minor} rwm" for minor in (3, 5, 7, 8, 9)),
            *(f"c 5:{minor} rwm" for minor in (0, 1, 2)),
        ]
    )


def test_letters_given_in_two_rules_count_together_on_v1() -> None:
    """Its kernel wants one exception that allows all of a request."""
    rules = (
        DeviceRule(allow=True, type="c", access="r"),
        DeviceRule(allow=True, type="c", major=1, minor=3, access="w"),
    )
    assert v1_lists(rules)[1] == ("c *:* r", "c 1:3 rw")


def test_everything_but_something_is_a_default_with_exceptions() -> None:
    rules = (DeviceRule(allow=True), DeviceRule(allow=False, type="b", major=8, minor=0, access="w"))
    assert v1_lists(rules) == (True, ("b 8:0 w",))
    assert v1_shown(rules) == "a *:* rwm"


def test_what_v1_cannot_say_is_refused() -> None:
    rules = (
        DeviceRule(allow=True, type="c", major=1, access="r"),
        DeviceRule(allow=False, type="c", major=1, minor=3),
    )
    with pytest.raises(TareError, match="limit devices: cgroup v1 cannot take back"):
        v1_lists(rules)
    assert not answer(compile_rules(rules), "c", 1, 3, "r")
    assert answer(compile_rules(rules), "c", 1, 4, "r")


def test_the_list_is_compared_without_its_order() -> None:
    assert v1_sorted("c 1:3 rwm\nb *:* m\n") == "b *:* m,c 1:3 rwm"


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ([DeviceRule(allow=True, type="x")], r"devices\[0\]: 'x'"),
        ([DeviceRule(allow=True), DeviceRule(allow=True, access="rx")], r"devices\[1\]: 'rx'"),
        ([DeviceRule(allow=True, major=1 << 32)], r"devices\[0\]: a device number"),
    ],
)
def test_what_is_no_rule_is_refused_by_its_place(rules: Sequence[DeviceRule], field: str) -> None:
    with pytest.raises(UsageError, match=field):
        v1_lists(tuple(rules))
    with pytest.raises(UsageError, match=field):
        compile_rules(tuple(rules))


def test_a_program_has_a_name_of_its_own_that_the_kernel_takes() -> None:
    names = {program_name(compile_rules(rules)) for rules in (USUAL, (), (DeviceRule(allow=True),))}
    assert len(names) == 3
    assert all(len(name) < 16 and name.replace("_", "").isalnum() for name in names)
