"""The direction of imports, as docs/architecture.md draws it: no arrow runs back up."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("runtime", "workloads", "harness", "reports", "tare")

# What a module may import of ours: the longest matching prefix on the left decides.
ALLOWED = {
    "runtime": ("runtime",),
    "runtime.record": (),
    "runtime.linux": ("runtime.linux", "runtime.record", "runtime.errors"),
    "runtime.spec": (
        "runtime.record",
        "runtime.errors",
    ),
    "runtime.images": (
        "runtime.images",
        "runtime.linux",
        "runtime.spec",
        "runtime.record",
        "runtime.errors",
        "runtime.command",
    ),
    "runtime.cgroups": (
        "runtime.cgroups",
        "runtime.linux",
        "runtime.spec",
        "runtime.record",
        "runtime.errors",
        "runtime.instance",
    ),
    "runtime.network": (
        "runtime.network",
        "runtime.linux",
        "runtime.record",
        "runtime.spec",
        "runtime.ledger",
        "runtime.errors",
        "runtime.command",
    ),
    "runtime.files": ("runtime.files", "runtime.linux", "runtime.images", "runtime.record", "runtime.errors"),
    "runtime.instance": ("runtime.spec", "runtime.record", "runtime.errors"),
    "runtime.identity": ("runtime.record", "runtime.errors"),
    "runtime.channel": (
        "runtime.frames",
        "runtime.instance",
        "runtime.identity",
        "runtime.reading",
        "runtime.errors",
    ),
    "runtime.frames": ("runtime.errors",),
    "runtime.reading": (),
    "runtime.command": ("runtime.errors",),
    "runtime.ledger": (
        "runtime.record",
        "runtime.errors",
    ),
    "runtime.driver": ("runtime.drivers", "runtime.instance", "runtime.spec", "runtime.errors"),
    "workloads": (
        "workloads",
        "runtime.spec",
        "runtime.instance",
        "runtime.driver",
        "runtime.scratch",
        "runtime.errors",
    ),
    "workloads.metric": (),
    "harness": ("harness", "workloads", "runtime"),
    "harness.stats": ("harness.intervals", "harness.significance", "workloads.metric"),
    "harness.significance": ("harness.intervals",),
    "harness.intervals": (),
    "harness.results": ("workloads.metric", "runtime.errors"),
    "harness.replay": ("harness.results", "workloads.metric"),
    "reports": ("reports", "harness.results", "harness.stats", "workloads.metric"),
    "reports.export": ("reports", "harness.results", "harness.replay"),
    "tare": ("runtime.errors", "runtime.driver", "runtime.container.contact"),
}
FORBIDDEN = {
    "runtime.container": ("runtime.vm", "runtime.commands", "runtime.drivers"),
    "runtime.vm": ("runtime.container", "runtime.commands", "runtime.drivers"),
    "runtime.drivers": ("runtime.commands",),
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in OURS[:-1]:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path
    yield "tare", ROOT / "tare.py"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                deeper = ROOT.joinpath(*node.module.split("."), alias.name)
                inner = deeper.is_dir() or deeper.with_suffix(".py").exists()
                yield f"{node.module}.{alias.name}" if inner else node.module


def below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def rule(table: Mapping[str, tuple[str, ...]], module: str) -> tuple[str, ...] | None:
    parts = module.split(".")
    candidates = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((table[name] for name in candidates if name in table), None)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_module_imports_only_what_lies_below_it(module: str, path: Path) -> None:
    allowed = rule(ALLOWED, module)
    assert allowed is not None, f"{module} stands on no floor"
    forbidden = rule(FORBIDDEN, module) or ()
    for name in imports(path):
        if name.split(".")[0] not in OURS:
            continue
        assert below(name, allowed), f"{module} must not import {name}"
        assert not below(name, forbidden), f"{module} must not import {name}"


@pytest.mark.parametrize("package", [*OURS[:-1], "tests"])
def test_package_inits_are_empty(package: str) -> None:
    assert [path for path in (ROOT / package).rglob("__init__.py") if path.read_bytes()] == []


def test_rule_rejects_an_upward_import(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from harness.results import Run\nimport runtime.vm.domain\n")
    allowed = rule(ALLOWED, "workloads.startup")
    assert allowed is not None
    assert [name for name in imports(bad) if not below(name, allowed)] == ["harness.results", "runtime.vm.domain"]
