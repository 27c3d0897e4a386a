"""`--tune`: what it changes on recorded hosts, and that everything is put back, also after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys as system
from pathlib import Path

import pytest

from harness import tune
from harness.hoststate import PROC
from runtime import tuning
from runtime.errors import TareError
from runtime.tuning import NOTE, Change
from tests.unit.harness import trees

GOVERNOR = "devices/system/cpu/cpufreq/policy{}/scaling_governor"
MEMINFO = "MemTotal: 65536000 kB\nMemAvailable: 32768000 kB\nSwapTotal: 2097152 kB\nSwapFree: {free} kB\n"
SWAPS = "Filename Type Size Used Priority\n"


class Host:
    """A recorded host with swap, whose swapon and swapoff edit its /proc/swaps."""

    def __init__(self, root: Path) -> None:
        self.proc, self.sys = trees.bare_metal(root)
        self.run = root / "run"
        trees.grow(
            self.proc,
            {
                "swaps": f"{SWAPS}/dev/sda3 partition 1048572 0 -2\n/swap\\040file file 1048572 0 5\n",
                "meminfo": MEMINFO.format(free=2097152),
                "sys/kernel/numa_balancing": "1\n",
                "sys/kernel/random/boot_id": "one\n",
            },
        )

    def settings(self) -> dict[str, str]:
        """Every setting there is, as the kernel would tell it."""
        names = [*(GOVERNOR.format(n) for n in (0, 1)), "devices/system/cpu/intel_pstate/no_turbo", "kernel/mm/ksm/run"]
        files = [*(self.sys / name for name in names), self.sys / "kernel/mm/transparent_hugepage/enabled"]
        found = {str(path): tuning.reading(path) for path in [*files, self.proc / "sys/kernel/numa_balancing"]}
        return found | {area.path: area.before for area in tuning.swap_areas(self.proc)}

    def put_back(self) -> tuning.PutBack:
        return tuning.put_back(self.run, proc=self.proc)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    programs = tmp_path / "bin"
    swaps = host.proc / "swaps"
    escaped = """name=$(printf %s "$1" | sed 's/ /\\\\040/g')"""
    off = f"""#!/bin/sh\n{escaped}\ngrep -vF "$name " {swaps} > {swaps}.new; mv {swaps}.new {swaps}\n"""
    on = f"""#!/bin/sh\nprio=-2; [ "$1" = --priority ] && {{ prio=$2; shift 2; }}\n{escaped}
printf '%s file 1048572 0 %s\\n' "$name" "$prio" >> {swaps}\n"""
    trees.grow(programs, {"swapoff": off, "swapon": on})
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return host


def tuned(host: Host) -> dict[str, str]:
    with tune.tuned(host.run, proc=host.proc, sys=host.sys) as told:
        return dict(told)


def test_everything_the_doctor_would_mend_is_changed_and_put_back(host: Host) -> None:
    before = host.settings()
    with tune.tuned(host.run, proc=host.proc, sys=host.sys) as told:
        during = host.settings()
        note = tuning.note(host.run)
        assert note is not None
        assert note.live
    assert list(during.values()) == ["performance", "performance", "1", "2", "madvise", "0"]
    assert told["governor policy0"] == "powersave → performance"
    assert told["swap /dev/sda3"] == "-2 → off"
    assert len(told) == len(before) == 8
    assert host.settings() == before
    assert list(host.run.iterdir()) == []


def test_a_host_that_is_as_wanted_is_not_touched(host: Host, tmp_path: Path) -> None:
    proc, sys = trees.cloud_guest(tmp_path / "cloud")
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("one")
    with tune.tuned(host.run, proc=proc, sys=sys) as told:
        assert told == {}
    assert tune.plan(proc, sys) == []


def test_a_governor_that_is_not_offered_is_not_asked_for(host: Host) -> None:
    trees.grow(host.sys, {"devices/system/cpu/cpufreq/policy1/scaling_available_governors": "schedutil powersave\n"})
    assert [each.name for each in tune.plan(host.proc, host.sys) if "governor" in each.name] == ["governor policy0"]


def test_what_an_exception_ends_is_put_back(host: Host) -> None:
    before = host.settings()
    with pytest.raises(RuntimeError, match="mid-run"), tune.tuned(host.run, proc=host.proc, sys=host.sys):
        raise RuntimeError("mid-run")
    assert host.settings() == before


def test_a_setting_that_refuses_is_one_line_and_the_others_are_put_back(host: Host) -> None:
    before = host.settings()
    refusing = Change(name="refusing", path="/proc/self/stat", before="x", during="y")
    changes = [*tune.plan(host.proc, host.sys), refusing]
    with (
        pytest.raises(TareError, match=r"setting refusing: /proc/self/stat: .*leave out --tune") as caught,
        tuning.changed(host.run, changes, proc=host.proc, sys=host.sys),
    ):
        pytest.fail("nothing may run")
    assert "\n" not in str(caught.value)
    assert host.settings() == before


def test_a_setting_that_stays_as_it_was_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn, real = host.sys / "kernel/mm/ksm/run", tuning.reading
    monkeypatch.setattr(tuning, "reading", lambda path: "1" if path == stubborn else real(path))
    with pytest.raises(TareError, match="stays at 1"):
        tuned(host)
    assert tuning.reading(host.sys / GOVERNOR.format(0)) == "powersave"


def test_swap_that_would_not_fit_into_memory_is_refused_before_anything_is_touched(host: Host) -> None:
    (host.proc / "meminfo").write_text(MEMINFO.format(free=0).replace("32768000", "1048576"))
    before = host.settings()
    with pytest.raises(TareError, match="2048 MiB lie in swap and only 1024 MiB"):
        tuned(host)
    assert host.settings() == before
    assert not host.run.exists()


def test_a_note_that_cannot_be_written_changes_nothing(host: Host) -> None:
    host.run.write_text("in the way")
    before = host.settings()
    with pytest.raises(TareError, match=r"tuning\.json"):
        tuned(host)
    assert host.settings() == before


def killed(host: Host, moment: str) -> None:
    """Another process tunes the host and is killed: in the block, or `moment` changes after it began."""
    script = f"""
import os, signal, sys
from pathlib import Path
from harness import tune
from runtime import tuning
made = []
def stop():
    os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} != "inside":
    real = tuning._make
    def make(change):
        if len(made) == int({moment!r}):
            stop()
        real(change)
        made.append(change)
    tuning._make = make
with tune.tuned(Path({str(host.run)!r}), proc=Path({str(host.proc)!r}), sys=Path({str(host.sys)!r})):
    stop()
"""
    done = subprocess.run([system.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("moment", ["0", "1", "3", "7", "inside"])
def test_what_a_killed_run_changed_is_put_back_at_any_moment(host: Host, moment: str) -> None:
    before = host.settings()
    killed(host, moment)
    note = tuning.note(host.run)
    assert note is not None
    assert not note.live
    assert (host.settings() == before) == (moment == "0")
    done = host.put_back()
    assert (len(done.done), done.left, done.failed) == (8 if moment == "inside" else int(moment), [], [])
    assert host.settings() == before
    assert list(host.run.iterdir()) == []


def test_the_note_is_there_before_the_first_change(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def make(change: Change) -> None:
        seen.append(json.loads((host.run / NOTE).read_text())["changes"][len(seen)]["name"])

    monkeypatch.setattr(tuning, "_make", make)
    assert list(tuned(host)) == seen


def test_what_somebody_has_changed_since_is_left_and_told(host: Host) -> None:
    killed(host, "inside")
    (host.sys / GOVERNOR.format(0)).write_text("ondemand\n")
    done = host.put_back()
    assert done.left == ["governor policy0: ondemand by now, was powersave"]
    assert tuning.reading(host.sys / GOVERNOR.format(0)) == "ondemand"
    assert tuning.reading(host.sys / GOVERNOR.format(1)) == "powersave"


def test_what_cannot_be_put_back_stays_noted(host: Host) -> None:
    killed(host, "inside")
    (host.sys / GOVERNOR.format(0)).unlink()
    assert [line.split(":")[0] for line in host.put_back().failed] == ["governor policy0"]
    with pytest.raises(TareError, match="tare clean"):
        tuned(host)
    (host.sys / GOVERNOR.format(0)).write_text("performance")
    assert "governor policy0: powersave" in host.put_back().done
    assert list(host.run.iterdir()) == []


def test_after_a_reboot_there_is_nothing_to_put_back(host: Host) -> None:
    killed(host, "inside")
    (host.proc / "sys/kernel/random/boot_id").write_text("two\n")
    assert host.put_back().done == []
    assert tuning.reading(host.sys / GOVERNOR.format(0)) == "performance"
    assert list(host.run.iterdir()) == []


def test_two_at_once_are_refused_whatever_their_state_root(host: Host) -> None:
    with tune.tuned(host.run, proc=host.proc, sys=host.sys):
        during = host.settings()
        assert host.put_back().done == []
        with (
            pytest.raises(TareError, match="another process"),
            tune.tuned(host.run.with_name("other"), proc=host.proc, sys=host.sys),
        ):
            pytest.fail("nothing may run")
        assert host.settings() == during


@pytest.mark.parametrize("text", ["{", "[]", '{"boot": "one", "changes": [{"odd": 1}]}'])
def test_a_damaged_note_is_one_line(host: Host, text: str) -> None:
    trees.grow(host.run, {NOTE: text})
    with pytest.raises(TareError, match="by hand"):
        tuning.note(host.run)


def test_no_host_is_tuned_by_importing() -> None:
    assert tuning.note(Path("/nowhere")) is None
    assert all(Path(each.path).exists() for each in tune.plan(PROC))
