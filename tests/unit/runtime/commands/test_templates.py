"""Templates of `--format`: what Docker's users write, by what Go's text/template makes of it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.commands.templates import Template
from runtime.errors import UsageError

DOCUMENT = {
    "Name": "/web",
    "State": {"Pid": 7, "Running": True, "Error": None},
    "Args": ["-c", "true"],
    "Empty": [],
    "Labels": {"b.c": "2", "a": "1"},
    "Networks": {"bridge": {"IPAddress": "10.0.0.2"}, "other": {"IPAddress": "10.1.0.2"}},
    "Mounts": [{"Source": "/x", "RW": True}, {"Source": "/y", "RW": False}],
}


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{.State.Pid}}/{{ .State.Running }}", "7/true"),
        ("{{json .Args}}", '["-c","true"]'),
        ("{{.Args}} {{.Labels}}", "[-c true] map[a:1 b.c:2]"),
        ("{{.State.Error}}", "<no value>"),
        ('{{index .Labels "b.c"}}{{index .Labels "none"}}{{index .Args 1}}', "2true"),
        ("{{range .Networks}}{{.IPAddress}} {{end}}", "10.0.0.2 10.1.0.2 "),
        ("{{range $k, $v := .Networks}}{{$k}}={{$v.IPAddress}};{{end}}", "bridge=10.0.0.2;other=10.1.0.2;"),
        ("{{range $i, $one := .Args}}{{$i}}{{$one}}{{end}}", "0-c1true"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if not .State.Running}}a{{else if eq .State.Pid 1 7}}b{{else}}c{{end}}", "b"),
        ("{{with .State}}{{.Pid}}{{$.Name}}{{end}}", "7/web"),
        ("{{range .Mounts}}{{if .RW}}{{.Source}}{{end}}{{end}}", "/x"),
        ('{{len .Mounts}}{{.Name | printf "%s-%d" `v` | upper}}', "2V-/WEB"),
        ('{{join .Args ","}} {{.Name | lower | title}}', "-c,true /Web"),
        ("{{(index .Mounts 0).Source}}{{len (index .Mounts 0).Source}}", "/x2"),
        ("{{(index .Mounts 0) | json}}", '{"Source":"/x","RW":true}'),
        ("{{$x := .State.Pid}}[{{$x}}]", "[7]"),
        ("a {{- .State.Pid -}} b{{/* a remark */}}", "a7b"),
        ('{{printf "%-5s|%q|%%" .State.Pid "a"}}', '7    |"a"|%'),
        ("{{if and .State.Running (gt .State.Pid 6)}}y{{end}}", "y"),
        ('{{println "a"}}', "a\n"),
        ("no action", "no action"),
    ],
)
def test_a_template_shows(template: str, shown: str) -> None:
    assert Template(template).render(DOCUMENT) == shown


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{.Nope}}", r"there is no \.Nope"),
        ("{{.State.Pid.Deeper}}", "there is no"),
        ("{{nope .Name}}", "there is no function nope"),
        ("{{.Name", "not closed"),
        ("{{if .Name}}x", "an end is missing"),
        ("{{end}}", "end of nothing"),
        ("{{$y}}", r"no variable \$y"),
        ("{{.Name .Args}}", "no function"),
        ("{{len 7}}", "len does not go with 7"),
        ("{{index .Args 9}}", "index does not go"),
        ("{{(len .Args}}", "is missing"),
        ("{{;}}", "not understood"),
        ("{{json}}", "json does not go"),
    ],
)
def test_what_is_no_template_is_refused_by_name(template: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Template(template).render(DOCUMENT)


@given(st.lists(st.sampled_from(["{{", "}}", ".Name", "if", "end", "range", " ", '"', "|", "(", ")", "$", "x", "-"])))
def test_no_template_breaks_it(words: list[str]) -> None:
    with suppress(UsageError):
        Template("".join(words)).render(DOCUMENT)
