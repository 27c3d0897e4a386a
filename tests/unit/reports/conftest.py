"""Reports of synthetic runs, each drawn once a session: charts take seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.results import Run
from reports import render
from reports.claims import ClaimSet, Evidence
from reports.frame import Frame
from reports.sections.base import View
from reports.words import Words
from tests.journals import Synthetic

HOSTILE = "\"><script>alert(1)</script>&amp;{{ 7*7 }}'\\input{x}%"


@pytest.fixture(scope="session")
def view_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., View]:
    """A view of a synthetic run: `view_of(language="zh", blocks=3)`."""

    def make(language: str = "en", **shape: object) -> View:
        directory = Synthetic(**shape).write(tmp_path_factory.mktemp("run"))  # type: ignore[arg-type]
        return view(directory, language)

    return make


def view(directory: Path, language: str = "en") -> View:
    return render.view_of(Evidence(Frame(Run.load(directory)), ClaimSet.load()), Words.load(language))


@pytest.fixture(scope="session")
def pages(view_of: Callable[..., View]) -> dict[str, str]:
    """Pages of runs with every kind of gap, by name."""
    shapes: dict[str, dict[str, object]] = {
        "tcg": {},
        "kvm-docker": {"accelerator": "kvm", "drivers": ("native", "container", "docker", "microvm", "vm")},
        "smoke": {"blocks": 1, "profile": "smoke"},
        "native-only": {"drivers": ("native",)},
        "hostile": {
            "blocks": 2,
            "text": HOSTILE,
            "unusable": {"vm": HOSTILE},
            "failing": {("startup", "container"): HOSTILE, ("density", "container"): "out of memory"},
            "limiter": HOSTILE,
        },
        "zh": {"language": "zh", "blocks": 6},
    }
    return {name: render.page(view_of(**shape)) for name, shape in shapes.items()}
