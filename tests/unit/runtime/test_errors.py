"""What a user reads is one line that does nothing to a terminal, whoever wrote its words."""

from __future__ import annotations

import click
import pytest

import tare
from runtime.errors import TareError, printable


def test_words_of_others_are_made_harmless() -> None:
    assert printable("two\nlines\t\x1b[31mred\x9b \ud800 é") == r"two lines \x1b[31mred\x9b \ud800 é"


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def fail() -> None:
        raise TareError("registry", "it says:\nno\x1b[2J", "do not\rbelieve it")

    monkeypatch.setattr(tare, "tare", fail)
    monkeypatch.delenv("TARE_DEBUG", raising=False)
    with pytest.raises(SystemExit):
        tare.main([])
    assert capsys.readouterr().err == "tare: registry: it says: no\\x1b[2J (do not believe it)\n"


def test_a_wrong_command_line_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tare.main(["export", "somewhere"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
